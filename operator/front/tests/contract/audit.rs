//! What every `AuditStore` promises.

use croft_front::Error;
use croft_front::audit::{Action, Known, Place};
use croft_front::store::Stores;
use croft_proto::Timestamp;
use croft_proto::id::TenantId;
use croft_proto::v1::VerifyAuditLogResponse;
use futures::future::join_all;

use super::fixtures::two_tenants;

/// When whatever is recorded here was done.
const ACT_MICROS: i64 = 1_700_000_000_123_456;

pub(crate) fn action(tenant: TenantId, resource: &str) -> Action {
    Action {
        tenant,
        actor: "api-key/ck_1a2b3c4d".into(),
        action: "session.create".into(),
        resource: resource.into(),
        outcome: "ok".into(),
        act_micros: Some(ACT_MICROS),
    }
}

pub(crate) fn intact(records_verified: u64) -> VerifyAuditLogResponse {
    VerifyAuditLogResponse { intact: true, records_verified, ..VerifyAuditLogResponse::default() }
}

pub(crate) fn broken_at(number: u64) -> VerifyAuditLogResponse {
    VerifyAuditLogResponse { records_verified: number - 1, first_broken_number: number, ..Default::default() }
}

/// What a verification comes to, but for the hash, which is another each time.
pub(crate) async fn verified(stores: &Stores, tenant: TenantId) -> VerifyAuditLogResponse {
    verified_with(stores, tenant, None).await
}

pub(crate) async fn verified_with(stores: &Stores, tenant: TenantId, known: Option<Known>) -> VerifyAuditLogResponse {
    VerifyAuditLogResponse { last_hash: String::new(), ..stores.audit.verify(tenant, known).await.unwrap() }
}

/// What a verification came to, to be kept.
pub(crate) async fn known(stores: &Stores, tenant: TenantId) -> Known {
    let VerifyAuditLogResponse { intact, records_verified, last_hash, .. } =
        stores.audit.verify(tenant, None).await.unwrap();
    assert!(intact);
    let hash = hex::decode(last_hash).unwrap().try_into().unwrap();
    Known { number: records_verified, hash }
}

pub(crate) async fn keeps_tenants_apart(stores: &Stores) {
    let [ours, theirs] = two_tenants(stores).await;
    stores.audit.append(Place::start(), vec![action(ours, "sessions/1")]).await.unwrap();
    assert_eq!(stores.audit.list(theirs, 0, 10).await.unwrap(), []);
    assert_eq!(verified(stores, theirs).await, intact(0));
}

pub(crate) async fn numbers_and_chains_each_tenant(stores: &Stores) {
    let [ours, theirs] = two_tenants(stores).await;
    let mixed = [(ours, "a"), (theirs, "x"), (ours, "b ⛵"), (ours, "c"), (theirs, "y")];
    stores
        .audit
        .append(Place::start(), mixed.map(|(tenant, resource)| action(tenant, resource)).to_vec())
        .await
        .unwrap();
    stores.audit.append(Place::start(), vec![action(ours, "d")]).await.unwrap();

    let records = stores.audit.list(ours, 0, 10).await.unwrap();
    let told: Vec<_> = records.iter().map(|record| (record.number, &*record.resource)).collect();
    assert_eq!(told, [(1, "a"), (2, "b ⛵"), (3, "c"), (4, "d")]);
    let first = &records[0];
    assert_eq!((&*first.actor, &*first.action, &*first.outcome), ("api-key/ck_1a2b3c4d", "session.create", "ok"));
    assert!(first.create_time.is_some_and(|time| time.seconds > 1_700_000_000));
    assert!(records.iter().all(|record| record.hash.len() == 64));
    assert_eq!(verified(stores, ours).await, intact(4));
    assert_eq!(verified(stores, theirs).await, intact(2));
}

/// A record waits for a database that is away, for as long as it takes.
pub(crate) async fn tells_when_it_was_done_and_when_it_was_stored(stores: &Stores) {
    let [ours, _] = two_tenants(stores).await;
    let untold = Action { act_micros: None, ..action(ours, "untold") };
    stores.audit.append(Place::start(), vec![action(ours, "told"), untold]).await.unwrap();
    let records = stores.audit.list(ours, 0, 10).await.unwrap();
    let told = Timestamp { seconds: 1_700_000_000, nanos: 123_456_000 };
    assert_eq!(records.iter().map(|record| record.act_time).collect::<Vec<_>>(), [Some(told), None]);
    assert!(records.iter().all(|record| record.create_time.is_some_and(|stored| stored.seconds > told.seconds)));
    let beyond = Action { act_micros: Some((1 << 53) + 1), ..action(ours, "beyond") };
    let refused = stores.audit.append(Place::start(), vec![beyond]).await;
    assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    assert_eq!(verified(stores, ours).await, intact(2));
}

pub(crate) async fn tells_up_to_where_a_journal_was_stored(stores: &Stores) {
    let [ours, _] = two_tenants(stores).await;
    let place = Place::start();
    let batch = |records| vec![action(ours, "a"); records];
    for (first, records, before) in [(1, 2, 0), (2, 2, 2), (1, 1, 3), (6, 1, 3), (7, 1, 6)] {
        assert_eq!(stores.audit.append(place.behind(first - 1), batch(records)).await.unwrap(), before, "{first}");
    }
    assert_eq!(verified(stores, ours).await, intact(5));
}

pub(crate) async fn keeps_its_chain_under_concurrent_writers(stores: &Stores) {
    let [ours, theirs] = two_tenants(stores).await;
    let writers = (0..10).map(|writer| {
        // In opposite orders, which would deadlock writers that lock in the order of the batch.
        let mut batch =
            vec![action(ours, &format!("{writer}/1")), action(theirs, "x"), action(ours, &format!("{writer}/2"))];
        if writer % 2 == 0 {
            batch.rotate_left(1);
        }
        stores.audit.append(Place::start(), batch)
    });
    for outcome in join_all(writers).await {
        outcome.unwrap();
    }
    assert_eq!(verified(stores, ours).await, intact(20));
    assert_eq!(verified(stores, theirs).await, intact(10));
}

pub(crate) async fn lists_in_pages(stores: &Stores) {
    let [ours, _] = two_tenants(stores).await;
    stores
        .audit
        .append(Place::start(), (1..=5).map(|number| action(ours, &number.to_string())).collect())
        .await
        .unwrap();
    let page = async |after| {
        let records = stores.audit.list(ours, after, 2).await.unwrap();
        records.into_iter().map(|record| record.number).collect::<Vec<_>>()
    };
    assert_eq!((page(0).await, page(2).await, page(4).await, page(5).await), (vec![1, 2], vec![3, 4], vec![5], vec![]));
}

pub(crate) async fn stores_each_record_of_a_journal_once(stores: &Stores) {
    let [ours, theirs] = two_tenants(stores).await;
    let all = [(ours, "1"), (theirs, "2"), (ours, "3"), (ours, "4"), (theirs, "5")];
    let all = all.map(|(tenant, resource)| action(tenant, resource));
    let place = Place::start();
    // Again, as after a commit that was not heard of, and in other batches, as by the next process.
    for (first, last) in [(1, 3), (1, 3), (1, 2), (3, 4), (2, 5), (1, 5), (5, 5)] {
        stores.audit.append(place.behind(first - 1), all[first - 1..last].to_vec()).await.unwrap();
    }
    let told = async |tenant| {
        let records = stores.audit.list(tenant, 0, 10).await.unwrap();
        records.into_iter().map(|record| record.resource).collect::<Vec<_>>()
    };
    assert_eq!(told(ours).await, ["1", "3", "4"]);
    assert_eq!(told(theirs).await, ["2", "5"]);
    // Another journal has the same numbers.
    stores.audit.append(Place::start(), vec![action(ours, "1")]).await.unwrap();
    assert_eq!(told(ours).await, ["1", "3", "4", "1"]);
    assert_eq!(verified(stores, ours).await, intact(4));
}

pub(crate) async fn comes_by_what_is_known(stores: &Stores) {
    let [ours, theirs] = two_tenants(stores).await;
    let batch = |tenant| ["a", "b", "c"].map(|resource| action(tenant, resource)).to_vec();
    stores.audit.append(Place::start(), batch(ours)).await.unwrap();
    let kept = known(stores, ours).await;
    assert_eq!(hex::encode(kept.hash), stores.audit.list(ours, 2, 1).await.unwrap()[0].hash);
    assert_eq!(verified_with(stores, ours, Some(kept)).await, intact(3));
    stores.audit.append(Place::start(), batch(ours)).await.unwrap();
    assert_eq!(verified_with(stores, ours, Some(kept)).await, intact(6));
    // Another log than it was: the same number of records, and fewer.
    stores.audit.append(Place::start(), batch(theirs)).await.unwrap();
    assert_eq!(verified_with(stores, theirs, Some(kept)).await, broken_at(3));
    let longer = Known { number: 7, ..kept };
    assert_eq!(verified_with(stores, ours, Some(longer)).await, broken_at(7));
    assert_eq!(verified_with(stores, TenantId::generate(), Some(kept)).await, broken_at(1));
}

pub(crate) async fn finds_an_empty_log_intact(stores: &Stores) {
    stores.audit.append(Place::start(), Vec::new()).await.unwrap();
    assert_eq!(verified(stores, TenantId::generate()).await, intact(0));
}
