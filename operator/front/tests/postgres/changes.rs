//! Changes of sessions have the numbers of their transactions: those of a database that was put back on another server, and of transactions
//! that take long.

use croft_front::reprice_command::{Choice, reprice};
use croft_front::session::across::Horizon;
use croft_front::store::Stores;
use croft_proto::id::SessionId;
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::contract::fixtures::{append, appended, attempt, session, tenant, terminated};
use crate::database::execute;
use crate::ground;

async fn changed(stores: &Stores, since: &Horizon) -> Vec<SessionId> {
    let changed = stores.across.changed(since, (0, SessionId(Uuid::nil())), 10).await.unwrap();
    changed.into_iter().map(|changed| changed.session).collect()
}

/// Once, every session that there was had changed at each look, until the counter of transactions had come as far as the old server's.
#[tokio::test]
async fn changes_of_before_are_not_told_and_those_since_are() {
    let ground = ground().await;
    let (stores, mut admin) = (&ground.stores, ground.database.admin().await);
    let tenant = tenant(stores, "ours").await;
    let [restored, other] = [session(stores, tenant).await, session(stores, tenant).await];
    execute(&mut admin, "update sessions set change_number = 1e15").await.unwrap();
    let horizon = stores.across.horizon().await.unwrap();
    assert_eq!(changed(stores, &horizon).await, []);
    appended(stores, append(tenant, restored, vec![terminated("done")])).await;
    assert_eq!(changed(stores, &horizon).await, [restored]);
    appended(stores, append(tenant, other, vec![terminated("done")])).await;
    assert_eq!(changed(stores, &horizon).await, [restored, other]);

    // And to fronts of the release before this one, which ask for what comes behind a number.
    execute(&mut admin, "update sessions set change_number = 1e15").await.unwrap();
    let ask = format!("select count(*) from croft_changed_sessions({}, gen_random_uuid(), 10)", horizon.next);
    let told: i64 = sqlx::query_scalar(AssertSqlSafe(ask)).fetch_one(&mut admin).await.unwrap();
    assert_eq!(told, 0);
    ground.end().await;
}

/// Once, the operator went on telling what a session had cost before.
#[tokio::test]
async fn what_a_session_costs_anew_is_told() {
    let ground = ground().await;
    let (stores, mut admin) = (&ground.stores, ground.database.admin().await);
    let tenant = tenant(stores, "ours").await;
    let [unpriced, priced] = [session(stores, tenant).await, session(stores, tenant).await];
    appended(stores, append(tenant, unpriced, vec![attempt("a", None), terminated("done")])).await;
    appended(stores, append(tenant, priced, vec![attempt("b", Some(7)), terminated("done")])).await;
    // The fixtures' clock is behind the seed's prices.
    execute(&mut admin, "update prices set effective_from = '2020-01-01' where model_id = 'scripted-1'").await.unwrap();
    let before = stores.across.horizon().await.unwrap();
    assert_eq!(reprice(&ground.database.admin_url(), Choice::default()).await.unwrap().changed, 1);
    assert_eq!(changed(stores, &before).await, [unpriced]);
    ground.end().await;
}

/// Once, all that had come behind it was told again at each look, for as long as it took.
#[tokio::test]
async fn changes_are_told_once_while_a_transaction_takes_long() {
    let ground = ground().await;
    let (stores, mut slow) = (&ground.stores, ground.database.admin().await);
    let tenant = tenant(stores, "ours").await;
    let [late, early] = [session(stores, tenant).await, session(stores, tenant).await];
    let before = stores.across.horizon().await.unwrap();
    let ends = format!("begin; update sessions set state = 'terminated' where session_id = '{late}'");
    execute(&mut slow, &ends).await.unwrap();
    appended(stores, append(tenant, early, vec![terminated("done")])).await;
    assert_eq!(changed(stores, &before).await, [early]);
    let meanwhile = stores.across.horizon().await.unwrap();
    assert_eq!(changed(stores, &meanwhile).await, [], "it was told, though an older transaction runs still");
    execute(&mut slow, "commit").await.unwrap();
    assert_eq!(changed(stores, &meanwhile).await, [late]);
    let after = stores.across.horizon().await.unwrap();
    assert_eq!(changed(stores, &after).await, []);
    ground.end().await;
}
