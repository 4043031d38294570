//! Every method of every store comes back from a server whose host vanishes behind the beginning of a transaction.

use std::time::Duration;

use croft_front::Error;
use croft_front::audit::Place;
use croft_front::budget::alert::{Alert, Unit};
use croft_front::budget::period::Period;
use croft_front::budget::webhook::HookEnd;
use croft_front::budget::{Account, Budget, Scope};
use croft_front::events::log::{Append, Authority};
use croft_front::identity::Role;
use croft_front::identity::api_key::StoredKey;
use croft_front::session::across::Horizon;
use croft_front::session::store::{Filter, NewSession};
use croft_front::store::Stores;
use croft_front::store::postgres::Postgres;
use croft_front::turn::store::Begin;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::BudgetAction;
use croft_serve::Tasks;
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::contract::audit::action;
use crate::contract::fixtures::{append, at, attempt, event, key, new_session, said, session, tenant, terminated};
use crate::database::{Database, FRONT_ROLE};
use crate::silence::Silence;
use croft_front::usage::Selection;

/// How long a call is waited for here.
const CALL_MAX: Duration = Duration::from_millis(300);
/// Longer than a call may take on any machine; what it bounds has failed.
const PATIENCE: Duration = Duration::from_mins(1);
const LONG: Duration = Duration::from_mins(1);

/// Reads were waited for until TCP gave up, or for ever: a turn then heard neither its deadline nor who interrupts it while its lease was
/// renewed, and a loop that looks for something looked no more until its front was started again.
#[tokio::test(flavor = "multi_thread")]
async fn every_call_of_a_store_is_given_up_in_time() {
    let database = Database::migrated().await;
    let tasks = Tasks::new();
    let (silence, url) = Silence::before(&database.url_of(FRONT_ROLE), &tasks).await;
    let postgres = Postgres::connect(&url, 16).await.unwrap().with_call_max(CALL_MAX);
    let stores = Stores::postgres(&Postgres::connect(&database.url_of(FRONT_ROLE), 2).await.unwrap(), &tasks);
    let tenant = tenant(&stores, "ours").await;
    let session = session(&stores, tenant).await;
    let hasty = Stores::postgres(&postgres, &tasks);
    silence.falls_behind_begin();

    macro_rules! told {
        ($($store:ident.$call:ident($($argument:expr),*)),+ $(,)?) => {
            vec![$((
                concat!(stringify!($store), ".", stringify!($call)),
                { let stores = hasty.clone(); async move { stores.$store.$call($($argument),*).await.map(drop) }.boxed() },
            )),+]
        };
    }
    let message = || append(tenant, session, vec![said("hello?")]);
    let keyed = Append { idempotency_key: Some(key("again", 1)), ..message() };
    let (alert, budget, stored_key) = (alert(session), budget(), stored_key(tenant));
    let (keyed, alert, budget, stored_key) = (&keyed, &alert, &budget, &stored_key);
    let calls: Vec<(&str, BoxFuture<Result<(), Error>>)> = told![
        sessions.insert(new_session(tenant)),
        sessions.insert(NewSession { idempotency_key: Some(key("new", 1)), ..new_session(tenant) }),
        sessions.get(tenant, session),
        sessions.list(tenant, &Filter::default(), None, 10),
        sessions.count_open(tenant),
        sessions.child(tenant, session, "call"),
        sessions.find_created(tenant, &key("new", 1)),
        events.append(message()),
        events.append(keyed.clone()),
        events.append(Append { authority: Authority::Fence, ..append(tenant, session, vec![terminated("done")]) }),
        events.find_sent(tenant, session, &key("again", 1)),
        events.read(tenant, session, 0, 10),
        events.checkpoint(tenant, session),
        turns.begin(Begin { message: message(), holder: "front-0".into(), ttl: LONG }),
        turns.begin(Begin { message: keyed.clone(), holder: "front-0".into(), ttl: LONG }),
        turns.end(Append { authority: Authority::Lease { epoch: 1 }, ..message() }),
        leases.acquire(tenant, session, "front-0", LONG),
        leases.renew_all(tenant, &[(session, 1)], LONG),
        leases.renew(tenant, session, 1, LONG),
        leases.release(tenant, session, 1),
        leases.abandon(tenant, session, 1),
        leases.abandoned(10),
        usage.list(tenant, None, None, None, 10),
        usage.summarize(tenant, Selection::default(), &[]),
        usage.add_behind_end(tenant, session, &[event(attempt("attempt", Some(1)))]),
        audit.append(Place::start(), vec![action(tenant, "sessions/1")]),
        audit.list(tenant, 0, 10),
        audit.verify(tenant, None),
        models.load(),
        budgets.list(tenant),
        budgets.put(tenant, budget),
        budgets.delete(tenant, Scope::Tenant, "", Period::Life),
        budgets.ledgers(tenant, std::slice::from_ref(&alert.account)),
        budgets.is_unpriced(tenant, session),
        budgets.alert(tenant, alert),
        budgets.told(tenant, alert),
        budgets.untold(Duration::ZERO, 10),
        budgets.claim_hooks(10, LONG),
        budgets.hook_ended(tenant, alert, HookEnd::Taken),
        keys.insert(stored_key, None),
        keys.list(tenant),
        keys.revoke(tenant, "1a2b3c4d"),
        keys.find("1a2b3c4d"),
        tenants.upsert(tenant, "ours"),
        across.due(at(0), 10),
        across.orphaned(10),
        across.erasing(10),
        across.horizon(),
        across.changed(&Horizon::default(), (0, SessionId::generate()), 10),
        removal.begin(tenant, "ours"),
        removal.count_cut_short(tenant, LONG),
        removal.erase_credentials(tenant),
        removal.erase_rows(tenant, 10),
        removal.count_rows(tenant, 10),
        retention.erase_ended(tenant, at(0), 10, 10),
    ];
    for (call, outcome) in calls {
        let outcome = tokio::time::timeout(PATIENCE, outcome).await;
        let outcome = outcome.unwrap_or_else(|_| panic!("{call} waits for a server that is silent"));
        assert!(matches!(outcome, Err(Error::Unavailable { part: "postgres", .. })), "{call}: {outcome:?}");
    }
    for outcome in [postgres.check().await, postgres.tenant_named("ours").await.map(drop)] {
        assert!(matches!(outcome, Err(Error::Unavailable { part: "postgres", .. })), "{outcome:?}");
    }
    drop(silence);
    database.end().await;
}

fn alert(session: SessionId) -> Alert {
    let account = Account { scope: Scope::Tenant, subject: String::new(), period: "2026-11".into() };
    Alert { account, unit: Unit::Tokens, limit: 10, percent: 50, spent: 9, session }
}

fn budget() -> Budget {
    Budget {
        scope: Scope::Tenant,
        subject: String::new(),
        period: Period::Life,
        nano_usd: Some(5),
        tokens: None,
        action: BudgetAction::Warn,
        is_given: false,
    }
}

fn stored_key(tenant: TenantId) -> StoredKey {
    let (prefix, tenant_name) = ("1a2b3c4d".into(), "ours".into());
    StoredKey { prefix, tenant, tenant_name, secret_hash: [7; 32], role: Role::Admin }
}
