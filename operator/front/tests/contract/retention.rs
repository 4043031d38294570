//! What every `RetentionStore` promises.

use std::time::Duration;

use croft_front::Error;
use croft_front::audit::Place;
use croft_front::events::log::NewEvent;
use croft_front::session::store::{Filter, Inserted};
use croft_front::store::Stores;
use croft_proto::Timestamp;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::SessionCheckpoint;
use futures::future::join_all;

use super::audit::{action, intact, verified};
use super::fixtures::{
    append, appended, at, attempt, insert, key, new_session, said, session, tenant, terminated, two_tenants,
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
    last.events = vec![NewEvent { kind: terminated("done"), turn: None, elapsed_ms: 0, create_time: end }];
    appended(stores, last).await;
    id
}

async fn listed(stores: &Stores, tenant: TenantId) -> Vec<SessionId> {
    let sessions = stores.sessions.list(tenant, &Filter::default(), None, 100).await.unwrap().sessions;
    sessions.into_iter().map(|session| session.id).collect()
}

pub(crate) async fn erases_whole_sessions_longest_ended_first(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let [second, third, first] =
        [ended(stores, tenant, at(20)).await, ended(stores, tenant, at(30)).await, ended(stores, tenant, at(10)).await];
    assert_eq!(stores.retention.erase_ended(tenant, at(25), 1).await.unwrap(), 1);
    assert_eq!(listed(stores, tenant).await, [third, second], "the one that ended first is gone");
    assert_eq!(stores.events.read(tenant, first, 0, 10).await.unwrap(), []);
    assert_eq!(stores.events.checkpoint(tenant, first).await.unwrap(), None);
    assert_eq!(stores.sessions.get(tenant, first).await.unwrap(), None);
    let gone = stores.events.append(append(tenant, first, vec![said("hello?")])).await;
    assert!(matches!(gone, Err(Error::SessionNotFound { .. })), "{gone:?}");
    let gone = stores.leases.acquire(tenant, first, "front-0", Duration::from_mins(1)).await;
    assert!(matches!(gone, Err(Error::SessionNotFound { .. })), "{gone:?}");
    assert_eq!(stores.events.read(tenant, second, 0, 10).await.unwrap().len(), 5, "all of it or nothing");

    assert_eq!(stores.retention.erase_ended(tenant, at(25), 10).await.unwrap(), 1);
    assert_eq!(stores.retention.erase_ended(tenant, at(25), 10).await.unwrap(), 0);
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
    assert_eq!(stores.retention.erase_ended(tenant, far_off, 10).await.unwrap(), 1);
    assert_eq!(listed(stores, tenant).await, [just_ended, open], "without {earlier}");
}

pub(crate) async fn keeps_tenants_apart(stores: &Stores) {
    let [ours, theirs] = two_tenants(stores).await;
    let foreign = ended(stores, theirs, at(1)).await;
    ended(stores, ours, at(1)).await;
    assert_eq!(stores.retention.erase_ended(ours, at(100), 10).await.unwrap(), 1);
    assert_eq!(listed(stores, theirs).await, [foreign]);
    assert_eq!(stores.events.read(theirs, foreign, 0, 10).await.unwrap().len(), 5);
    assert!(stores.events.checkpoint(theirs, foreign).await.unwrap().is_some());
}

pub(crate) async fn keeps_the_books(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    stores.audit.append(Place::start(), vec![action(tenant, "sessions/1")]).await.unwrap();
    ended(stores, tenant, at(1)).await;
    assert_eq!(stores.retention.erase_ended(tenant, at(100), 10).await.unwrap(), 1);
    assert_eq!(stores.usage.list(tenant, None, None, 10).await.unwrap().len(), 1);
    assert_eq!(verified(stores, tenant).await, intact(1));
}

pub(crate) async fn frees_the_keys_of_what_it_erased(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let (erased, kept) = (ended(stores, tenant, at(1)).await, ended(stores, tenant, at(50)).await);
    assert_eq!(stores.retention.erase_ended(tenant, at(10), 10).await.unwrap(), 1);
    let keyed = |id: SessionId| {
        let mut new = new_session(tenant);
        new.idempotency_key = Some(key(&format!("create {id}"), 1));
        new
    };
    assert!(matches!(stores.sessions.insert(keyed(erased)).await.unwrap(), Inserted::New { .. }));
    assert!(matches!(stores.sessions.insert(keyed(kept)).await.unwrap(), Inserted::Existing(_)));
    assert_eq!(stores.events.find_sent(tenant, kept, &key("send", 1)).await.unwrap(), Some(3));
    assert_eq!(stores.events.find_sent(tenant, erased, &key("send", 1)).await.unwrap(), None);
}

pub(crate) async fn shares_the_work(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    for second in 0..12 {
        ended(stores, tenant, at(second)).await;
    }
    let erasing = (0..4).map(|_| async {
        let mut erased = 0;
        loop {
            match stores.retention.erase_ended(tenant, at(100), 2).await.unwrap() {
                0 => return erased,
                sessions => erased += sessions,
            }
        }
    });
    let erased: u64 = join_all(erasing).await.into_iter().sum();
    assert_eq!(erased, 12, "each was erased once");
    assert_eq!(listed(stores, tenant).await, []);
}
