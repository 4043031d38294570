//! The audit log only grows, and whoever gets past that is found out.

use croft_front::store::Stores;
use croft_proto::id::TenantId;
use croft_proto::v1::VerifyAuditLogResponse;
use croft_serve::Tasks;

use crate::contract::audit::{action, intact};
use crate::contract::fixtures::two_tenants;
use crate::database::{Database, FRONT_ROLE, execute};

fn broken_at(number: u64) -> VerifyAuditLogResponse {
    VerifyAuditLogResponse { intact: false, records_verified: number - 1, first_broken_number: number }
}

async fn five_records(stores: &Stores) -> TenantId {
    let [ours, theirs] = two_tenants(stores).await;
    let batch = (1..=5).flat_map(|number| [action(ours, &number.to_string()), action(theirs, "x")]);
    stores.audit.append(batch.collect()).await.unwrap();
    ours
}

#[tokio::test]
async fn nobody_changes_a_record() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let tenant = five_records(&stores).await;
    let (mut front, mut owner) = (database.login(FRONT_ROLE).await, database.admin().await);
    for statement in ["update audit_log set outcome = 'ok'", "delete from audit_log", "truncate audit_log"] {
        for role in ["croft_request", "croft_writer"] {
            let attempt = format!("begin; set local role {role}; set local croft.tenant = '{tenant}'; {statement}");
            let refused = execute(&mut front, &attempt).await.unwrap_err();
            assert!(refused.to_string().contains("permission denied"), "{role}, {statement}: {refused}");
            execute(&mut front, "rollback").await.unwrap();
        }
        let refused = execute(&mut owner, statement).await.unwrap_err();
        assert!(refused.to_string().contains("the audit log only grows"), "{statement}: {refused}");
    }
    assert_eq!(stores.audit.verify(tenant).await.unwrap(), intact(5));
    database.end().await;
}

#[tokio::test]
async fn a_changed_record_is_found_where_it_was_changed() {
    // A superuser who turns the triggers off, and what verification says then.
    let cases = [
        ("update audit_log set resource = 'sessions/0' where number = 3 and tenant_id = '$'", 3),
        ("update audit_log set create_time = create_time + interval '1 microsecond' where number = 1 and tenant_id = '$'", 1),
        ("update audit_log set hash = sha256('x') where number = 2 and tenant_id = '$'", 2),
        ("delete from audit_log where number = 4 and tenant_id = '$'", 4),
        ("delete from audit_log where number = 5 and tenant_id = '$'", 5),
        ("delete from audit_log where tenant_id = '$'", 1),
        ("delete from audit_heads where tenant_id = '$'", 6),
        ("insert into audit_log select tenant_id, 6, create_time, actor, action, resource, outcome, hash from audit_log
            where number = 5 and tenant_id = '$'; update audit_heads set number = 6 where tenant_id = '$'", 6),
    ];
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let mut admin = database.admin().await;
    for (statement, number) in cases {
        let tenant = five_records(&stores).await;
        let tampering = statement.replace('$', &tenant.to_string());
        execute(&mut admin, &format!("set session_replication_role = replica; {tampering}")).await.unwrap();
        assert_eq!(stores.audit.verify(tenant).await.unwrap(), broken_at(number), "{statement}");
    }
    database.end().await;
}

#[tokio::test]
async fn a_long_log_is_verified_in_pages() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let [ours, _] = two_tenants(&stores).await;
    for _ in 0..4 {
        stores.audit.append((0..500).map(|number| action(ours, &number.to_string())).collect()).await.unwrap();
    }
    assert_eq!(stores.audit.verify(ours).await.unwrap(), intact(2_000));
    stores.audit.append(vec![action(ours, "one more")]).await.unwrap();
    assert_eq!(stores.audit.verify(ours).await.unwrap(), intact(2_001));
    database.end().await;
}
