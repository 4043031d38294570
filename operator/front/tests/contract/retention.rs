//! What every `RetentionStore` promises.

use std::time::Duration;

use croft_front::Error;
use croft_front::audit::Place;
use croft_front::budget::alert::{Alert, Unit};
use croft_front::budget::period::Period;
use croft_front::budget::{Account, Budget, Scope};
use croft_front::events::log::NewEvent;
use croft_front::session::retention::store::Erased;
use croft_front::session::store::{Filter, Inserted};
use croft_front::store::Stores;
use croft_proto::Timestamp;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::{AuditRecord, BudgetAction, SessionCheckpoint};
use futures::future::join_all;

use super::audit::{action, intact, verified};
use super::fixtures::{
    append, appended, at, attempt, get, insert, key, new_child, new_session, said, session, tenant, terminated,
    two_tenants,
};

/// A session with something in every table, that ended then: 5 events.
async fn ended(stores: &Stores, tenant: TenantId, end: Timestamp) -> SessionId {
    let mut new = new_session(tenant);
    let id = new.id;
    new.idempotency_key = Some(key(&format!("create {id}"), 1));
    insert(stores, new).await;
    stores.leases.acquire(tenant, id, "front-0", Duration::from_mins(1)).await.unwrap();
    let mut message = append(tenant, id, vec![said("hello"), attempt(&format!("attempt {id}"), Some(7))]);
    message.idempotency_key = Some(key("send", 1));
    message.checkpoint = Some(SessionCheckpoint::default());
    appended(stores, message).await;
    let mut last = append(tenant, id, Vec::new());
    last.events = vec![NewEvent::at(terminated("done"), end)];
    appended(stores, last).await;
    id
}

/// Erases as many sessions at most, however many events they have, and tells how many.
async fn erased(stores: &Stores, tenant: TenantId, before: Timestamp, sessions_max: u32) -> u64 {
    stores.retention.erase_ended(tenant, before, sessions_max, 1_000).await.unwrap().sessions
}

async fn listed(stores: &Stores, tenant: TenantId) -> Vec<SessionId> {
    let sessions = stores.sessions.list(tenant, &Filter::default(), None, 100).await.unwrap().sessions;
    sessions.into_iter().map(|session| session.id).collect()
}

pub(crate) async fn erases_whole_sessions_longest_ended_first(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let [second, third, first] =
        [ended(stores, tenant, at(20)).await, ended(stores, tenant, at(30)).await, ended(stores, tenant, at(10)).await];
    assert_eq!(erased(stores, tenant, at(25), 1).await, 1);
    assert_eq!(listed(stores, tenant).await, [third, second], "the one that ended first is gone");
    assert_eq!(stores.events.read(tenant, first, 0, 10).await.unwrap(), []);
    assert_eq!(stores.events.checkpoint(tenant, first).await.unwrap(), None);
    assert_eq!(stores.sessions.get(tenant, first).await.unwrap(), None);
    let gone = stores.events.append(append(tenant, first, vec![said("hello?")])).await;
    assert!(matches!(gone, Err(Error::SessionNotFound { .. })), "{gone:?}");
    let gone = stores.leases.acquire(tenant, first, "front-0", Duration::from_mins(1)).await;
    assert!(matches!(gone, Err(Error::SessionNotFound { .. })), "{gone:?}");
    assert_eq!(stores.events.read(tenant, second, 0, 10).await.unwrap().len(), 5, "all of it or nothing");

    assert_eq!(erased(stores, tenant, at(25), 10).await, 1);
    assert_eq!(erased(stores, tenant, at(25), 10).await, 0);
    assert_eq!(listed(stores, tenant).await, [third]);
}

pub(crate) async fn leaves_what_is_open_or_has_just_ended(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let open = session(stores, tenant).await;
    let now = i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap();
    let just_ended = ended(stores, tenant, Timestamp { seconds: now - 3_000, nanos: 0 }).await;
    let earlier = ended(stores, tenant, Timestamp { seconds: now - 4_000, nanos: 0 }).await;
    // Whoever asks for more than there is to have has made a mistake.
    let far_off = Timestamp { seconds: now + 1_000_000, nanos: 0 };
    assert_eq!(erased(stores, tenant, far_off, 10).await, 1);
    assert_eq!(listed(stores, tenant).await, [just_ended, open], "without {earlier}");
}

pub(crate) async fn keeps_tenants_apart(stores: &Stores) {
    let [ours, theirs] = two_tenants(stores).await;
    let foreign = ended(stores, theirs, at(1)).await;
    ended(stores, ours, at(1)).await;
    assert_eq!(erased(stores, ours, at(100), 10).await, 1);
    assert_eq!(listed(stores, theirs).await, [foreign]);
    assert_eq!(stores.events.read(theirs, foreign, 0, 10).await.unwrap().len(), 5);
    assert!(stores.events.checkpoint(theirs, foreign).await.unwrap().is_some());
}

pub(crate) async fn keeps_the_books(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    stores.audit.append(Place::start(), vec![action(tenant, "sessions/1")]).await.unwrap();
    ended(stores, tenant, at(1)).await;
    assert_eq!(erased(stores, tenant, at(100), 10).await, 1);
    assert_eq!(stores.usage.list(tenant, None, None, None, 10).await.unwrap().len(), 1);
    assert_eq!(verified(stores, tenant).await, intact(2), "with the record of it");
}

/// Nobody who is lost behind a batch has erased what nobody knows of.
pub(crate) async fn records_each_session_with_its_erasure(stores: &Stores) {
    let [ours, theirs] = two_tenants(stores).await;
    let (first, second, foreign) =
        (ended(stores, ours, at(1)).await, ended(stores, ours, at(2)).await, ended(stores, theirs, at(1)).await);
    let recorded = async |tenant| {
        let records = stores.audit.list(tenant, 0, 10).await.unwrap();
        let told =
            |AuditRecord { actor, action, resource, outcome, .. }| format!("{actor} {action} {resource} {outcome}");
        records.into_iter().map(told).collect::<Vec<_>>()
    };
    let record = |id: SessionId| format!("front session.erase sessions/{id} ok");
    let slice = stores.retention.erase_ended(ours, at(100), 10, 1).await.unwrap();
    assert_eq!((slice, recorded(ours).await), (Erased { sessions: 0, events: 1 }, Vec::new()), "it is not gone yet");
    assert_eq!(erased(stores, ours, at(100), 1).await, 1);
    assert_eq!(recorded(ours).await, [record(first)]);
    assert_eq!(erased(stores, ours, at(100), 10).await, 1);
    assert_eq!(recorded(ours).await, [record(first), record(second)]);
    assert_eq!(recorded(theirs).await, Vec::<String>::new());
    assert_eq!(erased(stores, theirs, at(100), 10).await, 1);
    assert_eq!(recorded(theirs).await, [record(foreign)]);
    assert_eq!(verified(stores, ours).await, intact(2));
}

pub(crate) async fn frees_the_keys_of_what_it_erased(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let (gone, kept) = (ended(stores, tenant, at(1)).await, ended(stores, tenant, at(50)).await);
    assert_eq!(erased(stores, tenant, at(10), 10).await, 1);
    let keyed = |id: SessionId| {
        let mut new = new_session(tenant);
        new.idempotency_key = Some(key(&format!("create {id}"), 1));
        new
    };
    assert!(matches!(stores.sessions.insert(keyed(gone)).await.unwrap(), Inserted::New { .. }));
    assert!(matches!(stores.sessions.insert(keyed(kept)).await.unwrap(), Inserted::Existing(_)));
    assert_eq!(stores.events.find_sent(tenant, kept, &key("send", 1)).await.unwrap(), Some(3));
    assert_eq!(stores.events.find_sent(tenant, gone, &key("send", 1)).await.unwrap(), None);
}

pub(crate) async fn shares_the_work(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    for second in 0..12 {
        ended(stores, tenant, at(second)).await;
    }
    let erasing = (0..4).map(|_| async {
        let mut sum = 0;
        loop {
            match erased(stores, tenant, at(100), 2).await {
                0 => return sum,
                sessions => sum += sessions,
            }
        }
    });
    let erased: u64 = join_all(erasing).await.into_iter().sum();
    assert_eq!(erased, 12, "each was erased once");
    assert_eq!(listed(stores, tenant).await, []);
}

/// A session of very many events stood before all others of its tenant for ever.
pub(crate) async fn erases_a_large_session_in_slices_and_shows_none_of_it(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let [large, next] = [ended(stores, tenant, at(10)).await, ended(stores, tenant, at(20)).await];
    let mut slices = Vec::new();
    loop {
        let slice = stores.retention.erase_ended(tenant, at(100), 10, 2).await.unwrap();
        slices.push((slice.sessions, slice.events));
        if slice == Erased::default() {
            break;
        }
        assert_eq!(stores.sessions.get(tenant, large).await.unwrap(), None);
        assert!(!listed(stores, tenant).await.contains(&large));
        assert_eq!(stores.events.checkpoint(tenant, large).await.unwrap(), None);
        assert_eq!(stores.events.find_sent(tenant, large, &key("send", 1)).await.unwrap(), None);
        assert_eq!(stores.events.read(tenant, large, 0, 10).await.unwrap(), [], "what is left is shown to nobody");
        let refused = stores.events.append(append(tenant, large, vec![said("hello?")])).await;
        assert!(matches!(refused, Err(Error::SessionNotFound { .. })), "{refused:?}");
        let refused = stores.leases.acquire(tenant, large, "front-0", Duration::from_mins(1)).await;
        assert!(matches!(refused, Err(Error::SessionNotFound { .. })), "{refused:?}");
    }
    assert_eq!(slices, [(0, 2), (0, 2), (1, 2), (0, 2), (0, 2), (1, 0), (0, 0)]);
    for id in [large, next] {
        assert_eq!(stores.events.read(tenant, id, 0, 10).await.unwrap(), []);
    }
}

/// Its rows stayed for ever, seen by nobody, where sessions were then to be kept for longer.
pub(crate) async fn erases_what_it_began_whatever_time_is_asked_for(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    ended(stores, tenant, at(10)).await;
    assert_eq!(stores.retention.erase_ended(tenant, at(15), 10, 2).await.unwrap(), Erased { sessions: 0, events: 2 });
    // It goes before what ended earlier than it did.
    let earlier = ended(stores, tenant, at(5)).await;
    assert_eq!(stores.retention.erase_ended(tenant, at(15), 1, 2).await.unwrap(), Erased { sessions: 0, events: 2 });
    assert_eq!(listed(stores, tenant).await, [earlier]);
    let never = Timestamp::default();
    for slice in [Erased { sessions: 1, events: 1 }, Erased::default()] {
        assert_eq!(stores.retention.erase_ended(tenant, never, 10, 2).await.unwrap(), slice);
    }
    assert_eq!(listed(stores, tenant).await, [earlier]);
}

/// The call's place was taken by one that nobody could find.
pub(crate) async fn leaves_the_call_of_a_hidden_sub_agent_to_another(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let parent = session(stores, tenant).await;
    let parent = get(stores, tenant, parent).await;
    let child = insert(stores, new_child(&parent, "call-1")).await;
    let mut last = append(tenant, child.id, Vec::new());
    last.events = vec![NewEvent::at(terminated("done"), at(10))];
    appended(stores, last).await;
    assert_eq!(stores.retention.erase_ended(tenant, at(20), 10, 1).await.unwrap(), Erased { sessions: 0, events: 1 });
    let again = stores.sessions.insert(new_child(&parent, "call-1")).await.unwrap();
    let Inserted::New { session, .. } = again else { panic!("it found {again:?}") };
    assert_eq!(
        stores.sessions.child(tenant, parent.id, "call-1").await.unwrap().map(|child| child.id),
        Some(session.id)
    );
}

/// They used up the tenant's room for budgets.
pub(crate) async fn takes_budgets_and_alerts_of_a_session_along(stores: &Stores) {
    let [ours, theirs] = two_tenants(stores).await;
    let [gone, kept] = [ended(stores, ours, at(10)).await, ended(stores, ours, at(90)).await];
    let subjects = [gone, kept].map(|id| id.to_string());
    let alert = |session: SessionId| Alert {
        account: Account { scope: Scope::Session, subject: session.to_string(), period: "life".into() },
        unit: Unit::Tokens,
        limit: 100,
        percent: 80,
        spent: 81,
        session,
    };
    for (tenant, scope, subject, session) in [
        (ours, Scope::Session, &*subjects[0], gone),
        (ours, Scope::Session, &subjects[1], kept),
        (ours, Scope::Tenant, "", kept),
        (theirs, Scope::Session, &subjects[0], gone),
    ] {
        let budget = Budget {
            scope,
            subject: subject.to_owned(),
            period: Period::Life,
            nano_usd: Some(1),
            tokens: None,
            action: BudgetAction::Warn,
            is_given: false,
        };
        stores.budgets.put(tenant, &budget).await.unwrap();
        assert!(stores.budgets.alert(tenant, &alert(session)).await.unwrap() || scope == Scope::Tenant);
    }
    assert_eq!(erased(stores, ours, at(50), 10).await, 1);
    let left = stores.budgets.list(ours).await.unwrap();
    assert_eq!(left.iter().map(|budget| &*budget.subject).collect::<Vec<_>>(), ["", &subjects[1]]);
    assert_eq!(stores.budgets.list(theirs).await.unwrap().len(), 1);
    // One that is there is not found a second time.
    assert!(stores.budgets.alert(ours, &alert(gone)).await.unwrap());
    assert!(!stores.budgets.alert(ours, &alert(kept)).await.unwrap());
    assert!(!stores.budgets.alert(theirs, &alert(gone)).await.unwrap());
}

/// What of an archived tenant's was half erased stayed so for ever: nobody looked for its sessions any more.
pub(crate) async fn tells_of_whom_it_erases_sessions(stores: &Stores) {
    let [ours, theirs] = two_tenants(stores).await;
    for tenant in [ours, theirs] {
        ended(stores, tenant, at(10)).await;
    }
    assert_eq!(stores.across.erasing(10).await.unwrap(), []);
    stores.retention.erase_ended(theirs, at(20), 1, 2).await.unwrap();
    assert_eq!(stores.across.erasing(10).await.unwrap(), [theirs]);
    stores.retention.erase_ended(ours, at(20), 1, 2).await.unwrap();
    assert_eq!(stores.across.erasing(10).await.unwrap().len(), 2);
    assert_eq!(stores.across.erasing(1).await.unwrap().len(), 1);
    for tenant in [ours, theirs] {
        stores.retention.erase_ended(tenant, Timestamp::default(), 1, 10).await.unwrap();
    }
    assert_eq!(stores.across.erasing(10).await.unwrap(), []);
}
