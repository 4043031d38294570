//! How a tenant's rows are found that are to be erased.

use croft_front::Error;
use croft_front::audit::Place;
use croft_front::session::retention::store::Erased;
use croft_front::store::Stores;
use croft_serve::Tasks;
use sqlx::PgConnection;

use crate::contract::audit::{action, intact, verified};
use crate::contract::fixtures::{append, appended, at, session, terminated, two_tenants};
use crate::database::{Database, FRONT_ROLE, execute};

/// How often the table was read from its beginning.
async fn whole_reads(admin: &mut PgConnection) -> i64 {
    sqlx::query_scalar("select seq_scan from pg_stat_user_tables where relname = 'events'")
        .fetch_one(admin)
        .await
        .unwrap()
}

/// Each batch read through all that those before had deleted, the more of it the further it got, until it took longer than it may.
#[tokio::test]
async fn a_tenant_that_has_much_of_a_table_is_erased_by_its_key() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let [ours, theirs] = two_tenants(&stores).await;
    let mut admin = database.admin().await;
    for (tenant, events) in [(ours, 6_000), (theirs, 6_000)] {
        let id = session(&stores, tenant).await;
        appended(&stores, append(tenant, id, vec![terminated("gone")])).await;
        let many = format!(
            "insert into events (tenant_id, session_id, seq, kind, create_time, payload)
            select '{tenant}', '{id}', 100 + n, 'x', now(), decode(repeat('00', 900), 'hex') from generate_series(1, {events}) n"
        );
        execute(&mut admin, &many).await.unwrap();
    }
    execute(&mut admin, "analyze events").await.unwrap();
    stores.removal.begin(ours, "ours").await.unwrap();
    let rows = stores.removal.count_rows(ours, 10_000).await.unwrap();
    let before = whole_reads(&mut admin).await;
    let erases = format!(
        "begin; set local role croft_request; set local croft.tenant = '{ours}';
        select croft_erase_tenant(500), croft_count_tenant_rows(500);
        reset role; select pg_stat_force_next_flush(); commit"
    );
    let mut front = database.login(FRONT_ROLE).await;
    for _ in 0..3 {
        execute(&mut front, &erases).await.unwrap();
    }
    assert_eq!(stores.removal.count_rows(ours, 10_000).await.unwrap(), rows - 1_500, "it erases");
    assert_eq!(whole_reads(&mut admin).await - before, 0);
    database.end().await;
}

/// All that a call had erased was taken back, and each call began anew with half as much.
#[tokio::test]
async fn a_held_audit_log_takes_back_nothing_that_was_erased() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let [ours, _] = two_tenants(&stores).await;
    let id = session(&stores, ours).await;
    appended(&stores, append(ours, id, vec![terminated("done")])).await;
    let mut holder = database.admin().await;
    let head = format!("insert into audit_heads values ('{ours}', 0, decode(repeat('00', 32), 'hex'))");
    execute(&mut holder, &head).await.unwrap();
    let holds = format!("begin; select from audit_heads where tenant_id = '{ours}' for update");
    execute(&mut holder, &holds).await.unwrap();
    let slice = stores.retention.erase_ended(ours, at(9), 10, 100).await.unwrap();
    assert_eq!(slice, Erased { sessions: 0, events: 3 });
    assert!(stores.sessions.get(ours, id).await.unwrap().is_none(), "it is out of sight");
    execute(&mut holder, "commit").await.unwrap();
    assert_eq!(stores.retention.erase_ended(ours, at(9), 10, 100).await.unwrap(), Erased { sessions: 1, events: 0 });
    let records = stores.audit.list(ours, 0, 10).await.unwrap();
    let told: Vec<_> = records.iter().map(|record| (&*record.actor, &*record.action, &*record.resource)).collect();
    assert_eq!(told, [("front", "session.erase", &*format!("sessions/{id}"))]);
    assert_eq!(verified(&stores, ours).await, intact(1));
    database.end().await;
}

#[tokio::test]
async fn nothing_is_erased_where_the_audit_log_takes_no_record_of_it() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let [ours, _] = two_tenants(&stores).await;
    let id = session(&stores, ours).await;
    appended(&stores, append(ours, id, vec![terminated("done")])).await;
    stores.audit.append(Place::start(), vec![action(ours, "a"), action(ours, "b")]).await.unwrap();
    let mut admin = database.admin().await;
    execute(&mut admin, &format!("update audit_heads set number = 1 where tenant_id = '{ours}'")).await.unwrap();
    let refused = stores.retention.erase_ended(ours, at(9), 10, 100).await;
    assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    execute(&mut admin, &format!("update audit_heads set number = 2 where tenant_id = '{ours}'")).await.unwrap();
    assert_eq!(stores.retention.erase_ended(ours, at(9), 10, 100).await.unwrap(), Erased { sessions: 1, events: 3 });
    database.end().await;
}
