//! A tenant's rows, from the other side: SQL by the front's own login, which tries to get past its tenant.

use std::collections::BTreeSet;

use croft_front::audit::Place;
use croft_front::store::Stores;
use croft_proto::id::TenantId;
use croft_serve::Tasks;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::contract::audit::action;
use crate::contract::fixtures::{append, appended, attempt, key, new_session, said, two_tenants};
use crate::database::{Database, FRONT_ROLE, execute};

/// Every table with rows of tenants, in an order in which they may be filled.
const TABLES: [&str; 13] = [
    "tenants",
    "api_keys",
    "sessions",
    "open_sessions",
    "events",
    "checkpoints",
    "leases",
    "idempotency_keys",
    "llm_usage_events",
    "budgets",
    "usage_counters",
    "budget_alerts",
    "audit_log",
];

/// A tenant with a row in every table.
async fn full(stores: &Stores, database: &Database, tenant: TenantId, prefix: &str) {
    let mut new = new_session(tenant);
    new.idempotency_key = Some(key("k", 1));
    let session = new.id;
    stores.sessions.insert(new).await.unwrap();
    stores.leases.acquire(tenant, session, "front-0", std::time::Duration::from_mins(1)).await.unwrap();
    let mut message = append(tenant, session, vec![said("secret"), attempt("a", Some(1))]);
    message.checkpoint = Some(croft_proto::v1::SessionCheckpoint::default());
    appended(stores, message).await;
    stores.audit.append(Place::start(), vec![action(tenant, "sessions/1")]).await.unwrap();
    let rest = format!(
        "insert into api_keys values ('{prefix}', '{tenant}', sha256('x'));
        insert into budgets values ('{tenant}', 'tenant', '', 1);
        insert into budget_alerts values ('{tenant}', 'tenant', '', 'life', 'tokens', 1, 50, 1, gen_random_uuid())"
    );
    execute(&mut database.admin().await, &rest).await.unwrap();
}

async fn count(connection: &mut PgConnection, table: &str) -> i64 {
    let sql = AssertSqlSafe(format!("select count(*) from {table}"));
    sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
}

fn as_request(tenant: TenantId) -> String {
    format!("begin; set local role croft_request; set local croft.tenant = '{tenant}'")
}

#[tokio::test]
async fn every_table_of_tenants_forces_row_security() {
    let database = Database::migrated().await;
    let tables: Vec<(String, bool, bool)> = sqlx::query_as(
        "select c.relname::text, c.relrowsecurity, c.relforcerowsecurity from pg_class c
        join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id'
        where c.relkind = 'r' and c.relnamespace = 'public'::regnamespace",
    )
    .fetch_all(&mut database.admin().await)
    .await
    .unwrap();
    let names: BTreeSet<_> = tables.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, TABLES.into_iter().chain(["audit_heads"]).collect());
    for (name, enabled, forced) in &tables {
        assert!(*enabled && *forced, "{name}");
    }
    database.end().await;
}

#[tokio::test]
async fn a_transaction_sees_its_tenant_alone() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let [ours, theirs] = two_tenants(&stores).await;
    full(&stores, &database, ours, "00000001").await;
    full(&stores, &database, theirs, "00000002").await;

    let mut front = database.login(FRONT_ROLE).await;
    let mut admin = database.admin().await;
    for table in TABLES.into_iter().chain(["audit_heads"]) {
        let all = count(&mut admin, table).await;
        execute(&mut front, &as_request(ours)).await.unwrap();
        let seen = count(&mut front, table).await;
        assert!(seen > 0 && seen < all, "{table}: {seen} of {all}");
        let foreign = AssertSqlSafe(format!("select count(*) from {table} where tenant_id = '{theirs}'"));
        assert_eq!(sqlx::query_scalar::<_, i64>(foreign).fetch_one(&mut front).await.unwrap(), 0, "{table}");
        execute(&mut front, "rollback").await.unwrap();
    }
    database.end().await;
}

#[tokio::test]
async fn without_a_tenant_there_is_nothing() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let [ours, _] = two_tenants(&stores).await;
    full(&stores, &database, ours, "00000001").await;

    let mut front = database.login(FRONT_ROLE).await;
    for table in TABLES {
        execute(&mut front, "begin; set local role croft_request").await.unwrap();
        assert_eq!(count(&mut front, table).await, 0, "{table}");
        execute(&mut front, "rollback").await.unwrap();
        // Nor is there anything left of the tenant of an earlier transaction.
        execute(&mut front, &as_request(ours)).await.unwrap();
        execute(&mut front, "commit; begin; set local role croft_request").await.unwrap();
        assert_eq!(count(&mut front, table).await, 0, "{table}");
        execute(&mut front, "rollback").await.unwrap();
        // The login itself may not even look.
        let refused = execute(&mut front, &format!("select from {table}")).await.unwrap_err();
        assert!(refused.to_string().contains("permission denied"), "{table}: {refused}");
    }
    database.end().await;
}

#[tokio::test]
async fn nothing_is_written_across_tenants() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let [ours, theirs] = two_tenants(&stores).await;
    full(&stores, &database, ours, "00000001").await;
    full(&stores, &database, theirs, "00000002").await;
    let mut front = database.login(FRONT_ROLE).await;

    for table in ["sessions", "checkpoints", "leases", "idempotency_keys", "budgets", "api_keys"] {
        let moved = format!("{}; update {table} set tenant_id = '{theirs}'", as_request(ours));
        let refused = execute(&mut front, &moved).await.unwrap_err();
        assert!(refused.to_string().contains("row-level security"), "{table}: {refused}");
        execute(&mut front, "rollback").await.unwrap();
        let changed = format!("update {table} set tenant_id = tenant_id where tenant_id = '{theirs}'");
        execute(&mut front, &as_request(ours)).await.unwrap();
        assert_eq!(execute(&mut front, &changed).await.unwrap(), 0, "{table}");
        execute(&mut front, "rollback").await.unwrap();
    }
    let inserts = [
        format!("insert into events values ('{theirs}', gen_random_uuid(), 1, 'error', null, now(), '')"),
        format!("insert into budgets values ('{theirs}', 'agent', 'x', 1)"),
        format!("insert into api_keys values ('0badcafe', '{theirs}', sha256('x'))"),
        "insert into tenants values (gen_random_uuid(), 'mine')".to_owned(),
    ];
    for insert in inserts {
        let refused = execute(&mut front, &format!("{}; {insert}", as_request(ours))).await.unwrap_err();
        assert!(refused.to_string().contains("row-level security"), "{insert}: {refused}");
        execute(&mut front, "rollback").await.unwrap();
    }
    // Nor is anything of a tenant erased that is not being removed.
    for call in ["croft_erase_sessions(9)", "croft_erase_tenant(9)", "croft_erase_credentials()"] {
        let refused = execute(&mut front, &format!("{}; select {call}", as_request(ours))).await.unwrap_err();
        assert!(refused.to_string().contains("not being removed"), "{call}: {refused}");
        execute(&mut front, "rollback").await.unwrap();
    }
    // What has happened stays as it happened.
    for statement in [
        "update events set kind = 'error'",
        "delete from events",
        "delete from llm_usage_events",
        "update llm_usage_events set cost_nano_usd = 0",
        "delete from sessions",
        "truncate audit_log",
    ] {
        let refused = execute(&mut front, &format!("{}; {statement}", as_request(ours))).await.unwrap_err();
        assert!(refused.to_string().contains("permission denied"), "{statement}: {refused}");
        execute(&mut front, "rollback").await.unwrap();
    }
    database.end().await;
}

#[tokio::test]
async fn the_writer_inserts_for_any_tenant_and_reads_nothing() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let [ours, theirs] = two_tenants(&stores).await;
    full(&stores, &database, ours, "00000001").await;
    let mut front = database.login(FRONT_ROLE).await;

    for table in TABLES.into_iter().chain(["audit_heads"]) {
        for statement in [format!("select from {table}"), format!("delete from {table}")] {
            let attempt = format!("begin; set local role croft_writer; set local croft.tenant = '{ours}'; {statement}");
            let refused = execute(&mut front, &attempt).await.unwrap_err();
            assert!(refused.to_string().contains("permission denied"), "{statement}: {refused}");
            execute(&mut front, "rollback").await.unwrap();
        }
    }
    execute(&mut front, "begin; set local role croft_writer").await.unwrap();
    for tenant in [ours, theirs] {
        let insert = format!("insert into events values ('{tenant}', gen_random_uuid(), 1, 'error', null, now(), '')");
        assert_eq!(execute(&mut front, &insert).await.unwrap(), 1);
    }
    // Neither numbers nor hashes of the audit log are for it to choose.
    let forged = format!(
        "insert into audit_log (tenant_id, number, actor, action, resource, outcome) values ('{ours}', 9, '', '', '', '')"
    );
    let refused = execute(&mut front, &forged).await.unwrap_err();
    assert!(refused.to_string().contains("permission denied"), "{refused}");
    database.end().await;
}

#[tokio::test]
async fn looks_across_tenants_tell_ids_alone() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let [ours, _] = two_tenants(&stores).await;
    full(&stores, &database, ours, "00000001").await;
    execute(&mut database.admin().await, "update leases set expire_time = now() - interval '1 hour'").await.unwrap();
    let mut front = database.login(FRONT_ROLE).await;
    let refused = execute(&mut front, "select croft_abandoned_leases(1)").await.unwrap_err();
    assert!(refused.to_string().contains("permission denied"), "{refused}");
    let columns: Vec<String> =
        sqlx::query_scalar("select unnest(proargnames)::text from pg_proc where proname = 'croft_abandoned_leases'")
            .fetch_all(&mut front)
            .await
            .unwrap();
    assert_eq!(columns, ["rows_max", "tenant_id", "session_id"]);
    assert_eq!(stores.leases.abandoned(10).await.unwrap().len(), 1);
    let refused = execute(&mut front, "select croft_erasing_tenants(1)").await.unwrap_err();
    assert!(refused.to_string().contains("permission denied"), "{refused}");
    for call in [
        "croft_due_sessions(now(), 1)",
        "croft_changed_sessions(0, gen_random_uuid(), 1)",
        "croft_session_changes(0, '{}', 0, gen_random_uuid(), 1)",
    ] {
        let refused = execute(&mut front, &format!("select {call}")).await.unwrap_err();
        assert!(refused.to_string().contains("permission denied"), "{refused}");
        // Ids; and a number that orders changes and says nothing of them.
        let name = call.split('(').next().unwrap();
        let columns: Vec<String> = sqlx::query_scalar(
            "select parameter_name::text from information_schema.parameters
            where specific_name like $1 and parameter_mode = 'OUT' order by ordinal_position",
        )
        .bind(format!("{name}%"))
        .fetch_all(&mut database.admin().await)
        .await
        .unwrap();
        assert_eq!(columns[..2], ["tenant_id", "session_id"]);
        assert!(columns[2..].iter().all(|column| column == "change_number"), "{columns:?}");
    }
    // The setting by which those functions see rows opens nothing to anyone but the owner.
    execute(&mut front, "begin; set local role croft_request; set local croft.across = 'ids'").await.unwrap();
    assert_eq!(count(&mut front, "sessions").await, 0);
    database.end().await;
}
