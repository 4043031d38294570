//! Appends that come at the same time are stored together, and each is taken or refused as if it were alone.

use croft_front::Error;
use croft_front::events::log::{Append, Appended, Authority};
use croft_front::store::Stores;
use croft_proto::id::SessionId;
use croft_proto::v1::SessionReady;
use croft_proto::v1::session_event::Kind;
use croft_serve::Tasks;
use futures::future::join_all;

use crate::contract::fixtures::{append, attempt, insert, new_session, said, seqs, tenant};
use crate::database::Database;

const SESSIONS: usize = 60;

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_share_few_transactions() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let tenant = tenant(&stores, "ours").await;
    let sessions: Vec<_> =
        join_all((0..SESSIONS).map(|_| insert(&stores, new_session(tenant)))).await.iter().map(|new| new.id).collect();

    // Three of each session, all at the same time.
    let appends = sessions.iter().flat_map(|session| [*session; 3]).map(|session| {
        stores.events.append(append(
            tenant,
            session,
            vec![said("one"), attempt(&SessionId::generate().to_string(), Some(5))],
        ))
    });
    for outcome in join_all(appends).await {
        assert!(matches!(outcome.unwrap(), Appended::New(events) if events.len() == 2));
    }
    for session in &sessions {
        let events = stores.events.read(tenant, *session, 0, 100).await.unwrap();
        assert_eq!(seqs(&events), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(stores.sessions.get(tenant, *session).await.unwrap().unwrap().usage.attempts, 3);
    }
    // Rows know which transaction made them.
    let transactions: i64 = sqlx::query_scalar("select count(distinct xmin::text) from events where seq > 2")
        .fetch_one(&mut database.admin().await)
        .await
        .unwrap();
    let transactions = usize::try_from(transactions).unwrap();
    assert!(transactions < 3 * SESSIONS / 2, "{transactions} transactions for {} appends", 3 * SESSIONS);
    database.end().await;
}

/// They waited for its bytes, and failed with it where it took too long.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_one_shares_no_transaction_with_small_ones() {
    const LARGE: usize = 5;
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let tenant = tenant(&stores, "ours").await;
    let sessions: Vec<_> =
        join_all((0..21).map(|_| insert(&stores, new_session(tenant)))).await.iter().map(|new| new.id).collect();
    let appends = sessions.iter().enumerate().map(|(place, session)| {
        let text = if place == LARGE { "x".repeat(20_000_000) } else { "one".to_owned() };
        stores.events.append(append(tenant, *session, vec![said(&text)]))
    });
    for outcome in join_all(appends).await {
        assert!(matches!(outcome.unwrap(), Appended::New(events) if events.len() == 1));
    }
    let together: i64 = sqlx::query_scalar(
        "select count(*) from events
        where seq > 2 and xmin = (select xmin from events where seq > 2 and session_id = $1)",
    )
    .bind(sessions[LARGE].0)
    .fetch_one(&mut database.admin().await)
    .await
    .unwrap();
    assert_eq!(together, 1);
    database.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_cannot_be_stored_takes_no_other_with_it() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let tenant = tenant(&stores, "ours").await;
    let sessions: Vec<_> =
        join_all((0..SESSIONS).map(|_| insert(&stores, new_session(tenant)))).await.iter().map(|new| new.id).collect();
    let appends = (0..).zip(&sessions).map(|(place, session)| match place % 4 {
        // PostgreSQL has no text with a zero in it.
        0 => append(
            tenant,
            *session,
            vec![Kind::SessionReady(SessionReady { worker: "w\0".into(), ..Default::default() })],
        ),
        1 => Append { authority: Authority::Lease { epoch: 7 }, ..append(tenant, *session, vec![said("stale")]) },
        2 => append(tenant, SessionId::generate(), vec![said("nobody")]),
        _ => append(tenant, *session, vec![said("fine")]),
    });
    let outcomes = join_all(appends.map(|append| stores.events.append(append))).await;
    for (place, (outcome, session)) in outcomes.into_iter().zip(&sessions).enumerate() {
        match place % 4 {
            0 => assert!(matches!(outcome, Err(Error::Internal { .. })), "{outcome:?}"),
            1 => assert!(matches!(outcome, Err(Error::LeaseLost { epoch: 7 })), "{outcome:?}"),
            2 => assert!(matches!(outcome, Err(Error::SessionNotFound { .. })), "{outcome:?}"),
            _ => assert!(matches!(outcome, Ok(Appended::New(_))), "{outcome:?}"),
        }
        let events = stores.events.read(tenant, *session, 2, 10).await.unwrap();
        assert_eq!(events.len(), usize::from(place % 4 == 3));
    }
    database.end().await;
}
