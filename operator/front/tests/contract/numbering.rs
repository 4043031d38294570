//! Numbers as a property: whoever appends at a time, and whichever of them give up, are refused, or say the same again.

use std::collections::BTreeMap;

use croft_front::Error;
use croft_front::events::log::{Append, Appended, Authority};
use croft_front::store::Stores;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::SessionEvent;
use croft_proto::v1::session_event::Kind;
use futures::future::join_all;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use super::fixtures::{append, get, key, said, session, tenant};

/// Rounds of writers on one store; each round is of a session of its own.
const ROUNDS: usize = 24;

/// What one writer does, one after the other, beside the others.
#[derive(Debug, Clone)]
struct Write {
    events: usize,
    by: By,
    /// Gives up after being looked at so many times: a caller that goes away, a connection that is cut.
    gives_up_after: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Caller,
    Holder,
    Stale,
    /// With one of few keys.
    Keyed(u8),
}

fn writers() -> impl Strategy<Value = Vec<Vec<Write>>> {
    let by = prop_oneof![3 => Just(By::Caller), 3 => Just(By::Holder), 1 => Just(By::Stale), 3 => (0..3_u8).prop_map(By::Keyed)];
    let gives_up_after = prop::option::weighted(0.3, 0..6_usize);
    let write =
        (1..4_usize, by, gives_up_after).prop_map(|(events, by, gives_up_after)| Write { events, by, gives_up_after });
    prop::collection::vec(prop::collection::vec(write, 1..5), 1..8)
}

/// What became of a write.
struct Outcome {
    text: String,
    write: Write,
    /// `None` when its writer gave up.
    answer: Option<Result<Appended, Error>>,
}

pub(crate) async fn holds_whatever_is_given_up_refused_or_repeated(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let mut runner = TestRunner::deterministic();
    for _ in 0..ROUNDS {
        let writers = writers().new_tree(&mut runner).unwrap().current();
        round(stores, tenant, &writers).await;
    }
}

async fn round(stores: &Stores, tenant: TenantId, writers: &[Vec<Write>]) {
    let session = session(stores, tenant).await;
    let held = stores.leases.acquire(tenant, session, "front-0", std::time::Duration::from_mins(1)).await;
    let epoch = held.unwrap().unwrap();
    let outcomes = join_all(writers.iter().enumerate().map(async |(writer, writes)| {
        let mut outcomes = Vec::new();
        for (place, write) in writes.iter().enumerate() {
            outcomes.push(carry_out(stores, (tenant, session), epoch, format!("{writer}/{place}"), write).await);
        }
        outcomes
    }));
    let outcomes: Vec<Outcome> = outcomes.await.into_iter().flatten().collect();

    // What was given up may still be under way: the log, which is read later, may be ahead of the count, and never behind.
    let last = get(stores, tenant, session).await.last_seq;
    let found = stores.events.read(tenant, session, 0, 10_000).await.unwrap();
    let numbers: Vec<u64> = found.iter().map(|event| event.seq).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "{writers:?}");
    assert!(numbers.len() as u64 >= last, "the session counts events that are not there");
    judge(&found, &outcomes);
}

async fn carry_out(
    stores: &Stores,
    (tenant, session): (TenantId, SessionId),
    epoch: u64,
    text: String,
    write: &Write,
) -> Outcome {
    // Those with one key say the same, or they would be two requests.
    let text = if let By::Keyed(number) = write.by { format!("key {number}") } else { text };
    let kinds = (0..write.events).map(|place| said(&format!("{text}#{place}"))).collect();
    let mut wanted: Append = append(tenant, session, kinds);
    match write.by {
        By::Caller => {}
        By::Holder => wanted.authority = Authority::Lease { epoch },
        By::Stale => wanted.authority = Authority::Lease { epoch: epoch + 1 },
        By::Keyed(number) => wanted.idempotency_key = Some(key(&format!("key-{number}"), 1)),
    }
    let mut appending = stores.events.append(wanted);
    let mut looks = 0;
    let answer = std::future::poll_fn(|context| {
        if write.gives_up_after == Some(looks) {
            return std::task::Poll::Ready(None);
        }
        looks += 1;
        appending.as_mut().poll(context).map(Some)
    });
    let answer = answer.await;
    Outcome { text, write: write.clone(), answer }
}

fn judge(found: &[SessionEvent], outcomes: &[Outcome]) {
    let mut by_text: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for event in found {
        if let Some(Kind::UserMessage(message)) = &event.kind {
            let said = format!("{:?}", message.content);
            by_text.entry(said).or_default().push(event.seq);
        }
    }
    let numbers_of = |text: &str, place: usize| {
        let Kind::UserMessage(message) = said(&format!("{text}#{place}")) else { unreachable!("it is a message") };
        by_text.get(&format!("{:?}", message.content)).cloned().unwrap_or_default()
    };
    for Outcome { text, write, answer } in outcomes {
        let stored: Vec<_> = (0..write.events).map(|place| numbers_of(text, place)).collect();
        match answer {
            Some(Ok(Appended::New(events))) => {
                let told: Vec<_> = events.iter().map(|event| vec![event.seq]).collect();
                assert_eq!(stored, told, "{text}: as it was told, and once");
                assert!(told.windows(2).all(|pair| pair[1][0] == pair[0][0] + 1), "{text}: together");
            }
            Some(Ok(Appended::Existing { first_seq })) => {
                assert!(matches!(write.by, By::Keyed(_)), "{text}");
                assert_eq!(stored[0], [*first_seq], "{text}: what came first stands");
            }
            Some(Err(error)) => {
                assert!(matches!(error, Error::LeaseLost { .. }) && write.by == By::Stale, "{text}: {error:?}");
                assert!(stored.iter().all(Vec::is_empty), "{text}: refused and stored");
            }
            None => {
                let counts: Vec<_> = stored.iter().map(Vec::len).collect();
                let all_or_nothing = counts.iter().all(|count| *count == counts[0]) && counts[0] <= 1;
                let keyed = matches!(write.by, By::Keyed(_));
                assert!(all_or_nothing || keyed, "{text}: a part of it is stored: {counts:?}");
            }
        }
    }
}
