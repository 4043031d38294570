//! What a front says while its database is away, and afterwards.

use std::time::Duration;

use croft_front::Error;
use croft_front::events::log::Append;
use croft_front::session::store::{Inserted, NewSession};
use croft_front::store::Stores;
use croft_front::store::postgres::Postgres;
use croft_proto::id::TenantId;
use croft_serve::Tasks;
use futures::future::join_all;

use crate::contract::fixtures::{
    self, append, appended, get, insert, key, new_child, new_session, said, seqs, session, tenant,
};
use crate::database::{Database, FRONT_ROLE, execute};
use crate::silence::Silence;

/// Longer than anything here takes; what it bounds has failed.
const PATIENCE: Duration = Duration::from_secs(90);

#[tokio::test]
async fn an_unreachable_database_is_unavailable() {
    let refused = Postgres::connect("postgres://croft:secret@127.0.0.1:1/croft", 1).await.unwrap_err();
    assert!(matches!(refused, Error::Unavailable { part: "postgres", .. }), "{refused:?}");
}

/// Connections that were idle while the database restarted are replaced without a caller's noticing.
#[tokio::test]
async fn connections_that_were_cut_while_idle_are_replaced() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let tenant = tenant(&stores, "ours").await;
    let session = session(&stores, tenant).await;
    join_all((0..8).map(|_| stores.sessions.get(tenant, session))).await;

    let cut = format!(
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = '{FRONT_ROLE}'
        and datname = current_database()"
    );
    let ended = execute(&mut database.admin().await, &cut).await.unwrap();
    assert!(ended > 1, "several connections were idle");
    for _ in 0..ended {
        get(&stores, tenant, session).await;
    }
    appended(&stores, append(tenant, session, vec![said("still here")])).await;
    database.end().await;
}

/// Of a transaction that is one call as well: it is made again where the server has said that it went, and stored once.
#[tokio::test]
async fn appends_that_meet_cut_connections_are_stored_once() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let tenant = tenant(&stores, "ours").await;
    let session = session(&stores, tenant).await;
    join_all((0..8).map(|_| stores.sessions.get(tenant, session))).await;

    let cut = format!(
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = '{FRONT_ROLE}'
        and datname = current_database()"
    );
    assert!(execute(&mut database.admin().await, &cut).await.unwrap() > 1, "several connections were idle");
    let events = appended(&stores, append(tenant, session, vec![said("still here")])).await;
    let opened = fixtures::session(&stores, tenant).await;
    assert_eq!(seqs(&events), [3]);
    assert_eq!(get(&stores, tenant, session).await.last_seq, 3);
    assert_eq!(get(&stores, tenant, opened).await.last_seq, 2);
    database.end().await;
}

/// A reader that gives up while its transaction begins leaves it open, and the pool takes the connection back so: once, what was
/// appended there next was told and never committed.
#[tokio::test]
async fn what_is_stored_behind_a_reader_that_gave_up_is_committed() {
    let database = Database::migrated().await;
    let postgres = Postgres::connect(&database.url_of(FRONT_ROLE), 1).await.unwrap();
    let stores = Stores::postgres(&postgres, &Tasks::new());
    let tenant = tenant(&stores, "ours").await;
    let session = session(&stores, tenant).await;
    let mut admin = database.admin().await;
    for looks in 0..6_u32 {
        let mut reading = stores.sessions.get(tenant, session);
        for _ in 0..looks {
            if futures::poll!(reading.as_mut()).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(reading);
        appended(&stores, append(tenant, session, vec![said("hello")])).await;
        let last_seq: i64 = sqlx::query_scalar("select last_seq from sessions").fetch_one(&mut admin).await.unwrap();
        assert_eq!(last_seq, 3 + i64::from(looks), "after {looks} looks");
    }
    database.end().await;
}

/// A turn that is cut off while it opens a sub-agent's session: its transaction has begun, and waits for the tenant's row.
#[tokio::test]
async fn who_gives_up_opening_a_session_leaves_its_tenant_open_to_others() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let tenant = tenant(&stores, "ours").await;
    let parent = insert(&stores, new_session(tenant)).await;
    let (mut admin, mut watch) = (database.admin().await, database.admin().await);
    execute(&mut admin, "begin; select from tenants for update").await.unwrap();
    let limited = |new: NewSession| NewSession { sessions_max: Some(10), ..new };
    let mut opening = stores.sessions.insert(limited(new_child(&parent, "call")));
    let waits = async {
        let waiting =
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut watch).await.unwrap() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        _ = &mut opening => panic!("the row is locked"),
        () = waits => {}
    }
    drop(opening);
    execute(&mut admin, "rollback").await.unwrap();
    let next = stores.sessions.insert(limited(new_session(tenant)));
    assert!(matches!(next.await, Ok(Inserted::New { .. })), "nobody holds the row");
    database.end().await;
}

/// A lock that is held too long ends the wait, not the front.
#[tokio::test]
async fn a_wait_for_a_lock_ends() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let tenant = tenant(&stores, "ours").await;
    let session = session(&stores, tenant).await;
    let mut admin = database.admin().await;
    execute(&mut admin, "begin; lock table sessions in exclusive mode").await.unwrap();
    let refused = stores.events.append(append(tenant, session, vec![said("hello?")])).await;
    assert!(matches!(refused, Err(Error::Unavailable { .. })), "{refused:?}");
    execute(&mut admin, "rollback").await.unwrap();
    appended(&stores, append(tenant, session, vec![said("hello!")])).await;
    database.end().await;
}

/// Waits until so many looks are under way together, each on a connection of its own. Begins anew, at most five times, when the machine
/// stalled for longer than a lock is waited for.
async fn use_all(database: &Database, stores: &Stores, tenant: TenantId, connections: u32) {
    const WAITS: &str =
        "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    let (mut admin, mut watch) = (database.admin().await, database.admin().await);
    let mut last = None;
    for _ in 0..5 {
        execute(&mut admin, "begin; lock table budgets in access exclusive mode").await.unwrap();
        let mut looks = join_all((0..connections).map(|_| stores.budgets.list(tenant)));
        let all_wait = async {
            while sqlx::query_scalar::<_, i64>(WAITS).fetch_one(&mut watch).await.unwrap() < i64::from(connections) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let refused = tokio::select! {
            looks = &mut looks => Some(looks),
            () = all_wait => None,
        };
        execute(&mut admin, "rollback").await.unwrap();
        let looks = match refused {
            Some(looks) => looks,
            None => looks.await,
        };
        if looks.iter().all(Result::is_ok) {
            return;
        }
        last = Some(looks);
    }
    panic!("the pool does not have all its connections: {last:?}");
}

/// A host that vanishes resets nothing. What was being stored then was waited for until the front was started again, its session
/// took nothing more, and each caller that gave up cost the pool a connection.
#[tokio::test]
async fn a_server_that_is_silent_is_given_up_in_time_and_every_connection_is_replaced() {
    const CONNECTIONS: u32 = 8;
    let database = Database::migrated().await;
    let tasks = Tasks::new();
    let (silence, url) = Silence::before(&database.url_of(FRONT_ROLE), &tasks).await;
    let postgres = Postgres::connect(&url, CONNECTIONS).await.unwrap();
    let stores = Stores::postgres(&postgres, &tasks);
    // Over the same connections, for what is asked of a silent server.
    let hasty = Stores::postgres(&postgres.clone().with_call_max(Duration::from_millis(500)), &tasks);
    let tenant = tenant(&stores, "ours").await;
    let sessions = join_all((0..CONNECTIONS).map(|_| fixtures::session(&stores, tenant))).await;
    use_all(&database, &stores, tenant, CONNECTIONS).await;
    let rested = async || {
        while postgres.connections().used > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, rested()).await.expect("all are at rest");
    appended(&stores, append(tenant, sessions[2], vec![said("still here")])).await;
    // The server takes what is sent, and nothing comes back.
    silence.falls();
    let pending = hasty.events.append(append(tenant, sessions[0], vec![said("hello?")]));
    let keyed = Append { idempotency_key: Some(key("again", 1)), ..append(tenant, sessions[1], vec![said("hello?")]) };
    let alone = hasty.events.append(keyed);
    // Callers that go away while their transactions begin.
    let given_up = async {
        let patience = Duration::from_millis(50);
        // A machine that stands still for long enough has all of them refused at once.
        for _ in 0..10 {
            let gets =
                sessions.iter().map(|session| tokio::time::timeout(patience, hasty.sessions.get(tenant, *session)));
            if join_all(gets).await.iter().any(Result::is_err) {
                return true;
            }
        }
        false
    };
    let all = async { tokio::join!(pending, alone, given_up) };
    let (pending, alone, given_up) = tokio::time::timeout(PATIENCE, all).await.expect("it comes back");
    for refused in [pending, alone] {
        // Or stored, where its connection had rested for so long that it was looked at first.
        assert!(matches!(refused, Ok(_) | Err(Error::Unavailable { .. })), "{refused:?}");
    }
    assert!(given_up, "none was given up half way");
    let mut tries = 0..2 * CONNECTIONS;
    while let Err(error) = hasty.events.append(append(tenant, sessions[0], vec![said("hello!")])).await {
        tries.next().unwrap_or_else(|| panic!("the session takes nothing more: {error:?}"));
    }
    tokio::time::timeout(PATIENCE, rested()).await.expect("none is waited for");
    use_all(&database, &stores, tenant, CONNECTIONS).await;
    drop(silence);
    database.end().await;
}
