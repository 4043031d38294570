//! Words of rows that another release wrote, which this one does not know: while a release is rolled out, or behind a rollback.

use std::time::Duration;

use croft_front::Error;
use croft_front::budget::period::Period;
use croft_front::budget::{Budget, Scope};
use croft_front::events::log::{Append, Authority};
use croft_front::session::store::Filter;
use croft_front::turn::store::{Begin, Begun};
use croft_proto::id::SessionId;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{BudgetAction, SessionRunning, StepStarted, StopReason};

use crate::contract::fixtures::{append, appended, get, said, session, tenant};
use crate::database::execute;
use crate::ground;

/// Its page was refused, and a message that began a turn held the lease with nobody to run it, time and again.
#[tokio::test]
async fn a_session_that_stopped_for_a_reason_of_tomorrow_goes_on() {
    let ground = ground().await;
    let (stores, mut admin) = (&ground.stores, ground.database.admin().await);
    let tenant = tenant(stores, "ours").await;
    let id = session(stores, tenant).await;
    execute(&mut admin, "update sessions set last_stop_reason = 'of_tomorrow'").await.unwrap();
    assert_eq!(get(stores, tenant, id).await.last_stop_reason, StopReason::Unspecified);
    let listed = stores.sessions.list(tenant, &Filter::default(), None, 10).await.unwrap().sessions;
    assert_eq!(listed.iter().map(|session| session.id).collect::<Vec<_>>(), [id]);

    let message = append(tenant, id, vec![said("hello"), Kind::SessionRunning(SessionRunning {})]);
    let begin = Begin { message, holder: "front-0".into(), ttl: Duration::from_mins(1) };
    let Begun::New(opened) = stores.turns.begin(begin).await.unwrap() else { panic!("it is free") };
    stores.leases.abandon(tenant, id, opened.epoch).await.unwrap();
    assert_eq!(stores.leases.abandoned(10).await.unwrap().len(), 1);
    let epoch = stores.leases.acquire(tenant, id, "front-1", Duration::from_mins(1)).await.unwrap().unwrap();
    let authority = Authority::Lease { epoch };
    let started = append(tenant, id, vec![Kind::StepStarted(StepStarted::default())]);
    appended(stores, Append { authority, ..started }).await;
    let word: String = sqlx::query_scalar("select last_stop_reason from sessions").fetch_one(&mut admin).await.unwrap();
    assert_eq!(word, "of_tomorrow", "it is left to those who know it");
    ground.end().await;
}

/// One of them kept a tenant's list from everybody.
#[tokio::test]
async fn a_session_in_a_state_of_tomorrow_is_left_out_of_pages() {
    let ground = ground().await;
    let (stores, mut admin) = (&ground.stores, ground.database.admin().await);
    let tenant = tenant(stores, "ours").await;
    let [first, strange, last] =
        [session(stores, tenant).await, session(stores, tenant).await, session(stores, tenant).await];
    let newer = format!(
        "alter table sessions drop constraint sessions_state_check;
        update sessions set state = 'of_tomorrow' where session_id = '{strange}'"
    );
    execute(&mut admin, &newer).await.unwrap();
    assert!(matches!(stores.sessions.get(tenant, strange).await, Err(Error::Internal { .. })));
    for limit in [1, 2, 10] {
        let (mut told, mut after): (Vec<SessionId>, _) = (Vec::new(), None);
        loop {
            let page = stores.sessions.list(tenant, &Filter::default(), after, limit).await.unwrap();
            after = page.next();
            told.extend(page.sessions.iter().map(|session| session.id));
            if after.is_none() {
                break;
            }
        }
        assert_eq!(told, [last, first], "in pages of {limit}");
    }
    ground.end().await;
}

#[tokio::test]
async fn a_budget_for_a_period_of_tomorrow_is_left_out() {
    let ground = ground().await;
    let (stores, mut admin) = (&ground.stores, ground.database.admin().await);
    let tenant = tenant(stores, "ours").await;
    let kept = Budget {
        scope: Scope::Tenant,
        subject: String::new(),
        period: Period::Month,
        nano_usd: Some(5),
        tokens: None,
        action: BudgetAction::Block,
        is_given: false,
    };
    for budget in [kept.clone(), Budget { period: Period::Life, ..kept.clone() }] {
        stores.budgets.put(tenant, &budget).await.unwrap();
    }
    let newer = "alter table budgets drop constraint budgets_period_check;
        update budgets set period = 'of_tomorrow' where period = 'life'";
    execute(&mut admin, newer).await.unwrap();
    assert_eq!(stores.budgets.list(tenant).await.unwrap(), [kept]);
    ground.end().await;
}
