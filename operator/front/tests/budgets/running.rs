//! Budgets that come to hold for a call while it runs.

use std::sync::Arc;
use std::time::Duration;

use croft_front::budget::keeper::Keeper;
use croft_front::counters::{Counters, Verdict};
use croft_front::session::Session;
use croft_proto::v1::BudgetAction;

use crate::scene::{COST, INPUT, OUTPUT, Scene, granted};

const TTL: Duration = Duration::from_mins(10);

/// Whether there is room for a call at once.
async fn has_room(scene: &Scene, keeper: &Keeper) -> bool {
    granted(keeper.grant(scene.hasty_wish(1)).await.unwrap()).is_some()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_that_is_set_over_a_running_call_counts_it() {
    let scene = Scene::new(2).await;
    let keeper = scene.keeper(TTL);
    let session: &Session = &scene.sessions[0];
    let mut running = granted(keeper.grant(scene.wish(0)).await.unwrap()).unwrap();
    assert!(running.budgets.is_empty());
    assert!(keeper.hold(session, &mut running).await.unwrap().is_none());

    scene.set(COST, BudgetAction::Block).await;
    keeper.forget(scene.tenant).await;
    // Any other would have room: only once the call has said that it is running.
    assert!(keeper.hold(session, &mut running).await.unwrap().is_none(), "it may go on");
    assert!(!has_room(&scene, &keeper).await);

    let attempt = scene.used(session, &running, OUTPUT / 2).await;
    keeper.settle(session, &running, Some(&attempt)).await;
    let counter = scene.counter().await.unwrap();
    assert_eq!((counter.spent.nano_usd, counter.reserved.nano_usd), (INPUT + OUTPUT, 0));
    scene.end().await;
}

/// A call that was granted on another day.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_that_begins_counts_what_is_running() {
    let scene = Scene::new(2).await;
    let counters = Arc::new(crate::scene::redis());
    let keeper = scene.keeper_over(Arc::clone(&counters) as _, TTL);
    let session = &scene.sessions[0];
    scene.set(COST, BudgetAction::Block).await;
    let mut running = granted(keeper.grant(scene.wish(0)).await.unwrap()).unwrap();
    // As it would be, had it been granted before: in that day's account alone.
    keeper.settle(session, &running, None).await;
    running.ask.bounds[0].key = "tenant::2026-01-01".to_owned();
    running.ask.bounds[0].ledger = Some(scene.ledger().await);
    assert!(matches!(counters.admit(&running.ask).await.unwrap().verdict, Verdict::Granted(_)));

    assert!(keeper.hold(session, &mut running).await.unwrap().is_none());
    assert!(!has_room(&scene, &keeper).await);
    let attempt = scene.used(session, &running, OUTPUT / 2).await;
    keeper.settle(session, &running, Some(&attempt)).await;
    let counter = scene.counter().await.unwrap();
    assert_eq!((counter.spent.nano_usd, counter.reserved.nano_usd), (INPUT + OUTPUT, 0));
    scene.end().await;
}
