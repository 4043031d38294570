//! What every `EventLog` promises.

use std::time::Duration;

use croft_front::Error;
use croft_front::events::log::{Append, Appended, Authority, NewEvent, PAGE_BYTES, StoredCheckpoint, is_last_page};
use croft_front::store::Stores;
use croft_proto::Timestamp;
use croft_proto::id::{SessionId, TenantId, TurnId};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    SessionCheckpoint, SessionIdle, SessionRunning, SessionState, StepStarted, StopReason, TextDelta,
};
use futures::future::join_all;

use super::fixtures::{
    append, appended, at, attempt, get, in_turn, key, ready, said, seqs, session, tenant, terminated, two_tenants,
};

const LONG: Duration = Duration::from_mins(1);

async fn lease(stores: &Stores, tenant: TenantId, session: SessionId) -> u64 {
    stores.leases.acquire(tenant, session, "front-0", LONG).await.unwrap().expect("nobody holds the lease")
}

pub(crate) async fn keeps_tenants_apart(stores: &Stores) {
    let [ours, theirs] = two_tenants(stores).await;
    let session = session(stores, ours).await;
    let mut message = append(ours, session, vec![said("hello")]);
    message.idempotency_key = Some(key("k", 1));
    message.checkpoint = Some(SessionCheckpoint::default());
    appended(stores, message).await;

    assert_eq!(stores.events.read(theirs, session, 0, 10).await.unwrap(), []);
    assert_eq!(stores.events.checkpoint(theirs, session).await.unwrap(), None);
    assert_eq!(stores.events.waiting(ours, session, 10).await.unwrap(), 1);
    assert_eq!(stores.events.waiting(theirs, session, 10).await.unwrap(), 0);
    assert_eq!(stores.events.find_sent(theirs, session, &key("k", 1)).await.unwrap(), None);
    for authority in [Authority::Caller, Authority::Fence, Authority::Lease { epoch: 1 }] {
        let mut theirs = append(theirs, session, vec![terminated("mine now")]);
        theirs.authority = authority;
        let refused = stores.events.append(theirs).await;
        assert!(matches!(refused, Err(Error::SessionNotFound { .. })), "{refused:?}");
    }
    let unchanged = get(stores, ours, session).await;
    assert_eq!((unchanged.state, unchanged.last_seq), (SessionState::Ready, 3));
}

pub(crate) async fn numbers_without_holes_under_fifty_writers(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    let writers = (0..50).map(async |writer: u64| {
        let kinds = (0..=writer % 3).map(|place| said(&format!("{writer}/{place}"))).collect();
        seqs(&appended(stores, append(tenant, session, kinds)).await)
    });
    let batches = join_all(writers).await;
    assert!(batches.iter().all(|batch| batch.windows(2).all(|pair| pair[1] == pair[0] + 1)), "a batch stays together");
    let mut numbers: Vec<_> = batches.into_iter().flatten().collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (3..=101).collect::<Vec<_>>());

    let found = stores.events.read(tenant, session, 0, 1_000).await.unwrap();
    assert_eq!(seqs(&found), (1..=101).collect::<Vec<_>>());
    assert_eq!(get(stores, tenant, session).await.last_seq, 101);
}

pub(crate) async fn projects_state(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    let turn = TurnId::generate();
    let put = async |events: Vec<NewEvent>| {
        let mut append = append(tenant, session, Vec::new());
        append.events = events;
        appended(stores, append).await;
        get(stores, tenant, session).await
    };

    let running = put(vec![in_turn(turn, said("hi")), in_turn(turn, Kind::SessionRunning(SessionRunning {}))]).await;
    assert_eq!((running.state, &running.turn_id), (SessionState::Running, &turn.to_string()));
    assert_eq!((running.newest_input_seq, running.input_seq), (3, 0));

    let started = StepStarted { worker: "worker-9".into(), namespace: "tenant-ours".into(), epoch: 1 };
    let moved = put(vec![in_turn(turn, Kind::StepStarted(started))]).await;
    assert_eq!((moved.state, &*moved.worker), (SessionState::Running, "worker-9"));

    let idle = SessionIdle { stop_reason: StopReason::MaxTokens.into() };
    let rested = put(vec![NewEvent { create_time: at(9), ..in_turn(turn, Kind::SessionIdle(idle)) }]).await;
    assert_eq!((rested.state, rested.last_stop_reason), (SessionState::Idle, StopReason::MaxTokens));
    assert_eq!((rested.update_time, rested.create_time), (at(9), at(1)));

    let again = put(vec![in_turn(turn, ready("worker-2"))]).await;
    assert_eq!((again.state, &*again.worker), (SessionState::Ready, "worker-2"));
    assert_eq!(again.last_stop_reason, StopReason::MaxTokens);

    let ended = put(vec![in_turn(turn, terminated("enough"))]).await;
    assert_eq!((ended.state, &*ended.terminate_reason), (SessionState::Terminated, "enough"));
    assert_eq!((ended.turn_id, ended.last_seq), (turn.to_string(), 8));
}

pub(crate) async fn takes_a_word_to_a_turn_while_it_runs(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    let (turn, another) = (TurnId::generate(), TurnId::generate());
    let of_turn = |kind| {
        let mut of_turn = append(tenant, session, vec![kind]);
        of_turn.events[0].turn = Some(turn);
        of_turn
    };
    let word = |turn| Append { authority: Authority::During { turn }, ..append(tenant, session, vec![said("yes")]) };
    let is_refused = async |turn| matches!(stores.events.append(word(turn)).await, Err(Error::SessionBusy { .. }));
    assert!(is_refused(turn).await, "it has not begun");
    appended(stores, of_turn(Kind::SessionRunning(SessionRunning {}))).await;
    appended(stores, word(turn)).await;
    let keyed = Append { idempotency_key: Some(key("once", 1)), ..word(turn) };
    appended(stores, keyed.clone()).await;
    assert!(is_refused(another).await);
    appended(stores, of_turn(Kind::SessionIdle(SessionIdle::default()))).await;
    assert!(is_refused(turn).await, "it is over");
    let again = stores.events.append(keyed).await.unwrap();
    assert!(matches!(again, Appended::Existing { .. }), "what was said in time stays so: {again:?}");
    let nobodys = Append { session: SessionId::generate(), ..word(turn) };
    assert!(matches!(stores.events.append(nobodys).await, Err(Error::SessionNotFound { .. })));
    assert_eq!(get(stores, tenant, session).await.last_seq, 6);
}

pub(crate) async fn refuses_a_stale_epoch(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    let put = async |epoch| {
        let mut append = append(tenant, session, vec![said("from the turn")]);
        append.authority = Authority::Lease { epoch };
        stores.events.append(append).await
    };
    assert!(matches!(put(1).await, Err(Error::LeaseLost { epoch: 1 })), "nobody ever held it");
    let first = stores.leases.acquire(tenant, session, "front-0", Duration::from_millis(1)).await.unwrap().unwrap();
    // Past its time, but not taken over: nobody else writes yet.
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert!(matches!(put(first).await, Ok(Appended::New(_))));
    let second = lease(stores, tenant, session).await;
    assert!(matches!(put(first).await, Err(Error::LeaseLost { epoch }) if epoch == first));
    assert!(matches!(put(second + 1).await, Err(Error::LeaseLost { .. })));
    assert!(matches!(put(second).await, Ok(Appended::New(_))));
    assert_eq!(get(stores, tenant, session).await.last_seq, 4);
}

pub(crate) async fn refuses_a_released_lease(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    let epoch = lease(stores, tenant, session).await;
    stores.leases.release(tenant, session, epoch).await.unwrap();
    let mut late = append(tenant, session, vec![said("late")]);
    late.authority = Authority::Lease { epoch };
    assert!(matches!(stores.events.append(late).await, Err(Error::LeaseLost { .. })));
}

pub(crate) async fn fences_the_turn(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    let epoch = lease(stores, tenant, session).await;
    // A caller beside the turn leaves its lease alone.
    appended(stores, append(tenant, session, vec![said("by the way")])).await;
    stores.leases.renew(tenant, session, epoch, LONG).await.unwrap();

    let mut fence = append(tenant, session, vec![said("stop")]);
    fence.authority = Authority::Fence;
    appended(stores, fence).await;
    let mut late = append(tenant, session, vec![said("late")]);
    late.authority = Authority::Lease { epoch };
    assert!(matches!(stores.events.append(late).await, Err(Error::LeaseLost { .. })));
    assert!(matches!(stores.leases.renew(tenant, session, epoch, LONG).await, Err(Error::LeaseLost { .. })));
    // The next turn begins with a message.
    appended(stores, append(tenant, session, vec![said("go on")])).await;
    assert!(lease(stores, tenant, session).await > epoch);
}

pub(crate) async fn ends_the_lease_with_the_session(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    let epoch = stores.leases.acquire(tenant, session, "front-0", Duration::from_millis(1)).await.unwrap().unwrap();
    let mut last = append(tenant, session, vec![terminated("done")]);
    last.authority = Authority::Lease { epoch };
    appended(stores, last).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    // Nothing is left to take over.
    assert_eq!(stores.leases.abandoned(10).await.unwrap(), []);
}

pub(crate) async fn takes_nothing_after_the_end(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    let epoch = lease(stores, tenant, session).await;
    let mut end = append(tenant, session, vec![terminated("done")]);
    end.authority = Authority::Fence;
    appended(stores, end.clone()).await;
    for authority in [Authority::Caller, Authority::Fence, Authority::Lease { epoch }] {
        end.authority = authority;
        let refused = stores.events.append(end.clone()).await;
        assert!(matches!(refused, Err(Error::SessionTerminated { .. })), "{refused:?}");
    }
    assert_eq!(get(stores, tenant, session).await.last_seq, 3);

    // Nor in the same append.
    let other = self::session(stores, tenant).await;
    let refused = stores.events.append(append(tenant, other, vec![terminated("done"), said("one more thing")])).await;
    assert!(matches!(refused, Err(Error::Internal { .. })), "{refused:?}");
    assert_eq!(get(stores, tenant, other).await.last_seq, 2);
}

pub(crate) async fn takes_nothing_for_unknown_sessions(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = SessionId::generate();
    let refused = stores.events.append(append(tenant, session, vec![said("anyone?")])).await;
    assert!(matches!(refused, Err(Error::SessionNotFound { session_id }) if session_id == session.to_string()));
    assert_eq!(stores.events.read(tenant, session, 0, 10).await.unwrap(), []);
    assert_eq!(stores.events.checkpoint(tenant, session).await.unwrap(), None);
}

pub(crate) async fn stores_all_or_nothing(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    let mut stale = append(tenant, session, vec![said("one"), attempt("a", Some(1)), terminated("two")]);
    stale.authority = Authority::Lease { epoch: 9 };
    stale.checkpoint = Some(SessionCheckpoint::default());
    stale.idempotency_key = Some(key("k", 1));
    stale.input_seq = Some(3);
    assert!(stores.events.append(stale).await.is_err());

    let unchanged = get(stores, tenant, session).await;
    assert_eq!((unchanged.last_seq, unchanged.input_seq, unchanged.usage.attempts), (2, 0, 0));
    assert_eq!(stores.events.checkpoint(tenant, session).await.unwrap(), None);
    assert_eq!(stores.events.find_sent(tenant, session, &key("k", 2)).await.unwrap(), None);
    assert_eq!(stores.usage.list(tenant, None, None, None, 10).await.unwrap(), []);
    assert_eq!(seqs(&stores.events.read(tenant, session, 0, 10).await.unwrap()), [1, 2]);
}

pub(crate) async fn takes_no_previews(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    let preview = Kind::TextDelta(TextDelta { text: "hel".into() });
    assert!(stores.events.append(append(tenant, session, vec![said("hi"), preview])).await.is_err());
    assert!(stores.events.append(append(tenant, session, Vec::new())).await.is_err());
    assert_eq!(get(stores, tenant, session).await.last_seq, 2);
}

pub(crate) async fn answers_a_repeated_key_with_the_same_number(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    let keyed = |body| {
        let mut message = append(tenant, session, vec![said("pay"), said("now")]);
        message.idempotency_key = Some(key("invoice-9", body));
        message
    };
    assert_eq!(stores.events.find_sent(tenant, session, &key("invoice-9", 1)).await.unwrap(), None);
    assert_eq!(seqs(&appended(stores, keyed(1)).await), [3, 4]);
    assert_eq!(stores.events.append(keyed(1)).await.unwrap(), Appended::Existing { first_seq: 3 });
    assert_eq!(stores.events.find_sent(tenant, session, &key("invoice-9", 1)).await.unwrap(), Some(3));
    assert!(matches!(stores.events.append(keyed(2)).await, Err(Error::IdempotencyKeyReused)));
    let other_body = stores.events.find_sent(tenant, session, &key("invoice-9", 2)).await;
    assert!(matches!(other_body, Err(Error::IdempotencyKeyReused)));
    assert_eq!(get(stores, tenant, session).await.last_seq, 4);

    // Even once the session has ended, and for a front that has lost its lease.
    appended(stores, append(tenant, session, vec![terminated("done")])).await;
    let mut late = keyed(1);
    late.authority = Authority::Lease { epoch: 7 };
    assert_eq!(stores.events.append(late).await.unwrap(), Appended::Existing { first_seq: 3 });
}

pub(crate) async fn keeps_keys_apart_by_session(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    for session in [session(stores, tenant).await, session(stores, tenant).await] {
        let mut message = append(tenant, session, vec![said("hello")]);
        message.idempotency_key = Some(key("same", 1));
        assert_eq!(seqs(&appended(stores, message).await), [3]);
    }
    assert_eq!(stores.sessions.find_created(tenant, &key("same", 2)).await.unwrap(), None);
}

pub(crate) async fn appends_once_for_concurrent_requests_with_one_key(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    let races = (0..8).map(|_| {
        let mut message = append(tenant, session, vec![said("once")]);
        message.idempotency_key = Some(key("once", 1));
        stores.events.append(message)
    });
    let outcomes: Vec<_> = join_all(races).await.into_iter().map(Result::unwrap).collect();
    let found = outcomes.iter().filter(|outcome| **outcome == Appended::Existing { first_seq: 3 }).count();
    assert_eq!(found, 7, "{outcomes:?}");
    assert_eq!(get(stores, tenant, session).await.last_seq, 3);
}

pub(crate) async fn reads_in_pages(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    let turn = TurnId::generate();
    let mut message = append(tenant, session, vec![said("a"), said("b")]);
    // Nanoseconds too: an event reads as it was published.
    let create_time = Timestamp { seconds: 1_790_000_000, nanos: 987_654_321 };
    message.events.push(NewEvent { create_time, ..in_turn(turn, said("c")) });
    let found = appended(stores, message).await;
    assert_eq!((&*found[2].turn_id, found[2].elapsed_ms), (&*turn.to_string(), 42));

    let read = async |after, limit| stores.events.read(tenant, session, after, limit).await.unwrap();
    assert_eq!(read(2, 10).await, found);
    assert_eq!(read(2, 2).await, found[..2]);
    assert_eq!(read(4, 2).await, found[2..]);
    assert_eq!(read(5, 2).await, []);
    assert_eq!(read(u64::MAX, 2).await, []);
}

/// Events may be megabytes, and hundreds of them more than a replica has.
pub(crate) async fn reads_no_more_than_fits_a_page(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    let (large, huge) = ("x".repeat(PAGE_BYTES as usize * 2 / 5), "x".repeat(PAGE_BYTES as usize * 3 / 2));
    for text in [&large, &large, &large, &huge, "small", &large] {
        appended(stores, append(tenant, session, vec![said(text)])).await;
    }
    let (mut after, mut pages) = (2, Vec::new());
    loop {
        let page = stores.events.read(tenant, session, after, 100).await.unwrap();
        let is_last = is_last_page(&page, 100);
        after = page.last().map_or(after, |event| event.seq);
        pages.push(page.iter().map(|event| event.seq).collect::<Vec<_>>());
        if is_last {
            break;
        }
    }
    // One that begins below the bound is in it.
    assert_eq!(pages, [vec![3, 4, 5], vec![6], vec![7, 8]]);
}

pub(crate) async fn replaces_the_checkpoint(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    assert_eq!(stores.events.checkpoint(tenant, session).await.unwrap(), None);
    for (superstep, seq) in [(1, 3), (2, 5)] {
        let checkpoint = SessionCheckpoint { superstep, checkpoint_id: "c".into(), ..SessionCheckpoint::default() };
        let kinds = (1..=superstep).map(|step| said(&step.to_string())).collect();
        let mut step = append(tenant, session, kinds);
        step.checkpoint = Some(checkpoint.clone());
        appended(stores, step).await;
        let found = stores.events.checkpoint(tenant, session).await.unwrap();
        assert_eq!(found, Some(StoredCheckpoint { checkpoint, seq }));
    }
    appended(stores, append(tenant, session, vec![said("after")])).await;
    assert_eq!(stores.events.checkpoint(tenant, session).await.unwrap().unwrap().seq, 5);
}

pub(crate) async fn remembers_what_input_was_taken_up(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    appended(stores, append(tenant, session, vec![said("one"), said("two")])).await;
    let take = async |seq| {
        let mut taken = append(tenant, session, vec![Kind::SessionRunning(SessionRunning {})]);
        taken.input_seq = Some(seq);
        appended(stores, taken).await;
        let session = get(stores, tenant, session).await;
        (session.input_seq, session.newest_input_seq)
    };
    let waiting = async |max| stores.events.waiting(tenant, session, max).await.unwrap();
    assert_eq!((waiting(10).await, waiting(1).await, waiting(0).await), (2, 1, 0));
    assert_eq!(take(3).await, (3, 4));
    assert_eq!(waiting(10).await, 1);
    assert_eq!(take(4).await, (4, 4));
    assert_eq!(take(2).await, (4, 4), "what was taken up stays so");
    assert_eq!(waiting(10).await, 0, "what is no message does not wait");
}
