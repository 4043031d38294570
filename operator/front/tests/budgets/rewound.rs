//! A ledger that has gone back, as one does that goes on at a standby which had not everything.

use std::time::Duration;

use croft_front::counters::{Ask, Bound, Counters, Ledger, Verdict};
use croft_proto::v1::BudgetAction;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::scene::{COST, OUTPUT, PATIENCE, Scene, granted, redis};

const TTL: Duration = Duration::from_mins(10);

/// The counters are told more than the ledger has, by a call of which nobody knows what it came to.
async fn runs_ahead(scene: &Scene, version: i64) {
    let ledger = Some(Ledger { version, nano_usd: version * COST, tokens: version });
    let (key, keep) = ("tenant::life".to_owned(), Duration::from_hours(1));
    let ask = Ask {
        tenant: scene.tenant,
        id: Uuid::new_v4().to_string(),
        ttl: Duration::from_millis(1),
        nano_usd: COST,
        tokens: 1,
        windows: Vec::new(),
        bounds: vec![Bound { key, nano_usd: None, tokens: None, keep, ledger, insists: false }],
    };
    let forsaken = async {
        // It is told again where another reservation runs out with it.
        while !matches!(redis().admit(&ask).await.unwrap().verdict, Verdict::Granted(_)) {
            sleep(Duration::from_millis(5)).await;
        }
        while scene.counter().await.is_some() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, forsaken).await.expect("it runs out");
}

/// Once, every call of the tenant was refused until Redis had forgotten what it knew: without a call the ledger does not grow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_go_on_by_a_ledger_that_has_gone_back() {
    let scene = Scene::new(1).await;
    scene.set(2 * COST, BudgetAction::Block).await;
    let keeper = scene.keeper(TTL);
    let session = &scene.sessions[0];
    runs_ahead(&scene, 5).await;
    let mut running = granted(keeper.grant(scene.wish(0)).await.unwrap()).expect("nothing is spent, by the ledger");
    let counter = scene.counter().await.expect("it is known");
    assert_eq!((counter.spent.nano_usd, counter.reserved.nano_usd), (0, COST));

    runs_ahead(&scene, 7).await;
    assert!(keeper.hold(session, &mut running).await.unwrap().is_none(), "nor is the call cut");
    let counter = scene.counter().await.expect("it is known");
    assert_eq!((counter.spent.nano_usd, counter.reserved.nano_usd), (0, COST), "it is spoken for");

    let attempt = scene.used(session, &running, OUTPUT).await;
    keeper.settle(session, &running, Some(&attempt)).await;
    assert!(granted(keeper.grant(scene.hasty_wish(0)).await.unwrap()).is_some());
    assert!(granted(keeper.grant(scene.hasty_wish(0)).await.unwrap()).is_none(), "the budget holds");
    scene.end().await;
}
