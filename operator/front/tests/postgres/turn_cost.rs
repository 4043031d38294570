//! What a turn costs: all that its beginning changes is one transaction, and so is all that its end changes.

use std::collections::BTreeSet;
use std::time::Duration;

use croft_front::events::log::{Append, Authority};
use croft_front::store::Stores;
use croft_front::turn::store::{Begin, Begun};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{SessionCheckpoint, SessionIdle, SessionRunning};
use croft_serve::Tasks;
use sqlx::AssertSqlSafe;

use crate::contract::fixtures::{append, attempt, said, session, tenant};
use crate::database::Database;

/// The transactions that wrote these rows: rows know.
async fn writers(database: &Database, rows: &[&str]) -> BTreeSet<String> {
    let all = rows.iter().map(|rows| format!("select xmin::text from {rows}")).collect::<Vec<_>>().join(" union ");
    sqlx::query_scalar(AssertSqlSafe(all)).fetch_all(&mut database.admin().await).await.unwrap().into_iter().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_begins_in_one_transaction_and_ends_in_one() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let tenant = tenant(&stores, "ours").await;
    let session = session(&stores, tenant).await;

    let message = append(tenant, session, vec![said("hello"), Kind::SessionRunning(SessionRunning {})]);
    let begin = Begin { message, holder: "front-0".into(), ttl: Duration::from_mins(1) };
    let Begun::New(opened) = stores.turns.begin(begin).await.unwrap() else { panic!("the lease is free") };
    let begun_by = writers(&database, &["sessions", "leases", "events where seq in (3, 4)"]).await;
    assert_eq!(begun_by.len(), 1);

    let kinds = vec![attempt("only", Some(5)), Kind::SessionIdle(SessionIdle::default())];
    let last = Append {
        authority: Authority::Lease { epoch: opened.epoch },
        checkpoint: Some(SessionCheckpoint::default()),
        input_seq: Some(3),
        ..append(tenant, session, kinds)
    };
    assert!(stores.turns.end(last).await.unwrap().released);
    let rows = ["sessions", "leases", "events where seq in (5, 6)", "checkpoints", "llm_usage_events"];
    let ended = writers(&database, &rows).await;
    assert_eq!(ended.len(), 1);
    assert_ne!(begun_by, ended);
    database.end().await;
}
