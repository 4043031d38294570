//! What every `TurnStore` promises.

use std::time::Duration;

use croft_front::Error;
use croft_front::events::log::{Append, Authority, IdempotencyKey};
use croft_front::session::family::Parent;
use croft_front::store::Stores;
use croft_front::turn::store::{Begin, Begun, Ended, Opened};
use croft_proto::id::{SessionId, TenantId, TurnId};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{SessionCheckpoint, SessionIdle, SessionRunning, SessionState, StopReason};
use futures::future::join_all;

use super::fixtures::{
    append, appended, attempt, get, insert, key, new_child, said, seqs, session, tenant, terminated, two_tenants,
};

const LONG: Duration = Duration::from_mins(1);

fn begin(tenant: TenantId, session: SessionId) -> Begin {
    let message = append(tenant, session, vec![said("hello"), Kind::SessionRunning(SessionRunning {})]);
    Begin { message, holder: "front-0".into(), ttl: LONG }
}

async fn begun(stores: &Stores, begin: Begin) -> Opened {
    match stores.turns.begin(begin).await.unwrap() {
        Begun::New(opened) => *opened,
        other => panic!("{other:?}"),
    }
}

/// The last append of a turn that took up the message of this number.
fn last(tenant: TenantId, session: SessionId, epoch: u64, input_seq: u64) -> Append {
    let idle = Kind::SessionIdle(SessionIdle { stop_reason: StopReason::EndTurn.into() });
    let authority = Authority::Lease { epoch };
    Append { authority, input_seq: Some(input_seq), ..append(tenant, session, vec![idle]) }
}

pub(crate) async fn keeps_tenants_apart(stores: &Stores) {
    let [ours, theirs] = two_tenants(stores).await;
    let session = session(stores, ours).await;
    let stolen = stores.turns.begin(begin(theirs, session)).await;
    assert!(matches!(stolen, Err(Error::SessionNotFound { .. })), "{stolen:?}");
    let Opened { epoch, .. } = begun(stores, begin(ours, session)).await;
    let stolen = stores.turns.end(last(theirs, session, epoch, 3)).await;
    assert!(matches!(stolen, Err(Error::SessionNotFound { .. })), "{stolen:?}");
    stores.leases.renew(ours, session, epoch, LONG).await.unwrap();
}

pub(crate) async fn begins_behind_no_message_that_its_caller_has_not_seen(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    let behind = |input_seq, used: &str| {
        let begin = begin(tenant, session);
        let authority = Authority::Behind { input_seq };
        Begin { message: Append { authority, idempotency_key: Some(key(used, 1)), ..begin.message }, ..begin }
    };
    let Opened { epoch, .. } = begun(stores, begin(tenant, session)).await;
    stores.turns.end(last(tenant, session, epoch, 3)).await.unwrap();

    // Its caller looked before that message came, whose turn is over by now.
    assert_eq!(stores.turns.begin(behind(0, "late")).await.unwrap(), Begun::Busy);
    let opened = begun(stores, behind(3, "in time")).await;
    assert_eq!((opened.epoch, seqs(&opened.events)), (2, vec![6, 7]), "the one that came late has taken no lease");
    let told = append(tenant, session, vec![said("and this")]);
    let late = stores.events.append(Append { authority: Authority::Behind { input_seq: 3 }, ..told }).await;
    assert!(matches!(late, Err(Error::SessionBusy { .. })), "{late:?}");
}

pub(crate) async fn begins_with_lease_and_message_together(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    let before = get(stores, tenant, session).await;
    let opened = begun(stores, begin(tenant, session)).await;
    assert_eq!((opened.epoch, seqs(&opened.events), &opened.checkpoint), (1, vec![3, 4], &None));
    assert_eq!(opened.session, before);
    assert_eq!(stores.events.read(tenant, session, 2, 10).await.unwrap(), opened.events);
    let now = get(stores, tenant, session).await;
    assert_eq!((now.state, now.newest_input_seq, now.input_seq), (SessionState::Running, 3, 0));
    assert_eq!(stores.leases.acquire(tenant, session, "front-1", LONG).await.unwrap(), None);
    stores.leases.renew(tenant, session, 1, LONG).await.unwrap();
}

pub(crate) async fn brings_the_newest_checkpoint_along(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    let first = begun(stores, begin(tenant, session)).await;
    let checkpoint = SessionCheckpoint { superstep: 7, ..SessionCheckpoint::default() };
    let end = Append { checkpoint: Some(checkpoint), ..last(tenant, session, first.epoch, 3) };
    stores.turns.end(end).await.unwrap();
    let second = begun(stores, begin(tenant, session)).await;
    assert_eq!((second.epoch, seqs(&second.events)), (2, vec![6, 7]));
    assert_eq!(second.checkpoint, stores.events.checkpoint(tenant, session).await.unwrap());
    assert_eq!(second.checkpoint.map(|stored| (stored.checkpoint.superstep, stored.seq)), Some((7, 5)));
}

pub(crate) async fn stores_nothing_while_someone_holds_the_lease(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    stores.leases.acquire(tenant, session, "front-1", LONG).await.unwrap().unwrap();
    assert_eq!(stores.turns.begin(begin(tenant, session)).await.unwrap(), Begun::Busy);
    assert_eq!(get(stores, tenant, session).await.last_seq, 2);
    stores.leases.renew(tenant, session, 1, LONG).await.unwrap();
}

pub(crate) async fn has_one_winner_of_many(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    let outcomes = join_all((0..10).map(|_| stores.turns.begin(begin(tenant, session)))).await;
    let won = outcomes.into_iter().filter(|outcome| !matches!(outcome, Ok(Begun::Busy)));
    let won: Vec<_> = won.collect();
    assert!(matches!(&won[..], [Ok(Begun::New(opened))] if opened.epoch == 1), "{won:?}");
    assert_eq!(get(stores, tenant, session).await.last_seq, 4);
}

pub(crate) async fn refuses_sessions_that_cannot_run(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let unknown = stores.turns.begin(begin(tenant, SessionId::generate())).await;
    assert!(matches!(unknown, Err(Error::SessionNotFound { .. })), "{unknown:?}");
    let session = session(stores, tenant).await;
    appended(stores, append(tenant, session, vec![terminated("done")])).await;
    let ended = stores.turns.begin(begin(tenant, session)).await;
    assert!(matches!(ended, Err(Error::SessionTerminated { .. })), "{ended:?}");
}

pub(crate) async fn answers_a_repeated_key_without_taking_the_lease(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    let keyed = |body| {
        let begin = begin(tenant, session);
        Begin { message: Append { idempotency_key: Some(key("k", body)), ..begin.message }, ..begin }
    };
    let Opened { epoch, .. } = begun(stores, keyed(1)).await;
    assert_eq!(stores.turns.begin(keyed(1)).await.unwrap(), Begun::Existing { first_seq: 3 }, "while the turn runs");
    stores.turns.end(last(tenant, session, epoch, 3)).await.unwrap();
    assert_eq!(stores.turns.begin(keyed(1)).await.unwrap(), Begun::Existing { first_seq: 3 }, "and after it");
    let other = stores.turns.begin(keyed(2)).await;
    assert!(matches!(other, Err(Error::IdempotencyKeyReused)), "{other:?}");
    assert_eq!(begun(stores, begin(tenant, session)).await.epoch, 2);
}

pub(crate) async fn gives_the_lease_up_with_the_last_word(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    let Opened { epoch, .. } = begun(stores, begin(tenant, session)).await;
    let mut end = last(tenant, session, epoch, 3);
    end.events.insert(0, super::fixtures::event(attempt("only", Some(5))));
    let Ended { events, released } = stores.turns.end(end).await.unwrap();
    assert_eq!((seqs(&events), released), (vec![5, 6], true));
    let now = get(stores, tenant, session).await;
    assert_eq!((now.state, now.input_seq, now.usage.attempts), (SessionState::Idle, 3, 1));
    let late = stores.turns.end(last(tenant, session, epoch, 3)).await;
    assert!(matches!(late, Err(Error::LeaseLost { epoch: 1 })), "{late:?}");
    assert!(matches!(stores.leases.renew(tenant, session, epoch, LONG).await, Err(Error::LeaseLost { .. })));
    assert_eq!(stores.leases.abandoned(10).await.unwrap(), []);
    assert_eq!(begun(stores, begin(tenant, session)).await.epoch, 2);
}

pub(crate) async fn keeps_the_lease_for_a_message_that_waits(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    let Opened { epoch, .. } = begun(stores, begin(tenant, session)).await;
    appended(stores, append(tenant, session, vec![said("one more thing")])).await;
    assert!(!stores.turns.end(last(tenant, session, epoch, 3)).await.unwrap().released);
    assert_eq!(stores.turns.begin(begin(tenant, session)).await.unwrap(), Begun::Busy);
    assert!(stores.turns.end(last(tenant, session, epoch, 5)).await.unwrap().released);
}

/// The message waits until that turn is over, and its sub-agents are not without a caller meanwhile.
pub(crate) async fn says_of_a_turn_that_was_broken_off_that_it_runs(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    let of_turn = |begin: Begin, turn: TurnId, key: Option<IdempotencyKey>| {
        let mut message = Append { idempotency_key: key, ..begin.message };
        for event in &mut message.events {
            event.turn = Some(turn);
        }
        Begin { message, ttl: Duration::from_millis(1), ..begin }
    };
    let (first, wait) = (TurnId::generate(), Duration::from_millis(20));
    begun(stores, of_turn(begin(tenant, session), first, None)).await;
    let parent = get(stores, tenant, session).await;
    let mut child = new_child(&parent, "a");
    child.parent = child.parent.map(|parent| Parent { turn: first, ..parent });
    insert(stores, child).await;
    // A message with a key is stored by itself, and others in groups.
    for key in [None, Some(key("k", 1))] {
        tokio::time::sleep(wait).await;
        let opened = begun(stores, of_turn(begin(tenant, session), TurnId::generate(), key)).await;
        assert_eq!(opened.session.turn_id, first.to_string());
        let now = get(stores, tenant, session).await;
        assert_eq!((now.state, now.turn_id), (SessionState::Running, first.to_string()));
        assert_eq!(stores.across.orphaned(10).await.unwrap(), []);
    }
}

/// Whoever comes while a turn ends either finds the lease free, or finds that the turn has seen the message.
pub(crate) async fn leaves_no_message_lying(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    for _ in 0..20 {
        let session = session(stores, tenant).await;
        let Opened { epoch, .. } = begun(stores, begin(tenant, session)).await;
        let late = append(tenant, session, vec![said("late")]);
        let (ended, sent) = tokio::join!(stores.turns.end(last(tenant, session, epoch, 3)), async {
            stores.events.append(late).await.unwrap();
            stores.leases.acquire(tenant, session, "front-1", LONG).await.unwrap()
        });
        assert!(!ended.unwrap().released || sent.is_some(), "nobody would take the message up");
    }
}
