//! What every `AcrossTenants` promises, and how a session whose time is up is ended.

use std::collections::HashSet;

use croft_front::Error;
use croft_front::events::log::{Append, Appended, Authority, NewEvent};
use croft_front::session::Session;
use croft_front::session::across::Horizon;
use croft_front::session::store::NewSession;
use croft_front::store::Stores;
use croft_proto::Timestamp;
use croft_proto::id::{SessionId, TenantId, TurnId};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{SessionIdle, SessionRunning, SessionState};
use futures::future::join_all;
use uuid::Uuid;

use super::fixtures::{
    append, appended, at, event, get, insert, new_child, new_session, said, tenant, terminated, two_tenants,
};

/// A session created at `at(1)`, with so many seconds to be idle, and to live until then.
fn timed(tenant: TenantId, idle_seconds: i64, expire_time: Option<Timestamp>) -> NewSession {
    NewSession { idle_timeout_ms: idle_seconds * 1_000, expire_time, ..new_session(tenant) }
}

async fn put(stores: &Stores, session: &Session, seconds: i64, kinds: Vec<Kind>) {
    let mut change = append(session.tenant, session.id, Vec::new());
    let turn = Some(TurnId::generate());
    change.events = kinds.into_iter().map(|kind| NewEvent { create_time: at(seconds), turn, ..event(kind) }).collect();
    appended(stores, change).await;
}

fn running() -> Vec<Kind> {
    vec![said("hello"), Kind::SessionRunning(SessionRunning {})]
}

fn idle() -> Vec<Kind> {
    vec![Kind::SessionIdle(SessionIdle::default())]
}

fn end(session: &Session, as_of: Timestamp) -> Append {
    let mut end = append(session.tenant, session.id, vec![terminated("IDLE_TIMEOUT")]);
    end.authority = Authority::Overdue { as_of };
    end
}

async fn due(stores: &Stores, seconds: i64) -> Vec<SessionId> {
    stores.across.due(at(seconds), 10).await.unwrap().into_iter().map(|(_, session)| session).collect()
}

pub(crate) async fn finds_what_is_due_longest_first(stores: &Stores) {
    let [ours, theirs] = two_tenants(stores).await;
    let aged = insert(stores, timed(ours, 0, Some(at(50)))).await;
    let idle = insert(stores, timed(theirs, 30, None)).await;
    let both = insert(stores, timed(ours, 60, Some(at(40)))).await;
    insert(stores, timed(ours, 0, None)).await;
    assert_eq!((idle.idle_timeout_ms, aged.expire_time, aged.terminate_time), (30_000, Some(at(50)), None));

    assert_eq!(due(stores, 30).await, []);
    assert_eq!(due(stores, 31).await, [idle.id]);
    assert_eq!(due(stores, 50).await, [idle.id, both.id, aged.id]);
    let first = stores.across.due(at(50), 1).await.unwrap();
    assert_eq!(first, [(theirs, idle.id)]);
}

pub(crate) async fn lets_a_running_session_be_idle_for_as_long_as_it_likes(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = insert(stores, timed(tenant, 30, Some(at(500)))).await;
    put(stores, &session, 10, running()).await;
    assert_eq!(due(stores, 499).await, []);
    assert_eq!(due(stores, 500).await, [session.id], "its lifetime goes on");
    put(stores, &session, 100, idle()).await;
    assert_eq!(due(stores, 129).await, [], "it rests from its last turn's end on");
    assert_eq!(due(stores, 130).await, [session.id]);
}

pub(crate) async fn ends_a_session_only_while_it_is_due(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = insert(stores, timed(tenant, 30, None)).await;
    assert_eq!(due(stores, 31).await, [session.id]);
    // Somebody found it due, and its user was quicker.
    put(stores, &session, 31, running()).await;
    let refused = stores.events.append(end(&session, at(31))).await;
    assert!(matches!(refused, Err(Error::SessionBusy { .. })), "{refused:?}");
    put(stores, &session, 32, idle()).await;
    let refused = stores.events.append(end(&session, at(61))).await;
    assert!(matches!(refused, Err(Error::SessionBusy { .. })), "{refused:?}");

    let mut last = end(&session, at(62));
    last.events[0].create_time = at(63);
    appended(stores, last).await;
    let ended = get(stores, tenant, session.id).await;
    assert_eq!((ended.state, ended.terminate_time), (SessionState::Terminated, Some(at(63))));
    assert_eq!(due(stores, 9_999).await, []);
    let unknown = Session { id: SessionId::generate(), ..session };
    let unknown = stores.events.append(end(&unknown, at(99))).await;
    assert!(matches!(unknown, Err(Error::SessionNotFound { .. })), "{unknown:?}");
}

pub(crate) async fn ends_a_session_at_rest_only_while_no_turn_is_at_hand(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = insert(stores, timed(tenant, 0, None)).await;
    let end = || Append { authority: Authority::AtRest, ..append(tenant, session.id, vec![terminated("CALL_ENDED")]) };
    put(stores, &session, 1, running()).await;
    let refused = stores.events.append(end()).await;
    assert!(matches!(refused, Err(Error::SessionBusy { .. })), "{refused:?}");
    put(stores, &session, 2, idle()).await;
    appended(stores, end()).await;
    let late = stores.events.append(end()).await;
    assert!(matches!(late, Err(Error::SessionTerminated { .. })), "{late:?}");
}

pub(crate) async fn fences_the_turn_of_a_session_that_is_too_old(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = insert(stores, timed(tenant, 0, Some(at(5)))).await;
    let minute = std::time::Duration::from_mins(1);
    let epoch = stores.leases.acquire(tenant, session.id, "front-0", minute).await.unwrap().unwrap();
    put(stores, &session, 2, running()).await;
    appended(stores, end(&session, at(5))).await;
    let mut late = append(tenant, session.id, vec![said("late")]);
    late.authority = Authority::Lease { epoch };
    assert!(matches!(stores.events.append(late).await, Err(Error::SessionTerminated { .. })));
    let renewed = stores.leases.renew(tenant, session.id, epoch, minute).await;
    assert!(matches!(renewed, Err(Error::LeaseLost { .. })));
}

pub(crate) async fn ends_a_session_once_whoever_races(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = insert(stores, timed(tenant, 1, None)).await;
    let outcomes = join_all((0..8).map(|_| stores.events.append(end(&session, at(9))))).await;
    let won = outcomes.iter().filter(|outcome| matches!(outcome, Ok(Appended::New(_)))).count();
    let late = outcomes.iter().filter(|outcome| matches!(outcome, Err(Error::SessionTerminated { .. }))).count();
    assert_eq!((won, late), (1, 7), "{outcomes:?}");
    assert_eq!(stores.events.read(tenant, session.id, 2, 10).await.unwrap().len(), 1);
}

pub(crate) async fn tells_each_change_of_state_from_a_horizon_on(stores: &Stores) {
    let [ours, theirs] = two_tenants(stores).await;
    let before = insert(stores, new_session(ours)).await;
    let horizon = stores.across.horizon().await.unwrap();
    let since = async |horizon: &Horizon| {
        // Two at a time, as a reader in pages does.
        let (mut after, mut told) = ((0, SessionId(Uuid::nil())), Vec::new());
        loop {
            let page = stores.across.changed(horizon, after, 2).await.unwrap();
            let Some(last) = page.last() else { return told };
            after = (last.number, last.session);
            told.extend(page.into_iter().map(|change| (change.tenant, change.session)));
        }
    };
    // Nothing that could not be seen at the horizon is missing; what was seen may be told again.
    assert!(since(&horizon).await.iter().all(|told| *told == (ours, before.id)));

    let created = insert(stores, new_session(theirs)).await;
    put(stores, &before, 2, running()).await;
    let told: HashSet<_> = since(&horizon).await.into_iter().collect();
    assert_eq!(told, HashSet::from([(ours, before.id), (theirs, created.id)]));

    let horizon = stores.across.horizon().await.unwrap();
    put(stores, &created, 3, vec![said("no new state")]).await;
    put(stores, &before, 4, vec![terminated("done")]).await;
    let told = since(&horizon).await;
    assert_eq!(told.last(), Some(&(ours, before.id)), "the newest is the last");
    let numbers = stores.across.changed(&Horizon::default(), (0, SessionId(Uuid::nil())), 10).await.unwrap();
    assert!(numbers.is_sorted_by_key(|change| (change.number, change.session)));
    assert_eq!(numbers.len(), 2, "each session once, under its last change");
}

pub(crate) async fn finds_sub_agents_that_have_outlived_their_call(stores: &Stores) {
    let [ours, theirs] = two_tenants(stores).await;
    let parent = insert(stores, new_session(ours)).await;
    let (child, ended) = (new_child(&parent, "a"), new_child(&parent, "b"));
    let run = async |parent: &Session, turn: TurnId| {
        let mut run = append(parent.tenant, parent.id, Vec::new());
        run.events = vec![NewEvent { turn: Some(turn), ..event(Kind::SessionRunning(SessionRunning {})) }];
        appended(stores, run).await;
    };
    let turn = child.parent.as_ref().unwrap().turn;
    run(&parent, turn).await;
    let (child, ended) = (insert(stores, child).await, insert(stores, ended).await);
    put(stores, &ended, 5, vec![terminated("ANSWERED")]).await;
    let busy = insert(stores, new_session(theirs)).await;
    run(&busy, turn).await;
    insert(stores, new_child(&busy, "a")).await;
    assert_eq!(stores.across.orphaned(10).await.unwrap(), []);

    put(stores, &parent, 6, idle()).await;
    assert_eq!(stores.across.orphaned(10).await.unwrap(), [(ours, child.id)], "its caller's turn is over");
    assert_eq!(stores.across.orphaned(0).await.unwrap(), []);
    run(&parent, TurnId::generate()).await;
    assert_eq!(stores.across.orphaned(10).await.unwrap(), [(ours, child.id)], "that is another turn");
    run(&parent, turn).await;
    assert_eq!(stores.across.orphaned(10).await.unwrap(), []);
    put(stores, &parent, 7, vec![terminated("done")]).await;
    assert_eq!(stores.across.orphaned(10).await.unwrap(), [(ours, child.id)], "its caller has ended");
    put(stores, &child, 8, vec![terminated("CALL_ENDED")]).await;
    assert_eq!(stores.across.orphaned(10).await.unwrap(), []);
}
