//! Whoever races, whoever crashes: what is spent stays within the budget, and the counter comes back to the ledger.

use std::sync::Arc;
use std::time::Duration;

use croft_front::budget::keeper::{Outcome, Wish};
use croft_front::budget::reservation::Reservation;
use croft_front::counters::redis::RedisCounters;
use croft_front::counters::{Amount, Ask, Counters, Verdict};
use croft_proto::v1::BudgetAction;
use croft_proto::v1::session_event::Kind;
use futures::future::{join, join_all};
use futures::{StreamExt, stream};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::runtime::Runtime;
use tokio::time::{Instant, sleep, timeout};

use crate::scene::{COST, INPUT, OUTPUT, PATIENCE, Scene, granted, redis};

/// Of reservations that nobody forsakes: longer than any test.
const LONG: Duration = Duration::from_mins(10);
const SHORT: Duration = Duration::from_millis(300);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_thousand_calls_at_once_exactly_those_are_served_that_fit() {
    let scene = Scene::new(8).await;
    scene.set(100 * COST, BudgetAction::Block).await;
    let replicas = [scene.keeper(LONG), scene.keeper(LONG), scene.keeper(LONG)];
    let calls = (0..1_000).map(|number| {
        let (keeper, scene) = (&replicas[number % replicas.len()], &scene);
        async move {
            let wish = Wish { patience: LONG, ..scene.wish(number) };
            let session = wish.session.clone();
            let Some(reservation) = granted(keeper.grant(wish).await.unwrap()) else { return 0 };
            let attempt = scene.used(&session, &reservation, OUTPUT).await;
            keeper.settle(&session, &reservation, Some(&attempt)).await;
            1
        }
    });
    let served: i64 = join_all(calls).await.into_iter().sum();
    assert_eq!(served, 100);
    let ledger = scene.ledger().await;
    assert_eq!((ledger.version, ledger.nano_usd), (100, 100 * COST));
    let counter = scene.counter().await.expect("it is known");
    let spent = Amount { nano_usd: ledger.nano_usd, tokens: ledger.tokens };
    assert_eq!((counter.spent, counter.reserved), (spent, Amount::default()), "the ledger equals the counter");

    // Raised, it goes on; and not by one call too many.
    scene.set(101 * COST, BudgetAction::Block).await;
    let another = scene.keeper(LONG);
    assert!(granted(another.grant(scene.wish(0)).await.unwrap()).is_some());
    assert!(granted(another.grant(scene.hasty_wish(0)).await.unwrap()).is_none());
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_the_ledger_counts_and_that_is_reserved_still_keeps_nobody_out() {
    let scene = Scene::new(3).await;
    scene.set(3 * COST, BudgetAction::Block).await;
    let [here, there] = [scene.keeper(LONG), scene.keeper(LONG)];
    let first = granted(here.grant(scene.wish(0)).await.unwrap()).unwrap();
    let second = granted(there.grant(scene.wish(1)).await.unwrap()).unwrap();
    let first_attempt = scene.used(&scene.sessions[0], &first, OUTPUT).await;
    let second_attempt = scene.used(&scene.sessions[1], &second, OUTPUT).await;
    // It brings the counter the ledger's word, in which the second is.
    here.settle(&scene.sessions[0], &first, Some(&first_attempt)).await;
    let counter = scene.counter().await.expect("it is known");
    assert_eq!((counter.spent.nano_usd, counter.reserved.nano_usd), (2 * COST, COST), "the second counts twice");
    assert!(granted(here.grant(scene.hasty_wish(2)).await.unwrap()).is_none());

    let settled = async {
        sleep(Duration::from_millis(100)).await;
        there.settle(&scene.sessions[1], &second, Some(&second_attempt)).await;
    };
    let (outcome, ()) = join(here.grant(scene.wish(2)), settled).await;
    assert!(granted(outcome.unwrap()).is_some(), "two of three are spent");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_waits_for_room_as_long_as_running_calls_may_leave_it_and_no_longer_than_its_patience() {
    let scene = Scene::new(2).await;
    scene.set(2 * COST, BudgetAction::Block).await;
    let keeper = scene.keeper(LONG);
    let short = |session| Wish { patience: Duration::from_millis(200), ..scene.wish(session) };
    let first = granted(keeper.grant(scene.wish(0)).await.unwrap()).unwrap();
    let second = granted(keeper.grant(scene.wish(0)).await.unwrap()).unwrap();
    assert!(granted(keeper.grant(short(1)).await.unwrap()).is_none(), "nobody settles");

    let waits = keeper.grant(scene.wish(1));
    tokio::pin!(waits);
    assert!(timeout(Duration::from_millis(300), &mut waits).await.is_err(), "they may leave some");
    keeper.settle(&scene.sessions[0], &second, None).await;
    let third = granted(timeout(PATIENCE, waits).await.expect("it is over").unwrap()).expect("there is room");
    assert_eq!((third.output_tokens_max, &third.clipped_by), (OUTPUT, &None));

    let waits = keeper.grant(scene.wish(1));
    let both_are_over = async {
        for (session, reservation) in [(0, &first), (1, &third)] {
            let attempt = scene.used(&scene.sessions[session], reservation, OUTPUT).await;
            keeper.settle(&scene.sessions[session], reservation, Some(&attempt)).await;
        }
    };
    let (refused, ()) =
        timeout(PATIENCE / 2, join(waits, both_are_over)).await.expect("what is spent is not waited for");
    assert!(granted(refused.unwrap()).is_none());
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_waits_for_room_goes_on_when_the_budget_is_raised() {
    let scene = Scene::new(1).await;
    scene.set(COST, BudgetAction::Block).await;
    let keeper = scene.keeper(LONG);
    assert!(granted(keeper.grant(scene.wish(0)).await.unwrap()).is_some());
    let waits = keeper.grant(scene.wish(0));
    tokio::pin!(waits);
    assert!(timeout(Duration::from_millis(300), &mut waits).await.is_err(), "the first may leave some");
    scene.set(2 * COST, BudgetAction::Block).await;
    let outcome = timeout(PATIENCE / 2, waits).await.expect("it is known within 3 s").unwrap();
    assert!(granted(outcome).is_some());
    scene.end().await;
}

/// What a call does once it is granted.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// Uses so much of its output, and settles.
    Settles(i64),
    /// Its front dies before it has written anything.
    Vanishes,
    /// Its front dies between the ledger and the counter.
    Forgets(i64),
    /// It was never made, and its reservation given back.
    GivesBack,
}

/// The last that is heard of a call: that it is there for [`SHORT`].
async fn falls_silent(counters: &RedisCounters, scene: &Scene, reservation: &Reservation) {
    let mut ask = Ask { ttl: SHORT, ..reservation.ask.clone() };
    while !matches!(counters.hold(&ask).await.unwrap().verdict, Verdict::Granted(_)) {
        for bound in &mut ask.bounds {
            bound.ledger = Some(scene.ledger().await);
        }
    }
}

fn fates() -> impl Strategy<Value = Vec<(usize, Fate, u64)>> {
    let fate = prop_oneof![
        6 => (0..=OUTPUT).prop_map(Fate::Settles),
        1 => Just(Fate::Vanishes),
        2 => (0..=OUTPUT).prop_map(Fate::Forgets),
        1 => Just(Fate::GivesBack),
    ];
    prop::collection::vec((0..3_usize, fate, 0..30_u64), 1..60)
}

#[test]
fn reserves_settles_expiries_and_crashes_keep_within_the_ledger() {
    let runtime = Runtime::new().unwrap();
    let config = Config { cases: 6, max_shrink_iters: 10, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&(fates(), 3..20_i64), |(fates, calls)| {
        runtime.block_on(async {
            let scene = Scene::new(4).await;
            let limit = calls * COST;
            scene.set(limit, BudgetAction::Block).await;
            // Whoever still writes is not taken for dead, however slow.
            let replicas = [scene.keeper(LONG), scene.keeper(LONG), scene.keeper(LONG)];
            let counters = redis();
            stream::iter(fates.iter().enumerate())
                .for_each_concurrent(8, |(number, (replica, fate, pause_ms))| {
                    let (keeper, scene, counters) = (&replicas[*replica], &scene, &counters);
                    async move {
                        let wish = scene.wish(number);
                        let session = wish.session.clone();
                        let Some(reservation) = granted(keeper.grant(wish).await.unwrap()) else { return };
                        sleep(Duration::from_millis(*pause_ms)).await;
                        let output = |asked: i64| asked.min(reservation.output_tokens_max);
                        match fate {
                            Fate::Settles(asked) => {
                                let attempt = scene.used(&session, &reservation, output(*asked)).await;
                                keeper.settle(&session, &reservation, Some(&attempt)).await;
                            }
                            Fate::Forgets(asked) => {
                                scene.used(&session, &reservation, output(*asked)).await;
                                falls_silent(counters, scene, &reservation).await;
                            }
                            Fate::GivesBack => keeper.settle(&session, &reservation, None).await,
                            Fate::Vanishes => falls_silent(counters, scene, &reservation).await,
                        }
                    }
                })
                .await;
            let ledger = scene.ledger().await;
            prop_assert!(ledger.nano_usd <= limit, "{} of {}", ledger.nano_usd, limit);
            // Once the dead are forsaken, the next call brings the counter to the ledger's word, and frees what they held.
            sleep(SHORT).await;
            let last = scene.keeper(LONG);
            let outcome = last.grant(scene.wish(0)).await.unwrap();
            if let Outcome::Granted(reservation) = &outcome {
                last.settle(&scene.sessions[0], reservation, None).await;
            }
            let counter = scene.counter().await.expect("it is known");
            prop_assert_eq!(counter.spent.nano_usd, ledger.nano_usd);
            prop_assert_eq!(counter.reserved, Amount::default());
            scene.end().await;
            Ok(())
        })
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

/// The percents that the sessions were told of, of a budget of so much.
async fn alerts(scene: &Scene, limit: i64) -> Vec<u32> {
    let mut told = Vec::new();
    for session in &scene.sessions {
        for event in scene.stores.events.read(scene.tenant, session.id, 0, 1_000).await.unwrap() {
            if let Some(Kind::BudgetAlert(alert)) = event.kind {
                assert_eq!((alert.scope.as_str(), alert.period.as_str()), ("tenant", "life"));
                assert_eq!((alert.unit.as_str(), alert.limit), ("nano_usd", limit));
                told.push(alert.percent);
            }
        }
    }
    told.sort_unstable();
    told
}

/// The front that stored the attempt died before it told of anything, and what is left will never be spent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_refused_is_told_of_all_thresholds_that_nobody_told_of() {
    let scene = Scene::new(1).await;
    let limit = COST + INPUT;
    scene.set(limit, BudgetAction::Block).await;
    let lost = granted(scene.keeper(Duration::from_millis(1)).grant(scene.wish(0)).await.unwrap()).unwrap();
    scene.used(&scene.sessions[0], &lost, OUTPUT).await;
    assert_eq!(alerts(&scene, limit).await, [0_u32; 0]);
    let keeper = scene.keeper(LONG);
    // The lost one's reservation has run out: it is the ledger that refuses.
    for _ in 0..2 {
        assert!(granted(keeper.grant(scene.hasty_wish(0)).await.unwrap()).is_none());
        assert_eq!(alerts(&scene, limit).await, [50, 80, 90, 100]);
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_threshold_is_told_of_once_whoever_passes_it() {
    let scene = Scene::new(5).await;
    scene.set(10 * COST, BudgetAction::Warn).await;
    let replicas = [scene.keeper(LONG), scene.keeper(LONG)];
    let calls = (0..20).map(|number| {
        let (keeper, scene) = (&replicas[number % 2], &scene);
        async move {
            let wish = scene.wish(number);
            let session = wish.session.clone();
            let reservation = granted(keeper.grant(wish).await.unwrap()).expect("a warning refuses nothing");
            let attempt = scene.used(&session, &reservation, OUTPUT).await;
            keeper.settle(&session, &reservation, Some(&attempt)).await;
        }
    });
    join_all(calls).await;
    assert_eq!(alerts(&scene, 10 * COST).await, [50, 80, 90, 100]);
    assert_eq!(replicas[0].tell_untold(Duration::ZERO).await.unwrap(), 0, "nothing is left to be told");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_used_up_budget_that_throttles_lets_calls_through_one_by_one() {
    for _ in 0..10 {
        if lets_calls_through_one_by_one().await {
            return;
        }
    }
    panic!("the machine stalls each time");
}

/// Whether it was seen before a call would have been let through anyway.
async fn lets_calls_through_one_by_one() -> bool {
    let scene = Scene::new(1).await;
    scene.set(COST, BudgetAction::Throttle).await;
    let keeper = Arc::new(scene.keeper(LONG));
    let first = granted(keeper.grant(scene.wish(0)).await.unwrap()).unwrap();
    let attempt = scene.used(&scene.sessions[0], &first, OUTPUT).await;
    keeper.settle(&scene.sessions[0], &first, Some(&attempt)).await;
    // Used up: the next one passes, and the one after it waits.
    let before = Instant::now();
    let next = keeper.grant(scene.wish(0)).await.unwrap();
    let hurried = keeper.grant(scene.hasty_wish(0)).await.unwrap();
    let waits = timeout(Duration::from_secs(1), keeper.grant(scene.wish(0))).await.is_err();
    let is_seen = before.elapsed() < Duration::from_secs(5);
    if is_seen {
        assert!(granted(next).is_some());
        let Outcome::Limited(why) = hurried else { panic!("one at a time") };
        assert_eq!(why, "the tenant's budget is used up, and lets one call through in 5 s");
        assert!(waits);
        let outcome = timeout(PATIENCE, keeper.grant(scene.wish(0))).await.expect("not for ever").unwrap();
        assert!(granted(outcome).is_some());
    }
    scene.end().await;
    is_seen
}
