//! Idempotency keys are remembered for a day.

use croft_front::store::Stores;
use croft_proto::id::SessionId;
use croft_serve::Tasks;

use crate::contract::fixtures::{append, appended, insert, key, new_session, said, seqs, tenant};
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
