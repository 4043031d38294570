//! What every sliding window promises.

use std::time::Duration;

use croft_front::counters::{Ask, Counters, Verdict, Window};
use croft_proto::id::TenantId;
use futures::future::join_all;
use tokio::time::sleep;

use crate::{admit, ask, bound, in_time, is_granted, known, settle, window};

/// So long that no test sees its end.
const LONG_MS: u64 = 600_000;

pub(crate) async fn lets_through_what_the_limit_says_and_no_more(counters: &dyn Counters) {
    let tenant = TenantId::generate();
    for _ in 0..5 {
        assert!(is_granted(&admit(counters, &ask(tenant, vec![window("requests", 5, LONG_MS)], vec![])).await));
    }
    let refused = admit(counters, &ask(tenant, vec![window("requests", 5, LONG_MS)], vec![])).await;
    let Verdict::Full { window: 0, retry_after } = refused else { panic!("{refused:?}") };
    assert!(retry_after > Duration::ZERO && retry_after <= Duration::from_millis(LONG_MS), "{retry_after:?}");
}

pub(crate) async fn keeps_tenants_apart(counters: &dyn Counters) {
    for tenant in [TenantId::generate(), TenantId::generate()] {
        assert!(is_granted(&admit(counters, &ask(tenant, vec![window("requests", 1, LONG_MS)], vec![])).await));
        assert!(!is_granted(&admit(counters, &ask(tenant, vec![window("requests", 1, LONG_MS)], vec![])).await));
    }
}

pub(crate) async fn keeps_windows_apart(counters: &dyn Counters) {
    let tenant = TenantId::generate();
    for name in ["tokens", "tokens:anthropic", "tokens:openai"] {
        assert!(is_granted(&admit(counters, &ask(tenant, vec![window(name, 1, LONG_MS)], vec![])).await), "{name}");
        assert!(!is_granted(&admit(counters, &ask(tenant, vec![window(name, 1, LONG_MS)], vec![])).await), "{name}");
    }
}

pub(crate) async fn has_room_again_as_moments_leave(counters: &dyn Counters) {
    in_time(async || {
        let tenant = TenantId::generate();
        let next = || ask(tenant, vec![window("requests", 2, 150)], vec![]);
        let first = counters.admit(&next()).await.unwrap();
        assert!(is_granted(&first.verdict));
        sleep(Duration::from_millis(80)).await;
        assert!(is_granted(&admit(counters, &next()).await));
        let third = counters.admit(&next()).await.unwrap();
        if third.at_ms >= first.at_ms + 150 {
            return None;
        }
        assert!(!is_granted(&third.verdict), "a fixed window would not know of the first any more");
        sleep(Duration::from_millis(80)).await;
        assert!(is_granted(&admit(counters, &next()).await), "the first has left");
        Some(())
    })
    .await;
}

pub(crate) async fn tells_when_there_is_room_again(counters: &dyn Counters) {
    in_time(async || {
        let tenant = TenantId::generate();
        let next = |amount| ask(tenant, vec![Window { amount, ..window("tokens", 10, 200) }], vec![]);
        let first = counters.admit(&next(4)).await.unwrap();
        assert!(is_granted(&first.verdict));
        sleep(Duration::from_millis(20)).await;
        let second = counters.admit(&next(6)).await.unwrap();
        let small = counters.admit(&next(4)).await.unwrap();
        let large = counters.admit(&next(5)).await.unwrap();
        if large.at_ms >= first.at_ms + 200 {
            return None;
        }
        assert!(is_granted(&second.verdict));
        let (Verdict::Full { retry_after: soon, .. }, Verdict::Full { retry_after: later, .. }) =
            (small.verdict, large.verdict)
        else {
            panic!("there is no room")
        };
        let room_at = |at_ms: i64, pause: Duration| at_ms + i64::try_from(pause.as_millis()).unwrap();
        assert_eq!(room_at(small.at_ms, soon), first.at_ms + 200, "four need what came first to leave");
        assert_eq!(room_at(large.at_ms, later), second.at_ms + 200, "five need what came second to leave");
        sleep(later).await;
        assert!(is_granted(&admit(counters, &next(5)).await), "the word was true");
        Some(())
    })
    .await;
}

pub(crate) async fn lets_a_giant_through_an_empty_window_alone(counters: &dyn Counters) {
    let tenant = TenantId::generate();
    let next = |amount| ask(tenant, vec![Window { amount, ..window("tokens", 10, LONG_MS) }], vec![]);
    assert!(is_granted(&admit(counters, &next(25)).await), "it never could be else");
    assert!(!is_granted(&admit(counters, &next(1)).await), "but it counts in full");
    let other = TenantId::generate();
    let next = |amount| ask(other, vec![Window { amount, ..window("tokens", 10, LONG_MS) }], vec![]);
    assert!(is_granted(&admit(counters, &next(1)).await));
    assert!(!is_granted(&admit(counters, &next(25)).await));
}

pub(crate) async fn takes_nothing_where_one_window_is_full(counters: &dyn Counters) {
    let tenant = TenantId::generate();
    let both = || ask(tenant, vec![window("wide", 3, LONG_MS), window("narrow", 1, LONG_MS)], vec![]);
    assert!(is_granted(&admit(counters, &both()).await));
    for _ in 0..5 {
        assert!(matches!(admit(counters, &both()).await, Verdict::Full { window: 1, .. }));
    }
    for room in [true, true, false] {
        assert_eq!(is_granted(&admit(counters, &ask(tenant, vec![window("wide", 3, LONG_MS)], vec![])).await), room);
    }
}

pub(crate) async fn tells_of_the_window_that_takes_longest(counters: &dyn Counters) {
    let tenant = TenantId::generate();
    let both = || ask(tenant, vec![window("quick", 1, 5_000), window("slow", 1, LONG_MS)], vec![]);
    assert!(is_granted(&admit(counters, &both()).await));
    let refused = admit(counters, &both()).await;
    let Verdict::Full { window: 1, retry_after } = refused else { panic!("{refused:?}") };
    assert!(retry_after > Duration::from_secs(5));
}

pub(crate) async fn holds_to_a_new_limit_at_once(counters: &dyn Counters) {
    let tenant = TenantId::generate();
    let with = |limit| ask(tenant, vec![window("requests", limit, LONG_MS)], vec![]);
    for _ in 0..3 {
        assert!(is_granted(&admit(counters, &with(3)).await));
    }
    assert!(!is_granted(&admit(counters, &with(3)).await));
    assert!(is_granted(&admit(counters, &with(4)).await), "another tier");
    assert!(!is_granted(&admit(counters, &with(2)).await), "and back");
}

/// An ask for so many tokens, of which some are estimated.
fn estimated(tenant: TenantId, amount: i64) -> Ask {
    let tokens = Window { amount, settles: true, ..window("tokens", 100, LONG_MS) };
    Ask { tokens: amount, ..ask(tenant, vec![tokens], vec![]) }
}

pub(crate) async fn corrects_an_estimate(counters: &dyn Counters) {
    let tenant = TenantId::generate();
    let first = estimated(tenant, 90);
    assert!(is_granted(&admit(counters, &first).await));
    assert!(!is_granted(&admit(counters, &estimated(tenant, 20)).await));
    settle(counters, &first, Some(30), vec![]).await;
    assert!(is_granted(&admit(counters, &estimated(tenant, 20)).await), "it used less");
    let third = estimated(tenant, 10);
    assert!(is_granted(&admit(counters, &third).await));
    settle(counters, &third, Some(51), vec![]).await;
    assert!(!is_granted(&admit(counters, &estimated(tenant, 1)).await), "it used more");
}

pub(crate) async fn stands_by_an_estimate_of_which_nothing_is_known(counters: &dyn Counters) {
    let tenant = TenantId::generate();
    let first = estimated(tenant, 90);
    assert!(is_granted(&admit(counters, &first).await));
    settle(counters, &first, None, vec![]).await;
    assert!(!is_granted(&admit(counters, &estimated(tenant, 20)).await));
}

pub(crate) async fn takes_a_repeated_ask_once(counters: &dyn Counters) {
    let tenant = TenantId::generate();
    let first = estimated(tenant, 60);
    for _ in 0..3 {
        assert!(is_granted(&admit(counters, &first).await), "its answer was lost");
    }
    assert!(is_granted(&admit(counters, &estimated(tenant, 40)).await));
}

pub(crate) async fn is_exact_whoever_races(counters: &dyn Counters) {
    let tenant = TenantId::generate();
    let asks: Vec<_> = (0..200).map(|_| ask(tenant, vec![window("requests", 50, LONG_MS)], vec![])).collect();
    let verdicts = join_all(asks.iter().map(|ask| admit(counters, ask))).await;
    assert_eq!(verdicts.iter().filter(|verdict| is_granted(verdict)).count(), 50);
}

pub(crate) async fn takes_nothing_when_a_bound_has_no_room(counters: &dyn Counters) {
    let tenant = TenantId::generate();
    let poor = known(bound("tenant::2026-11", 5, None), 1, 0, 0);
    let refused = admit(counters, &ask(tenant, vec![window("requests", 1, LONG_MS)], vec![poor])).await;
    assert!(matches!(refused, Verdict::Spent { bound: 0, .. }), "{refused:?}");
    assert!(is_granted(&admit(counters, &ask(tenant, vec![window("requests", 1, LONG_MS)], vec![])).await));
}
