//! Grants that nobody waits for any more when they come.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use croft_front::counters::redis::RedisCounters;
use croft_front::counters::{Answer, Ask, Counters, Settlement, Standing};
use croft_front::error::Error;
use croft_proto::v1::BudgetAction;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::scene::{COST, PATIENCE, Scene, granted, redis};

const TTL: Duration = Duration::from_mins(5);

/// Counters whose answers to asks get lost on their way.
struct Mute {
    counters: RedisCounters,
    granted: Arc<Notify>,
}

#[async_trait]
impl Counters for Mute {
    async fn admit(&self, ask: &Ask) -> Result<Answer, Error> {
        self.counters.admit(ask).await?;
        self.granted.notify_one();
        std::future::pending().await
    }

    async fn hold(&self, ask: &Ask) -> Result<Answer, Error> {
        self.counters.hold(ask).await
    }

    async fn settle(&self, settlement: &Settlement) -> Result<Vec<Standing>, Error> {
        self.counters.settle(settlement).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_granted_to_somebody_who_has_gone_is_given_back() {
    let scene = Scene::new(2).await;
    scene.set(COST, BudgetAction::Block).await;
    // So that the ledger is known, and the first answer is a grant.
    let keeper = scene.keeper(TTL);
    let first = granted(keeper.grant(scene.wish(0)).await.unwrap()).unwrap();
    keeper.settle(&scene.sessions[0], &first, None).await;

    let granted_to_nobody = Arc::new(Notify::new());
    let mute = Mute { counters: redis(), granted: Arc::clone(&granted_to_nobody) };
    let deaf = scene.keeper_over(Arc::new(mute), TTL);
    let mut outcome = Box::pin(deaf.grant(scene.wish(0)));
    let reserved = async {
        granted_to_nobody.notified().await;
        scene.counter().await.unwrap().reserved.nano_usd
    };
    let reserved = tokio::select! {
        _ = &mut outcome => panic!("it has heard something"),
        reserved = timeout(PATIENCE, reserved) => reserved.expect("it is asked for"),
    };
    assert_eq!(reserved, COST);
    drop(outcome);

    let next =
        timeout(PATIENCE, keeper.grant(scene.wish(1))).await.expect("it does not wait for the reservation's end");
    assert!(granted(next.unwrap()).is_some(), "all of the budget is free");
    scene.end().await;
}
