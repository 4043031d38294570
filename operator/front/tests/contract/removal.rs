//! What every `RemovalStore` promises.

use std::time::Duration;

use croft_front::Error;
use croft_front::audit::Place;
use croft_front::budget::Scope;
use croft_front::budget::period::Period;
use croft_front::identity::api_key;
use croft_front::session::retention::store::Erased;
use croft_front::session::store::{Filter, NewSession};
use croft_front::store::Stores;
use croft_proto::Timestamp;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{SessionCheckpoint, SessionIdle};
use futures::future::join_all;

use super::audit::{action, intact, verified};
use super::budgets::{alert, budget};
use super::fixtures::{
    append, appended, at, attempt, insert, key, new_session, said, session, tenant, terminated, two_tenants,
};

/// A session with something in every table: 5 events, 2 keys, a checkpoint, a lease, usage.
async fn full(stores: &Stores, tenant: TenantId) -> SessionId {
    let mut new = new_session(tenant);
    let id = new.id;
    new.idempotency_key = Some(key(&format!("create {id}"), 1));
    insert(stores, new).await;
    stores.leases.acquire(tenant, id, "front-0", Duration::from_mins(1)).await.unwrap();
    let mut message = append(tenant, id, vec![said("hello"), attempt(&format!("attempt {id}"), Some(7))]);
    message.idempotency_key = Some(key("send", 1));
    message.checkpoint = Some(SessionCheckpoint::default());
    appended(stores, message).await;
    id
}

async fn end(stores: &Stores, tenant: TenantId, id: SessionId) {
    appended(stores, append(tenant, id, vec![terminated("gone")])).await;
}

pub(crate) async fn shuts_the_door_for_good(stores: &Stores) {
    let [ours, theirs] = two_tenants(stores).await;
    let before = session(stores, ours).await;
    assert!(stores.removal.begin(ours, "ours").await.unwrap());
    assert!(!stores.removal.begin(ours, "ours").await.unwrap(), "it had begun");
    for sessions_max in [None, Some(9)] {
        let refused = stores.sessions.insert(NewSession { sessions_max, ..new_session(ours) }).await;
        assert!(matches!(refused, Err(Error::TenantClosed { .. })), "{refused:?}");
    }
    // A front that is behind says again that there is such a tenant.
    stores.tenants.upsert(ours, "ours").await.unwrap();
    assert!(matches!(stores.sessions.insert(new_session(ours)).await, Err(Error::TenantClosed { .. })));
    appended(stores, append(ours, before, vec![said("still there")])).await;
    session(stores, theirs).await;
}

pub(crate) async fn shuts_the_door_on_a_tenant_that_nobody_knew(stores: &Stores) {
    let stranger = TenantId::generate();
    assert!(stores.removal.begin(stranger, "stranger").await.unwrap());
    stores.tenants.upsert(stranger, "stranger").await.unwrap();
    assert!(matches!(stores.sessions.insert(new_session(stranger)).await, Err(Error::TenantClosed { .. })));
    assert_eq!(stores.removal.erase_credentials(stranger).await.unwrap(), 0);
    assert_eq!(stores.removal.erase_rows(stranger, 10).await.unwrap(), 0);
}

pub(crate) async fn lets_no_session_slip_through(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let opening = join_all((0..20).map(|_| stores.sessions.insert(new_session(tenant))));
    let closing = async {
        stores.removal.begin(tenant, "ours").await.unwrap();
        stores.sessions.count_open(tenant).await.unwrap()
    };
    let (opened, seen) = tokio::join!(opening, closing);
    let opened = opened.into_iter().flatten().count();
    assert_eq!(seen as usize, opened, "whatever was opened was seen once the removal had begun");
}

pub(crate) async fn erases_nothing_that_is_not_being_removed(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let id = full(stores, tenant).await;
    assert!(stores.removal.erase_rows(tenant, 10).await.is_err());
    assert!(stores.removal.erase_credentials(tenant).await.is_err());
    stores.removal.begin(tenant, "ours").await.unwrap();
    assert!(stores.removal.erase_rows(tenant, 10).await.is_err(), "it has an open session");
    assert_eq!(stores.events.read(tenant, id, 0, 10).await.unwrap().len(), 4);
}

pub(crate) async fn erases_in_batches_and_keeps_the_books(stores: &Stores) {
    let [ours, theirs] = two_tenants(stores).await;
    let (first, second, foreign) = (full(stores, ours).await, full(stores, ours).await, full(stores, theirs).await);
    stores.audit.append(Place::start(), vec![action(ours, "sessions/1")]).await.unwrap();
    for id in [first, second] {
        end(stores, ours, id).await;
    }
    stores.removal.begin(ours, "ours").await.unwrap();
    // 5 events and 2 keys each, and the sessions themselves.
    assert_eq!(stores.removal.count_rows(ours, 100).await.unwrap(), 16);
    assert_eq!(stores.removal.count_rows(ours, 9).await.unwrap(), 9, "counted so far");
    let mut batches = Vec::new();
    loop {
        match stores.removal.erase_rows(ours, 6).await.unwrap() {
            0 => break,
            erased => batches.push(erased),
        }
    }
    assert_eq!(batches, [6, 6, 4]);
    assert_eq!(stores.removal.count_rows(ours, 100).await.unwrap(), 0);
    assert_eq!(stores.sessions.list(ours, &Filter::default(), None, 10).await.unwrap().sessions, []);
    assert_eq!(stores.events.read(ours, first, 0, 10).await.unwrap(), []);
    assert_eq!(stores.events.checkpoint(ours, first).await.unwrap(), None);
    assert_eq!(stores.usage.list(ours, None, None, None, 10).await.unwrap().len(), 2, "the books must balance");
    assert_eq!(verified(stores, ours).await, intact(1));
    assert_eq!(stores.events.read(theirs, foreign, 0, 10).await.unwrap().len(), 4);
    assert!(stores.events.checkpoint(theirs, foreign).await.unwrap().is_some());
}

/// Once, they stayed, and alerts went on being posted for a tenant that was gone.
pub(crate) async fn erases_budgets_and_alerts_that_are_not_posted_yet(stores: &Stores) {
    let [ours, theirs] = two_tenants(stores).await;
    for tenant in [ours, theirs] {
        for (scope, subject) in [(Scope::Tenant, ""), (Scope::Agent, "helper")] {
            let budget = budget(scope, subject, Period::Month, None, Some(9));
            stores.budgets.put(tenant, &budget).await.unwrap();
        }
        assert!(stores.budgets.alert(tenant, &alert(80, 9)).await.unwrap());
    }
    stores.removal.begin(ours, "ours").await.unwrap();
    assert_eq!(stores.removal.count_rows(ours, 100).await.unwrap(), 3);
    assert_eq!(stores.removal.erase_rows(ours, 2).await.unwrap(), 2);
    assert_eq!(stores.removal.count_rows(ours, 100).await.unwrap(), 1);
    assert_eq!(stores.removal.erase_rows(ours, 2).await.unwrap(), 1);
    assert_eq!(stores.removal.erase_rows(ours, 2).await.unwrap(), 0);
    assert_eq!(stores.budgets.list(ours).await.unwrap(), []);
    assert_eq!(stores.budgets.list(theirs).await.unwrap().len(), 2);
    let claimed = stores.budgets.claim_hooks(9, Duration::from_mins(1)).await.unwrap();
    assert_eq!(claimed.iter().map(|claimed| claimed.tenant).collect::<Vec<_>>(), [theirs]);
}

/// Once, what nobody sees any more was counted as nothing, and a removal that still had it to erase was taken for done.
pub(crate) async fn counts_and_erases_what_is_being_erased(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let old = session(stores, tenant).await;
    appended(stores, append(tenant, old, vec![terminated("done")])).await;
    assert_eq!(stores.retention.erase_ended(tenant, at(9), 1, 1).await.unwrap(), Erased { sessions: 0, events: 1 });
    stores.removal.begin(tenant, "ours").await.unwrap();
    // Two events, and the session.
    assert_eq!(stores.removal.count_rows(tenant, 100).await.unwrap(), 3);
    assert_eq!(stores.removal.erase_rows(tenant, 2).await.unwrap(), 2);
    assert_eq!(stores.removal.count_rows(tenant, 100).await.unwrap(), 1);
    assert_eq!(stores.removal.erase_rows(tenant, 2).await.unwrap(), 1);
    assert_eq!(stores.removal.count_rows(tenant, 100).await.unwrap(), 0);
}

pub(crate) async fn erases_credentials_of_the_tenant_alone(stores: &Stores) {
    let [ours, theirs] = two_tenants(stores).await;
    let mut prefixes = Vec::new();
    for (tenant, name) in [(ours, "ours"), (ours, "ours"), (theirs, "theirs")] {
        let (api_key, _) = api_key::generate(tenant, name).unwrap();
        stores.keys.insert(&api_key, None).await.unwrap();
        prefixes.push(api_key.prefix);
    }
    stores.removal.begin(ours, "ours").await.unwrap();
    assert_eq!(stores.removal.erase_credentials(ours).await.unwrap(), 2);
    assert_eq!(stores.removal.erase_credentials(ours).await.unwrap(), 0);
    let mut found = Vec::new();
    for prefix in &prefixes {
        found.push(stores.keys.find(prefix).await.unwrap().is_some());
    }
    assert_eq!(found, [false, false, true]);
}

pub(crate) async fn counts_what_ended_lately_in_the_midst_of_a_turn(stores: &Stores) {
    let [ours, theirs] = two_tenants(stores).await;
    let now = || Timestamp { seconds: jiff::Timestamp::now().as_second(), nanos: 0 };
    let end = async |tenant, before: Vec<Kind>, ended: Timestamp| {
        let id = session(stores, tenant).await;
        if !before.is_empty() {
            appended(stores, append(tenant, id, before)).await;
        }
        let mut end = append(tenant, id, vec![terminated("gone")]);
        end.events[0].create_time = ended;
        appended(stores, end).await;
    };
    let idle = || Kind::SessionIdle(SessionIdle::default());
    end(ours, Vec::new(), now()).await;
    end(ours, vec![said("hello"), idle()], now()).await;
    end(theirs, vec![said("hello")], now()).await;
    end(ours, vec![said("hello")], Timestamp { seconds: now().seconds - 3600, nanos: 0 }).await;
    let minute = Duration::from_mins(1);
    assert_eq!(stores.removal.count_cut_short(ours, minute).await.unwrap(), 0);
    end(ours, vec![said("hello")], now()).await;
    assert_eq!(stores.removal.count_cut_short(ours, minute).await.unwrap(), 1);
}

/// Who asked by the tenant's name, right behind its removal, was given a key that nothing took back any more.
pub(crate) async fn has_no_key_made_behind_it(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    stores.removal.begin(tenant, "ours").await.unwrap();
    stores.removal.erase_credentials(tenant).await.unwrap();
    let (key, _) = api_key::generate(tenant, "ours").unwrap();
    let refused = stores.keys.insert(&key, None).await;
    assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    assert_eq!(stores.keys.find(&key.prefix).await.unwrap(), None);
}
