//! What every copy of the ledger promises, with its reservations.

use std::time::Duration;

use croft_front::counters::{Amount, Ask, Counters, LARGEST, Standing, Verdict};
use croft_proto::id::TenantId;
use tokio::time::{sleep, timeout};

use crate::{PATIENCE, admit, ask, bound, in_time, insisting, is_granted, known, settle};

fn standing(spent: (i64, i64), reserved: (i64, i64)) -> Standing {
    let amount = |(nano_usd, tokens)| Amount { nano_usd, tokens };
    Standing { spent: amount(spent), reserved: amount(reserved) }
}

pub(crate) async fn asks_for_the_ledger_first(counters: &dyn Counters) {
    let tenant = TenantId::generate();
    let bounds = vec![bound("a", 100, None), known(bound("b", 100, None), 1, 40, 7), bound("c", 100, None)];
    let unread = ask(tenant, vec![], bounds.clone());
    assert_eq!(admit(counters, &unread).await, Verdict::Unknown(vec![0, 2]));
    let bounds = bounds.into_iter().map(|bound| known(bound, 1, 40, 7)).collect();
    let granted = admit(counters, &Ask { bounds, ..unread.clone() }).await;
    let each = standing((40, 7), (10, 100));
    assert_eq!(granted, Verdict::Granted(vec![each, each, each]));
    let again = admit(counters, &ask(tenant, vec![], unread.bounds)).await;
    assert_eq!(again, Verdict::Granted(vec![standing((40, 7), (20, 200)); 3]), "now they are known");
}

pub(crate) async fn reserves_until_there_is_no_room(counters: &dyn Counters) {
    let tenant = TenantId::generate();
    let next = || ask(tenant, vec![], vec![known(bound("tenant", 35, None), 1, 5, 0)]);
    for _ in 0..3 {
        assert!(is_granted(&admit(counters, &next()).await));
    }
    let refused = admit(counters, &next()).await;
    assert_eq!(refused, Verdict::Spent { bound: 0, standing: standing((5, 0), (30, 300)) });
}

pub(crate) async fn gives_a_settled_reservation_back(counters: &dyn Counters) {
    let tenant = TenantId::generate();
    let first = ask(tenant, vec![], vec![known(bound("tenant", 10, None), 1, 0, 0)]);
    assert!(is_granted(&admit(counters, &first).await));
    let second = ask(tenant, vec![], vec![bound("tenant", 10, None)]);
    assert!(!is_granted(&admit(counters, &second).await));
    let told = settle(counters, &first, Some(20), vec![known(bound("tenant", 10, None), 2, 4, 20)]).await;
    assert_eq!(told, [standing((4, 20), (0, 0))]);
    assert!(matches!(admit(counters, &second).await, Verdict::Spent { .. }), "six are left");
    let cheap = Ask { nano_usd: 6, ..second };
    assert!(is_granted(&admit(counters, &cheap).await));
}

pub(crate) async fn believes_the_newer_word_of_the_ledger(counters: &dyn Counters) {
    let tenant = TenantId::generate();
    let first = ask(tenant, vec![], vec![known(bound("tenant", None, None), 9, 900, 90)]);
    assert!(is_granted(&admit(counters, &first).await));
    let late = settle(counters, &first, None, vec![known(bound("tenant", None, None), 8, 800, 80)]).await;
    assert_eq!(late, [standing((900, 90), (0, 0))], "it was read earlier, and told later");
    let newer = settle(counters, &first, None, vec![known(bound("tenant", None, None), 10, 700, 70)]).await;
    assert_eq!(newer, [standing((700, 70), (0, 0))], "what was repriced may be less");
}

/// A ledger that went on at a standby which had not everything. No call of the tenant was granted any more.
pub(crate) async fn goes_back_to_an_older_word_that_is_insisted_on(counters: &dyn Counters) {
    let tenant = TenantId::generate();
    let of_all = || bound("tenant", 60, None);
    let silent = ask(tenant, vec![], vec![known(of_all(), 5, 50, 500)]);
    assert!(is_granted(&admit(counters, &Ask { ttl: Duration::from_millis(1), ..silent }).await));
    let older = ask(tenant, vec![], vec![known(of_all(), 4, 40, 400)]);
    let in_doubt = async {
        while admit(counters, &older).await != Verdict::Unknown(vec![0]) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, in_doubt).await.expect("the reservation runs out");
    for _ in 0..3 {
        assert_eq!(admit(counters, &older).await, Verdict::Unknown(vec![0]), "it may have been read before");
    }
    let insistent = Ask { bounds: older.bounds.iter().cloned().map(insisting).collect(), ..older.clone() };
    assert_eq!(admit(counters, &insistent).await, Verdict::Granted(vec![standing((40, 400), (10, 100))]));

    let told = settle(counters, &insistent, None, vec![known(of_all(), 5, 46, 460)]).await;
    assert_eq!(told, [standing((46, 460), (0, 0))], "it grows from there");
    let late = Ask { id: "late".into(), ..insistent };
    let told = admit(counters, &late).await;
    assert_eq!(told, Verdict::Granted(vec![standing((46, 460), (10, 100))]), "nobody doubts it: the newer word stands");
}

pub(crate) async fn forsakes_who_is_silent_and_asks_the_ledger_again(counters: &dyn Counters) {
    let next = in_time(async || {
        let tenant = TenantId::generate();
        let silent = ask(tenant, vec![], vec![known(bound("tenant", 10, None), 1, 0, 0)]);
        let silent = counters.admit(&Ask { ttl: Duration::from_millis(60), ..silent }).await.unwrap();
        assert!(is_granted(&silent.verdict));
        let next = ask(tenant, vec![], vec![bound("tenant", 10, None)]);
        let refused = counters.admit(&next).await.unwrap();
        if refused.at_ms >= silent.at_ms + 60 {
            return None;
        }
        assert!(matches!(refused.verdict, Verdict::Spent { .. }));
        Some(next)
    })
    .await;
    sleep(Duration::from_millis(80)).await;
    // Its holder may have written what it used before it fell silent.
    assert_eq!(admit(counters, &next).await, Verdict::Unknown(vec![0]));
    let read = Ask { bounds: vec![known(bound("tenant", 10, None), 2, 10, 80)], ..next.clone() };
    assert!(matches!(admit(counters, &read).await, Verdict::Spent { .. }), "it had");
    let read = Ask { bounds: vec![known(bound("tenant", 20, None), 2, 10, 80)], ..next };
    assert_eq!(admit(counters, &read).await, Verdict::Granted(vec![standing((10, 80), (10, 100))]));
}

pub(crate) async fn holds_what_is_spoken_for(counters: &dyn Counters) {
    in_time(async || {
        let tenant = TenantId::generate();
        let ttl = Duration::from_millis(250);
        let held = Ask { ttl, ..ask(tenant, vec![], vec![known(bound("tenant", 10, None), 1, 0, 0)]) };
        let mut last = counters.admit(&held).await.unwrap();
        assert!(is_granted(&last.verdict));
        for _ in 0..4 {
            sleep(Duration::from_millis(80)).await;
            let word = counters.hold(&held).await.unwrap();
            if word.at_ms >= last.at_ms + 250 {
                return None;
            }
            assert!(is_granted(&word.verdict));
            last = word;
        }
        let next = counters.admit(&ask(tenant, vec![], vec![bound("tenant", 10, None)])).await.unwrap();
        if next.at_ms >= last.at_ms + 250 {
            return None;
        }
        assert!(matches!(next.verdict, Verdict::Spent { .. }));
        Some(())
    })
    .await;
}

pub(crate) async fn takes_a_lost_reservation_again(counters: &dyn Counters) {
    let tenant = TenantId::generate();
    let held = ask(tenant, vec![], vec![known(bound("tenant", 10, None), 1, 0, 0)]);
    // As after a flush: nobody knows of it.
    assert_eq!(counters.hold(&held).await.unwrap().verdict, Verdict::Granted(vec![standing((0, 0), (10, 100))]));
    assert_eq!(counters.hold(&held).await.unwrap().verdict, Verdict::Granted(vec![standing((0, 0), (10, 100))]));
    let unread = ask(tenant, vec![], vec![bound("other", 10, None)]);
    assert_eq!(counters.hold(&unread).await.unwrap().verdict, Verdict::Unknown(vec![0]));
}

/// As when a day has begun since, or a budget was set.
pub(crate) async fn extends_a_reservation_to_what_holds_since(counters: &dyn Counters) {
    let tenant = TenantId::generate();
    let running = ask(tenant, vec![], vec![known(bound("yesterday", 10, None), 1, 0, 0)]);
    assert!(is_granted(&admit(counters, &running).await));
    let held = Ask { bounds: vec![known(bound("today", 15, None), 1, 0, 0)], ..running.clone() };
    for _ in 0..2 {
        let told = counters.hold(&held).await.unwrap().verdict;
        assert_eq!(told, Verdict::Granted(vec![standing((0, 0), (10, 100))]), "and no more however often it is said");
    }
    let next = ask(tenant, vec![], vec![bound("today", 15, None)]);
    assert!(matches!(admit(counters, &next).await, Verdict::Spent { .. }));
    let told = settle(counters, &running, Some(7), vec![known(bound("today", 15, None), 2, 4, 7)]).await;
    assert_eq!(told, [standing((4, 7), (0, 0))], "it is given back there, too");
    assert!(is_granted(&admit(counters, &next).await));
    let late = ask(tenant, vec![], vec![known(bound("yesterday", 10, None), 2, 0, 0)]);
    assert_eq!(admit(counters, &late).await, Verdict::Granted(vec![standing((0, 0), (10, 100))]));
}

pub(crate) async fn asks_the_ledger_again_of_what_a_settlement_did_not_tell(counters: &dyn Counters) {
    let tenant = TenantId::generate();
    let both = |version, spent| ["a", "b"].map(|key| known(bound(key, 100, None), version, spent, 0)).to_vec();
    let running = ask(tenant, vec![], both(1, 0));
    assert!(is_granted(&admit(counters, &running).await));
    let told =
        settle(counters, &running, None, vec![known(bound("a", 100, None), 2, 9, 0), bound("b", 100, None)]).await;
    assert_eq!(told, [standing((9, 0), (0, 0)), standing((0, 0), (0, 0))]);
    let next = ask(tenant, vec![], vec![bound("a", 100, None), bound("b", 100, None)]);
    assert_eq!(admit(counters, &next).await, Verdict::Unknown(vec![1]), "what the call cost is not in it");
    assert!(is_granted(&admit(counters, &Ask { bounds: both(2, 9), ..next }).await));
}

pub(crate) async fn settles_twice_as_once(counters: &dyn Counters) {
    let tenant = TenantId::generate();
    let bounds = vec![known(bound("tenant", 100, None), 1, 0, 0)];
    let (first, second) = (ask(tenant, vec![], bounds.clone()), ask(tenant, vec![], bounds));
    assert!(is_granted(&admit(counters, &first).await));
    assert!(is_granted(&admit(counters, &second).await));
    for _ in 0..3 {
        let told = settle(counters, &first, Some(1), vec![known(bound("tenant", 100, None), 2, 3, 1)]).await;
        assert_eq!(told, [standing((3, 1), (10, 100))], "the other's is untouched");
    }
}

pub(crate) async fn stays_below_a_limit_that_was_lowered(counters: &dyn Counters) {
    let tenant = TenantId::generate();
    let bounds = vec![known(bound("tenant", 100, None), 1, 0, 0)];
    let running: Vec<_> = (0..5).map(|_| ask(tenant, vec![], bounds.clone())).collect();
    for ask in &running {
        assert!(is_granted(&admit(counters, ask).await));
    }
    // Below what is reserved: nothing new, and what runs is settled as ever.
    let next = ask(tenant, vec![], vec![bound("tenant", 20, None)]);
    assert_eq!(admit(counters, &next).await, Verdict::Spent { bound: 0, standing: standing((0, 0), (50, 500)) });
    for (ask, spent) in running.iter().zip(1..) {
        settle(counters, ask, Some(1), vec![known(bound("tenant", 20, None), 1 + spent, spent, spent)]).await;
    }
    assert_eq!(admit(counters, &next).await, Verdict::Granted(vec![standing((5, 5), (10, 100))]));
}

pub(crate) async fn goes_on_when_the_limit_is_raised(counters: &dyn Counters) {
    let tenant = TenantId::generate();
    let with = |limit| ask(tenant, vec![], vec![known(bound("tenant", limit, None), 1, 95, 0)]);
    assert!(!is_granted(&admit(counters, &with(100)).await));
    assert!(is_granted(&admit(counters, &with(105)).await));
    assert!(!is_granted(&admit(counters, &with(105)).await));
}

pub(crate) async fn counts_money_and_tokens_apart(counters: &dyn Counters) {
    let tenant = TenantId::generate();
    let both = |nano_usd, tokens| ask(tenant, vec![], vec![known(bound("tenant", nano_usd, tokens), 1, 0, 0)]);
    assert!(matches!(admit(counters, &both(1_000, 99)).await, Verdict::Spent { .. }));
    assert!(matches!(admit(counters, &both(9, 1_000)).await, Verdict::Spent { .. }));
    assert!(is_granted(&admit(counters, &both(10, 100)).await));
}

pub(crate) async fn reserves_all_or_nothing(counters: &dyn Counters) {
    let tenant = TenantId::generate();
    let rich = || known(bound("tenant", 1_000, None), 1, 0, 0);
    let poor = || known(bound("session", 5, None), 1, 0, 0);
    assert!(matches!(
        admit(counters, &ask(tenant, vec![], vec![rich(), poor()])).await,
        Verdict::Spent { bound: 1, .. }
    ));
    let alone = admit(counters, &ask(tenant, vec![], vec![rich()])).await;
    assert_eq!(alone, Verdict::Granted(vec![standing((0, 0), (10, 100))]), "nothing was left reserved");
}

pub(crate) async fn keeps_tenants_budgets_apart(counters: &dyn Counters) {
    for tenant in [TenantId::generate(), TenantId::generate()] {
        let next = || ask(tenant, vec![], vec![known(bound("tenant", 10, None), 1, 0, 0)]);
        assert!(is_granted(&admit(counters, &next()).await));
        assert!(!is_granted(&admit(counters, &next()).await));
    }
}

/// A model that costs nothing. The negative of nothing was once written as `-0`, and refused.
pub(crate) async fn gives_a_reservation_of_nothing_back(counters: &dyn Counters) {
    let tenant = TenantId::generate();
    let free = Ask { nano_usd: 0, ..ask(tenant, vec![], vec![known(bound("tenant", 10, None), 1, 0, 0)]) };
    assert!(is_granted(&admit(counters, &free).await));
    assert_eq!(settle(counters, &free, Some(0), free.bounds.clone()).await, [standing((0, 0), (0, 0))]);
}

pub(crate) async fn counts_beyond_what_floats_hold(counters: &dyn Counters) {
    let tenant = TenantId::generate();
    let nearly = LARGEST - 25;
    let next = |nano_usd| Ask {
        nano_usd,
        ..ask(tenant, vec![], vec![known(bound("tenant", LARGEST, None), nearly, nearly, nearly)])
    };
    assert!(is_granted(&admit(counters, &next(13)).await));
    assert!(!is_granted(&admit(counters, &next(13)).await));
    assert!(is_granted(&admit(counters, &next(12)).await));
    assert!(!is_granted(&admit(counters, &next(1)).await));
}
