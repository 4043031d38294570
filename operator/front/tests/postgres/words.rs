//! Words of rows that another release wrote, which this one does not know: while a release is rolled out, or behind a rollback.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use croft_front::Error;
use croft_front::app::{Parts, assemble};
use croft_front::budget::period::Period;
use croft_front::budget::{Budget, Scope};
use croft_front::core::Options;
use croft_front::counters::memory::Memory;
use croft_front::events::log::{Append, Authority};
use croft_front::events::relay::memory::MemoryRelay;
use croft_front::identity::{Identity, Role};
use croft_front::session::store::Filter;
use croft_front::store::Stores;
use croft_front::tenants::Tenants;
use croft_front::tenants::removal::{Progress, Removal};
use croft_front::turn::store::{Begin, Begun};
use croft_proto::id::SessionId;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    BudgetAction, RemovalPolicy, RemovalStep, SessionRunning, SessionState, StepStarted, StopReason,
};
use croft_serve::Tasks;
use tokio::time::timeout;

use crate::contract::doubles::{Call, Hook, Made, hooked};
use crate::contract::fixtures::{append, appended, get, said, session, tenant};
use crate::database::execute;
use crate::ground;

/// Longer than anything here takes; what it bounds has failed.
const PATIENCE: Duration = Duration::from_secs(90);

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

/// Counts the pages that are asked for.
#[derive(Default)]
struct Pages(AtomicU32);

#[async_trait]
impl Hook for Pages {
    async fn around(&self, call: Call<'_>, made: Made<'_>) -> Result<(), Error> {
        if matches!(call, Call::List) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
        made.await
    }
}

/// The removal of their tenant asked for the same page for as long as a call may take, and those behind it never ended.
#[tokio::test]
async fn sessions_of_tomorrow_keep_no_other_of_a_removed_tenant_open() {
    /// More than are ended together.
    const UNREADABLE: u64 = 210;
    let ground = ground().await;
    let (stores, mut admin) = (&ground.stores, ground.database.admin().await);
    let tenant = tenant(stores, "ours").await;
    let readable = session(stores, tenant).await;
    let newer = format!(
        "alter table sessions drop constraint sessions_state_check;
        insert into sessions select (jsonb_populate_record(s, jsonb_build_object(
            'session_id', 'ffffffff-0000-7000-8000-' || lpad(to_hex(n), 12, '0'),
            'state', case n when 1 then 'of_tomorrow' else s.state end,
            'agent', '\\xff'
        ))).* from sessions s, generate_series(1, {UNREADABLE}) n"
    );
    execute(&mut admin, &newer).await.unwrap();

    let (pages, tasks) = (Arc::new(Pages::default()), Tasks::new());
    let hooked = hooked(stores.sessions.clone(), Arc::clone(&pages));
    let parts = Parts {
        replica: "front-0".into(),
        stores: Stores { sessions: hooked, ..stores.clone() },
        relay: Arc::new(MemoryRelay::default()),
        counters: Arc::new(Memory::default()),
        tenants: Tenants::new(),
        tls: None,
        options: Options::default(),
    };
    let core = assemble(parts, &tasks, &prometheus::Registry::new()).await.unwrap();
    let removal = Removal::new(core);
    let identity = Identity { tenant, tenant_name: "ours".into(), actor: "operator".into(), roles: Role::Admin.into() };
    let held_up = Progress { step: RemovalStep::EndingSessions, left: UNREADABLE };
    let ended = async {
        // A call of a machine that stands still meanwhile goes no further than a page.
        while removal.go_on(&identity, RemovalPolicy::Archive).await.unwrap() != held_up {}
    };
    timeout(PATIENCE, ended).await.expect("all that can be read end");
    let ended = get(stores, tenant, readable).await;
    assert_eq!((ended.state, &*ended.terminate_reason), (SessionState::Terminated, "TENANT_REMOVED"));
    pages.0.store(0, Ordering::SeqCst);
    assert_eq!(removal.go_on(&identity, RemovalPolicy::Archive).await.unwrap(), held_up);
    // Two, and what the end of a session has others look for.
    let asked = pages.0.load(Ordering::SeqCst);
    assert!((1..10).contains(&asked), "{asked} pages");
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
