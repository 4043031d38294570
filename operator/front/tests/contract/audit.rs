//! What every `AuditStore` promises.

use croft_front::audit::Action;
use croft_front::store::Stores;
use croft_proto::id::TenantId;
use croft_proto::v1::VerifyAuditLogResponse;
use futures::future::join_all;

use super::fixtures::two_tenants;

pub(crate) fn action(tenant: TenantId, resource: &str) -> Action {
    Action {
        tenant,
        actor: "api-key/ck_1a2b3c4d".into(),
        action: "session.create".into(),
        resource: resource.into(),
        outcome: "ok".into(),
    }
}

pub(crate) fn intact(records_verified: u64) -> VerifyAuditLogResponse {
    VerifyAuditLogResponse { intact: true, records_verified, first_broken_number: 0 }
}

pub(crate) async fn keeps_tenants_apart(stores: &Stores) {
    let [ours, theirs] = two_tenants(stores).await;
    stores.audit.append(vec![action(ours, "sessions/1")]).await.unwrap();
    assert_eq!(stores.audit.list(theirs, 0, 10).await.unwrap(), []);
    assert_eq!(stores.audit.verify(theirs).await.unwrap(), intact(0));
}

pub(crate) async fn numbers_and_chains_each_tenant(stores: &Stores) {
    let [ours, theirs] = two_tenants(stores).await;
    let mixed = [(ours, "a"), (theirs, "x"), (ours, "b ⛵"), (ours, "c"), (theirs, "y")];
    stores.audit.append(mixed.map(|(tenant, resource)| action(tenant, resource)).to_vec()).await.unwrap();
    stores.audit.append(vec![action(ours, "d")]).await.unwrap();

    let records = stores.audit.list(ours, 0, 10).await.unwrap();
    let told: Vec<_> = records.iter().map(|record| (record.number, &*record.resource)).collect();
    assert_eq!(told, [(1, "a"), (2, "b ⛵"), (3, "c"), (4, "d")]);
    let first = &records[0];
    assert_eq!((&*first.actor, &*first.action, &*first.outcome), ("api-key/ck_1a2b3c4d", "session.create", "ok"));
    assert!(first.create_time.is_some_and(|time| time.seconds > 1_700_000_000));
    assert!(records.iter().all(|record| record.hash.len() == 64));
    assert_eq!(stores.audit.verify(ours).await.unwrap(), intact(4));
    assert_eq!(stores.audit.verify(theirs).await.unwrap(), intact(2));
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
        stores.audit.append(batch)
    });
    for outcome in join_all(writers).await {
        outcome.unwrap();
    }
    assert_eq!(stores.audit.verify(ours).await.unwrap(), intact(20));
    assert_eq!(stores.audit.verify(theirs).await.unwrap(), intact(10));
}

pub(crate) async fn lists_in_pages(stores: &Stores) {
    let [ours, _] = two_tenants(stores).await;
    stores.audit.append((1..=5).map(|number| action(ours, &number.to_string())).collect()).await.unwrap();
    let page = async |after| {
        let records = stores.audit.list(ours, after, 2).await.unwrap();
        records.into_iter().map(|record| record.number).collect::<Vec<_>>()
    };
    assert_eq!((page(0).await, page(2).await, page(4).await, page(5).await), (vec![1, 2], vec![3, 4], vec![5], vec![]));
}

pub(crate) async fn finds_an_empty_log_intact(stores: &Stores) {
    stores.audit.append(Vec::new()).await.unwrap();
    assert_eq!(stores.audit.verify(TenantId::generate()).await.unwrap(), intact(0));
}
