//! Idempotency keys are remembered for a day.

use croft_front::store::Stores;
use croft_proto::id::SessionId;
use croft_serve::Tasks;

use crate::contract::fixtures::{append, appended, insert, key, new_session, said, seqs, tenant, terminated};
use crate::database::{Database, execute};

#[tokio::test]
async fn a_key_is_free_again_after_a_day() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let tenant = tenant(&stores, "ours").await;
    let mut new = new_session(tenant);
    new.idempotency_key = Some(key("k", 1));
    let first = insert(&stores, new.clone()).await.id;
    let mut message = append(tenant, first, vec![said("hello")]);
    message.idempotency_key = Some(key("k", 1));
    appended(&stores, message.clone()).await;

    let a_day = "update idempotency_keys set use_time = use_time - interval '24 hours'";
    execute(&mut database.admin().await, a_day).await.unwrap();
    assert_eq!(stores.sessions.find_created(tenant, &key("k", 2)).await.unwrap(), None);
    assert_eq!(stores.events.find_sent(tenant, first, &key("k", 2)).await.unwrap(), None);
    // With another body, too: nothing is remembered.
    new.id = SessionId::generate();
    new.idempotency_key = Some(key("k", 2));
    let second = insert(&stores, new).await.id;
    assert_eq!(stores.sessions.find_created(tenant, &key("k", 2)).await.unwrap().unwrap().id, second);
    message.idempotency_key = Some(key("k", 2));
    assert_eq!(seqs(&appended(&stores, message).await), [4]);
    assert_eq!(stores.events.find_sent(tenant, first, &key("k", 2)).await.unwrap(), Some(4));
    database.end().await;
}

#[tokio::test]
async fn new_keys_drop_old_ones() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let tenant = tenant(&stores, "ours").await;
    let keyed = |name: &str| {
        let mut new = new_session(tenant);
        new.idempotency_key = Some(key(name, 1));
        new
    };
    for name in ["a", "b", "c"] {
        insert(&stores, keyed(name)).await;
    }
    let mut admin = database.admin().await;
    execute(&mut admin, "update idempotency_keys set use_time = use_time - interval '25 hours'").await.unwrap();
    for name in ["d", "e"] {
        insert(&stores, keyed(name)).await;
    }
    let left: Vec<String> =
        sqlx::query_scalar("select key from idempotency_keys order by key").fetch_all(&mut admin).await.unwrap();
    assert_eq!(left, ["d", "e"]);
    database.end().await;
}

/// Once, each slice of sessions that went looked through all keys that its tenant had made sessions with.
#[tokio::test]
async fn keys_of_sessions_that_go_are_found_without_looking_at_all() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let tenant = tenant(&stores, "ours").await;
    let mut new = new_session(tenant);
    new.idempotency_key = Some(key("k", 1));
    let old = insert(&stores, new).await.id;
    let mut message = append(tenant, old, vec![said("hello"), terminated("done")]);
    message.idempotency_key = Some(key("k", 1));
    appended(&stores, message).await;
    let mut admin = database.admin().await;
    let others = format!(
        "insert into idempotency_keys (tenant_id, scope, key, body_hash, session_id, first_seq)
            select '{tenant}', 'sessions', number, sha256('x'), gen_random_uuid(), 1 from generate_series(1, 20000) number;
        insert into idempotency_keys (tenant_id, scope, key, body_hash, session_id, first_seq)
            select '{tenant}', 'sessions/' || gen_random_uuid(), number, sha256('x'), gen_random_uuid(), 1
            from generate_series(1, 20000) number;
        analyze idempotency_keys"
    );
    execute(&mut admin, &others).await.unwrap();
    let erases = format!("begin; set local croft.tenant = '{tenant}'; select croft_erase_ended(now(), 10, 10)");
    execute(&mut admin, &erases).await.unwrap();
    let read: i64 = sqlx::query_scalar(
        "select seq_tup_read + idx_tup_fetch from pg_stat_xact_user_tables where relname = 'idempotency_keys'",
    )
    .fetch_one(&mut admin)
    .await
    .unwrap();
    assert!((2..100).contains(&read), "{read} rows were read");
    let left: i64 = sqlx::query_scalar("select count(*) from idempotency_keys").fetch_one(&mut admin).await.unwrap();
    assert_eq!(left, 40_000);
    execute(&mut admin, "commit").await.unwrap();
    database.end().await;
}
