//! How a tenant's rows are found that are to be erased.

use croft_front::store::Stores;
use croft_serve::Tasks;
use sqlx::PgConnection;

use crate::contract::fixtures::{append, appended, session, terminated, two_tenants};
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
