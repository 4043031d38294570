//! Under load, fronts, PostgreSQL and Redis are killed by their process id, one after the other, or are gone for a minute. Whatever
//! callers were answered, or saw of models' attempts, is in the audit log and in the ledger of usage afterwards; and nothing is
//! there that did not happen.
//!
//! Needs `make test-services`, for the programs: it starts servers of its own.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod ledger;
#[path = "../kills/relay.rs"]
mod relay;
mod servers;
#[path = "../kills/stage.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod stage;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use croft_e2e::client::{Client, scripted_agent};
use croft_proto::v1::CreateSessionRequest;
use futures::future::join_all;
use tokio::time::{Instant, sleep, timeout};
use tonic::Code;

use crate::ledger::{Known, answered, call, compare};
use crate::servers::{Postgres, Redis};
use crate::stage::Stage;

const CALLERS: usize = 6;
/// Answers that callers must have got between two kills, so that each strikes a system that works and is under load.
const BETWEEN: usize = 25;
/// A system that takes longer than this to work again after a kill does not.
const PATIENCE: Duration = Duration::from_mins(2);
const A_MINUTE: Duration = Duration::from_mins(1);
/// Within which a front says that it has no PostgreSQL.
const REFUSAL_MAX: Duration = Duration::from_secs(10);
/// A front takes most of that time as it is, and the machine may stand still: of so many calls one is refused in time.
const TRIES: usize = 3;
/// In which nothing more is told once all has been that was on its way.
const STILL: Duration = Duration::from_secs(5);

/// Two at a time would wait for each other's processors, and take each other's ports.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_callers_were_answered_is_in_the_tables_whatever_is_killed() {
    under_load(async |scene, _, known| {
        let Scene { postgres, redis, stage } = scene;
        for _ in 0..2 {
            answers(known).await;
            stage.kill_front(0).await;
            answers(known).await;
            postgres.kill().await;
            // Long enough that records wait on the fronts' disks, where a front is killed beside them.
            sleep(Duration::from_secs(1)).await;
            stage.end_front(1).await;
            postgres.run().await;
            stage.run_front(1).await;
            answers(known).await;
            redis.kill().await;
            answers(known).await;
            redis.run().await;
        }
    })
    .await;
}

/// Nobody waits for Redis: turns go on without it. Without PostgreSQL nothing is accepted that could be lost, and nobody is kept
/// waiting to be told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minute_without_redis_and_a_minute_without_postgres_lose_nothing() {
    under_load(async |scene, clients, known| {
        let Scene { postgres, redis, .. } = scene;
        answers(known).await;
        redis.kill().await;
        let (gone, mut intervals) = (Instant::now(), 0);
        while gone.elapsed() < A_MINUTE {
            answers(known).await;
            intervals += 1;
        }
        assert!(intervals > 3, "{intervals} times {BETWEEN} answers in a minute without Redis");
        redis.run().await;
        answers(known).await;

        postgres.kill().await;
        let gone = Instant::now();
        // What was on its way may still be told.
        sleep(REFUSAL_MAX).await;
        let before = timeout(PATIENCE, still(known)).await.expect("callers are still answered");
        loop {
            refused(clients).await;
            if gone.elapsed() >= A_MINUTE {
                break;
            }
            sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(answered(known), before, "something was accepted and stored nowhere");
        postgres.run().await;
    })
    .await;
}

/// What can be killed.
struct Scene {
    postgres: Postgres,
    redis: Redis,
    stage: Stage,
}

/// Lets something happen while callers call, waits until they are answered after it, and compares what they know with what is stored.
async fn under_load(happen: impl AsyncFnOnce(&mut Scene, &[Client], &Mutex<Known>)) {
    let _alone = ONE_AT_A_TIME.lock().await;
    let (postgres, redis) = (Postgres::start().await, Redis::start().await);
    let stage = Stage::on(&postgres.url, &redis.url()).await;
    let (known, stop) = (Mutex::new(Known::default()), AtomicBool::new(false));
    let clients = stage.clients();
    let mut scene = Scene { postgres, redis, stage };
    let callers = join_all((0..CALLERS).map(|caller| call(&clients, caller, &known, &stop)));
    let happening = async {
        happen(&mut scene, &clients, &known).await;
        answers(&known).await;
        stop.store(true, Ordering::SeqCst);
    };
    tokio::join!(callers, happening);
    compare(&clients[0], &known.into_inner().unwrap(), CALLERS).await;
    scene.stage.strike().await;
    scene.postgres.strike().await;
}

/// Every front says that it can't, in time, so that its caller comes again.
async fn refused(clients: &[Client]) {
    for client in clients {
        let mut is_told = false;
        for _ in 0..TRIES {
            let request = CreateSessionRequest { agent: Some(scripted_agent("ledger")), ..Default::default() };
            if let Ok(told) = timeout(REFUSAL_MAX, client.clone().lifecycle.create_session(request)).await {
                let refusal = told.unwrap_err();
                assert_eq!(refusal.code(), Code::Unavailable, "{refusal:?}");
                is_told = true;
                break;
            }
        }
        assert!(is_told, "a front without PostgreSQL does not answer");
    }
}

/// How many answers callers have had once they get no more.
async fn still(known: &Mutex<Known>) -> usize {
    loop {
        let before = answered(known);
        sleep(STILL).await;
        if answered(known) == before {
            return before;
        }
    }
}

/// Waits until callers have had so many more answers.
async fn answers(known: &Mutex<Known>) {
    let enough = answered(known) + BETWEEN;
    let had = async {
        while answered(known) < enough {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, had).await.expect("callers are answered");
}
