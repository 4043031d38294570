//! What every `SessionStore` promises.

use std::collections::BTreeMap;

use croft_front::Error;
use croft_front::session::store::{Filter, Inserted, PAGE_BYTES};
use croft_front::store::Stores;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::{SessionState, StopReason, TokenUsage, UsageTotals};
use futures::future::join_all;

use super::fixtures::{
    append, appended, at, attempt, created, event, get, insert, key, new_child, new_session, session, tenant,
    terminated, two_tenants,
};

pub(crate) async fn keeps_tenants_apart(stores: &Stores) {
    let [ours, theirs] = two_tenants(stores).await;
    let mut new = new_session(ours);
    new.idempotency_key = Some(key("once", 1));
    let session = insert(stores, new).await;

    assert_eq!(stores.sessions.get(theirs, session.id).await.unwrap(), None);
    assert_eq!(stores.sessions.list(theirs, &Filter::default(), None, 10).await.unwrap().sessions, []);
    assert_eq!(stores.sessions.count_open(theirs).await.unwrap(), 0);
    assert_eq!(stores.sessions.find_created(theirs, &key("once", 1)).await.unwrap(), None);
    assert_eq!(stores.sessions.get(ours, session.id).await.unwrap(), Some(session));
    assert_eq!(stores.sessions.count_open(ours).await.unwrap(), 1);
}

pub(crate) async fn starts_as_its_first_events_say(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let ready = insert(stores, new_session(tenant)).await;
    assert_eq!((ready.state, ready.last_seq, &*ready.worker), (SessionState::Ready, 2, "worker-0"));
    let mut bare = new_session(tenant);
    bare.events.truncate(1);
    let bare = insert(stores, bare).await;
    assert_eq!((bare.state, bare.last_seq, &*bare.worker), (SessionState::Creating, 1, ""));
    assert_eq!(get(stores, tenant, bare.id).await, bare);
}

pub(crate) async fn survives_a_round_trip_in_full(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let mut new = new_session(tenant);
    new.labels = BTreeMap::from([("team".into(), "sails \"&\" ropes".into()), ("größe".into(), String::new())]);
    new.events[1].create_time = at(77);
    (new.idle_timeout_ms, new.expire_time) = (12_345, Some(at(999)));
    let (agent, labels) = (new.agent.clone(), new.labels.clone());
    let Inserted::New { session, events } = stores.sessions.insert(new).await.unwrap() else { panic!("it is new") };

    assert_eq!(get(stores, tenant, session.id).await, session);
    assert_eq!((session.agent, session.labels, &*session.tenant_name), (agent, labels, "ours"));
    assert_eq!((session.create_time, session.update_time), (at(1), at(77)));
    assert_eq!((session.idle_timeout_ms, session.expire_time, session.terminate_time), (12_345, Some(at(999)), None));
    assert_eq!((session.input_seq, session.newest_input_seq, &*session.turn_id), (0, 0, ""));
    assert_eq!(session.last_stop_reason, StopReason::Unspecified);
    assert_eq!(session.usage, UsageTotals { tokens: Some(TokenUsage::default()), ..UsageTotals::default() });
    assert_eq!(events[1].session_id, session.id.to_string());
    assert_eq!(stores.events.read(tenant, session.id, 0, 10).await.unwrap(), events);
}

pub(crate) async fn is_refused_for_a_tenant_that_nobody_knows(stores: &Stores) {
    let stranger = TenantId::generate();
    let error = stores.sessions.insert(new_session(stranger)).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert_eq!(stores.sessions.count_open(stranger).await.unwrap(), 0);
}

pub(crate) async fn stops_at_the_limit_whoever_races(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let races = (0..20).map(|_| {
        let mut new = new_session(tenant);
        new.sessions_max = Some(5);
        stores.sessions.insert(new)
    });
    let (made, refused): (Vec<_>, Vec<_>) = join_all(races).await.into_iter().partition(Result::is_ok);
    assert_eq!((made.len(), refused.len()), (5, 15));
    for refusal in refused {
        assert!(matches!(refusal, Err(Error::SessionLimit { max: 5 })), "{refusal:?}");
    }
    assert_eq!(stores.sessions.count_open(tenant).await.unwrap(), 5);
}

pub(crate) async fn frees_a_place_when_one_ends(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let first = session(stores, tenant).await;
    let mut second = new_session(tenant);
    second.sessions_max = Some(1);
    let refused = stores.sessions.insert(second.clone()).await;
    assert!(matches!(refused, Err(Error::SessionLimit { max: 1 })));
    appended(stores, append(tenant, first, vec![terminated("done")])).await;
    insert(stores, second).await;
}

pub(crate) async fn answers_a_repeated_key_with_the_same_session(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let keyed = |body| {
        let mut new = new_session(tenant);
        new.idempotency_key = Some(key("order-66", body));
        new
    };
    let first = insert(stores, keyed(1)).await;
    assert_eq!(stores.sessions.insert(keyed(1)).await.unwrap(), Inserted::Existing(first.clone()));
    assert_eq!(stores.sessions.find_created(tenant, &key("order-66", 1)).await.unwrap(), Some(first));
    assert!(matches!(stores.sessions.insert(keyed(2)).await, Err(Error::IdempotencyKeyReused)));
    let other_body = stores.sessions.find_created(tenant, &key("order-66", 2)).await;
    assert!(matches!(other_body, Err(Error::IdempotencyKeyReused)));
    assert_eq!(stores.sessions.find_created(tenant, &key("order-67", 1)).await.unwrap(), None);
    assert_eq!(stores.sessions.count_open(tenant).await.unwrap(), 1);
}

pub(crate) async fn makes_one_session_of_concurrent_requests_with_one_key(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let races = (0..8).map(|_| {
        let mut new = new_session(tenant);
        new.idempotency_key = Some(key("one", 1));
        stores.sessions.insert(new)
    });
    let outcomes = join_all(races).await;
    let made = outcomes.iter().filter(|outcome| matches!(outcome, Ok(Inserted::New { .. }))).count();
    let found = outcomes.iter().filter(|outcome| matches!(outcome, Ok(Inserted::Existing(_)))).count();
    assert_eq!((made, found), (1, 7), "{outcomes:?}");
    assert_eq!(stores.sessions.count_open(tenant).await.unwrap(), 1);
}

pub(crate) async fn repeats_a_key_at_the_limit(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let mut new = new_session(tenant);
    new.sessions_max = Some(1);
    new.idempotency_key = Some(key("last", 1));
    let first = insert(stores, new.clone()).await;
    new.id = SessionId::generate();
    assert_eq!(stores.sessions.insert(new.clone()).await.unwrap(), Inserted::Existing(first));
    new.idempotency_key = Some(key("one too many", 1));
    assert!(matches!(stores.sessions.insert(new.clone()).await, Err(Error::SessionLimit { max: 1 })));
    // A refused request leaves its key free.
    new.sessions_max = None;
    insert(stores, new).await;
}

pub(crate) async fn lists_in_pages_newest_first(stores: &Stores) {
    let [ours, theirs] = two_tenants(stores).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(session(stores, ours).await);
        session(stores, theirs).await;
    }
    ids.reverse();
    let page = async |after, limit| {
        let page = stores.sessions.list(ours, &Filter::default(), after, limit).await.unwrap();
        let next = page.next();
        (page.sessions.into_iter().map(|session| session.id).collect::<Vec<_>>(), next)
    };
    assert_eq!(page(None, 2).await, (ids[..2].to_vec(), Some(ids[1])));
    assert_eq!(page(Some(ids[1]), 2).await, (ids[2..4].to_vec(), Some(ids[3])));
    assert_eq!(page(Some(ids[2]), 2).await, (ids[3..].to_vec(), None), "none is behind a page that is full");
    assert_eq!(page(Some(ids[3]), 2).await, (ids[4..].to_vec(), None));
    assert_eq!(page(Some(ids[4]), 2).await, (vec![], None));
    assert_eq!(page(None, 100).await, (ids, None));
}

pub(crate) async fn lists_no_more_than_fits_a_page(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let large = |bytes: usize| {
        let mut new = new_session(tenant);
        new.agent.system_prompt = "x".repeat(bytes);
        new
    };
    let mut ids = Vec::new();
    // From the newest on, three begin before the page is full, one fills a page alone, and the last one is small.
    for bytes in [0, PAGE_BYTES as usize, 400_000, 400_000, 400_000] {
        ids.push(insert(stores, large(bytes)).await.id);
    }
    ids.reverse();
    let (mut pages, mut after) = (Vec::new(), None);
    loop {
        let page = stores.sessions.list(tenant, &Filter::default(), after, 100).await.unwrap();
        after = page.next();
        pages.push(page.sessions.into_iter().map(|session| session.id).collect::<Vec<_>>());
        if after.is_none() {
            break;
        }
    }
    assert_eq!(pages, [&ids[..3], &ids[3..4], &ids[4..]]);
}

pub(crate) async fn filters_by_state_and_labels(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let labelled = |team: &str, size: &str| {
        let mut new = new_session(tenant);
        new.labels = BTreeMap::from([("team".into(), team.into()), ("size".into(), size.into())]);
        new
    };
    let red = insert(stores, labelled("red", "s")).await.id;
    let big_red = insert(stores, labelled("red", "xl")).await.id;
    let blue = insert(stores, labelled("blue", "s")).await.id;
    appended(stores, append(tenant, red, vec![terminated("done")])).await;

    let found = async |states: &[SessionState], labels: &[(&str, &str)]| {
        let labels = labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        let filter = Filter { states: states.to_vec(), labels, ..Filter::default() };
        let sessions = stores.sessions.list(tenant, &filter, None, 10).await.unwrap().sessions;
        sessions.into_iter().map(|session| session.id).collect::<Vec<_>>()
    };
    assert_eq!(found(&[], &[("team", "red")]).await, [big_red, red]);
    assert_eq!(found(&[], &[("team", "red"), ("size", "xl")]).await, [big_red]);
    assert_eq!(found(&[], &[("team", "green")]).await, []);
    assert_eq!(found(&[SessionState::Ready], &[]).await, [blue, big_red]);
    assert_eq!(found(&[SessionState::Terminated, SessionState::Idle], &[("size", "s")]).await, [red]);
}

pub(crate) async fn bills_attempts_of_the_first_events(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let mut new = new_session(tenant);
    new.events = vec![event(created()), event(attempt("warm-up", Some(5)))];
    let session = insert(stores, new).await;
    assert_eq!((session.usage.attempts, session.usage.cost_nano_usd), (1, 5));
    assert_eq!(get(stores, tenant, session.id).await, session);
    assert_eq!(stores.usage.list(tenant, None, None, None, 10).await.unwrap().len(), 1);
}

pub(crate) async fn has_one_child_for_each_call_of_a_parent(stores: &Stores) {
    let [ours, theirs] = two_tenants(stores).await;
    let parent = insert(stores, new_session(ours)).await;
    let asked = (0..8).map(|_| stores.sessions.insert(new_child(&parent, "call")));
    let made: Vec<_> = join_all(asked).await.into_iter().map(Result::unwrap).collect();
    let ids: Vec<_> = made
        .iter()
        .map(|made| match made {
            Inserted::New { session, .. } => (true, session.id),
            Inserted::Existing(session) => (false, session.id),
        })
        .collect();
    assert_eq!(ids.iter().filter(|(is_new, _)| *is_new).count(), 1, "{ids:?}");
    let child = get(stores, ours, ids[0].1).await;
    assert!(ids.iter().all(|(_, id)| *id == child.id), "{ids:?}");
    assert_eq!(child.parent, new_child(&parent, "call").parent);
    let other = insert(stores, new_child(&parent, "another call")).await;
    let grandchild = insert(stores, new_child(&child, "call")).await;
    let above: Vec<_> = grandchild.parent.iter().flat_map(|parent| &parent.lineage).collect();
    assert_eq!(
        above.iter().map(|above| &above.session).collect::<Vec<_>>(),
        [&child.id.to_string(), &parent.id.to_string()]
    );

    assert_eq!(stores.sessions.child(ours, parent.id, "call").await.unwrap(), Some(child.clone()));
    assert_eq!(stores.sessions.child(ours, parent.id, "no call").await.unwrap(), None);
    assert_eq!(stores.sessions.child(theirs, parent.id, "call").await.unwrap(), None);
    let filter = Filter { parent: Some(parent.id), ..Filter::default() };
    let children = stores.sessions.list(ours, &filter, None, 10).await.unwrap().sessions;
    let mut expected = vec![child.id, other.id];
    expected.sort_unstable_by(|one, other| other.cmp(one));
    assert_eq!(children.into_iter().map(|child| child.id).collect::<Vec<_>>(), expected);
}

pub(crate) async fn makes_no_child_of_a_parent_that_has_ended(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let parent = insert(stores, new_session(tenant)).await;
    let child = insert(stores, new_child(&parent, "before")).await;
    appended(stores, append(tenant, parent.id, vec![terminated("done")])).await;
    let refused = stores.sessions.insert(new_child(&parent, "after")).await;
    assert!(matches!(refused, Err(Error::SessionTerminated { .. })), "{refused:?}");
    let found = stores.sessions.insert(new_child(&parent, "before")).await.unwrap();
    assert_eq!(found, Inserted::Existing(child), "one that was made is there");
}
