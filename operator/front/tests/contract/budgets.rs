//! What every store of budgets promises.

use std::time::Duration;

use croft_front::budget::alert::{Alert, Unit};
use croft_front::budget::period::Period;
use croft_front::budget::webhook::HookEnd;
use croft_front::budget::{Account, Budget, Scope};
use croft_front::counters::Ledger;
use croft_front::events::log::NewEvent;
use croft_front::store::Stores;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::BudgetAction;

use super::fixtures::{
    agent, append, appended, at, attempt, event, insert, new_child, new_session, session, tenant, two_tenants,
};

pub(super) fn budget(
    scope: Scope,
    subject: &str,
    period: Period,
    nano_usd: Option<i64>,
    tokens: Option<i64>,
) -> Budget {
    let (subject, action) = (subject.to_owned(), BudgetAction::Throttle);
    Budget { scope, subject, period, nano_usd, tokens, action, is_given: false }
}

fn account(scope: Scope, subject: &str, period: &str) -> Account {
    Account { scope, subject: subject.into(), period: period.into() }
}

pub(super) fn alert(percent: u32, limit: i64) -> Alert {
    let account = account(Scope::Agent, "helper", "2026-11");
    Alert { account, unit: Unit::Tokens, limit, percent, spent: 77, session: SessionId::generate() }
}

pub(crate) async fn keeps_tenants_apart(stores: &Stores) {
    let [ours, theirs] = two_tenants(stores).await;
    let theirs_only = budget(Scope::Tenant, "", Period::Life, Some(5), None);
    stores.budgets.put(theirs, &theirs_only).await.unwrap();
    let their_session = session(stores, theirs).await;
    appended(stores, append(theirs, their_session, vec![attempt("a", Some(7))])).await;
    assert_eq!(stores.budgets.list(ours).await.unwrap(), []);
    assert!(!stores.budgets.delete(ours, Scope::Tenant, "", Period::Life).await.unwrap());
    let accounts = [account(Scope::Tenant, "", "life"), account(Scope::Session, &their_session.to_string(), "life")];
    assert_eq!(stores.budgets.ledgers(ours, &accounts).await.unwrap(), [Ledger::default(); 2]);
    assert_eq!(stores.budgets.list(theirs).await.unwrap(), [theirs_only]);
    let alert = alert(50, 10);
    assert!(stores.budgets.alert(theirs, &alert).await.unwrap());
    assert!(stores.budgets.alert(ours, &alert).await.unwrap(), "it is another's");
}

pub(crate) async fn replaces_and_takes_away(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let day = budget(Scope::Agent, "helper", Period::Day, None, Some(9));
    let month =
        Budget { action: BudgetAction::Warn, ..budget(Scope::Agent, "helper", Period::Month, Some(1), Some(2)) };
    let own = Budget { action: BudgetAction::Block, ..budget(Scope::Tenant, "", Period::Life, Some(0), None) };
    for budget in [&month, &day, &own] {
        stores.budgets.put(tenant, budget).await.unwrap();
    }
    assert_eq!(stores.budgets.list(tenant).await.unwrap(), [own.clone(), day.clone(), month.clone()]);
    let raised = Budget { tokens: Some(10), nano_usd: Some(4), ..day };
    stores.budgets.put(tenant, &raised).await.unwrap();
    assert_eq!(stores.budgets.list(tenant).await.unwrap(), [own.clone(), raised, month.clone()]);
    assert!(stores.budgets.delete(tenant, Scope::Agent, "helper", Period::Day).await.unwrap());
    assert!(!stores.budgets.delete(tenant, Scope::Agent, "helper", Period::Day).await.unwrap());
    assert_eq!(stores.budgets.list(tenant).await.unwrap(), [own, month]);
}

pub(crate) async fn adds_up_each_account_as_the_rows_do(stores: &Stores) {
    const DAY: i64 = 24 * 60 * 60;
    let tenant = tenant(stores, "ours").await;
    let first = insert(stores, new_session(tenant)).await.id;
    let mut other = new_session(tenant);
    other.agent = agent("other");
    let second = insert(stores, other).await.id;
    // `at` counts from 2026-09-21.
    for (session, id, days, cost) in
        [(first, "a", 0, Some(1)), (first, "b", 1, Some(2)), (second, "c", 1, None), (second, "d", 10, Some(8))]
    {
        let attempt = NewEvent { create_time: at(days * DAY), ..event(attempt(id, cost)) };
        let mut reported = append(tenant, session, vec![]);
        reported.events = vec![attempt];
        appended(stores, reported).await;
    }
    let (first, second) = (first.to_string(), second.to_string());
    for (scope, subject, period, attempts, nano_usd) in [
        (Scope::Tenant, "", "2026-09-21", 1, 1),
        (Scope::Tenant, "", "2026-09-22", 2, 2),
        (Scope::Tenant, "", "2026-09", 3, 3),
        (Scope::Tenant, "", "2026-10", 1, 8),
        (Scope::Tenant, "", "life", 4, 11),
        (Scope::Agent, "helper", "2026-09", 2, 3),
        (Scope::Agent, "other", "2026-09", 1, 0),
        (Scope::Agent, "other", "life", 2, 8),
        (Scope::Session, &first, "2026-09-22", 1, 2),
        (Scope::Session, &first, "2026-09", 2, 3),
        (Scope::Session, &second, "life", 2, 8),
    ] {
        let told = stores.budgets.ledgers(tenant, &[account(scope, subject, period)]).await.unwrap();
        let expected = Ledger { version: attempts, nano_usd, tokens: 110 * attempts };
        assert_eq!(told, [expected], "{scope:?} {subject} {period}");
    }
}

pub(crate) async fn counts_what_sub_agents_used_for_all_above_them(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let parent = insert(stores, new_session(tenant)).await;
    let child = insert(stores, new_child(&parent, "a")).await;
    let grandchild = insert(stores, new_child(&child, "a")).await;
    for (session, id, cost) in
        [(&parent, "p", 1), (&child, "c", 10), (&grandchild, "g", 100), (&grandchild, "h", 1_000)]
    {
        // Twice, as whoever is not sure whether it was stored.
        for _ in 0..2 {
            appended(stores, append(tenant, session.id, vec![attempt(id, Some(cost))])).await;
        }
    }
    for (session, attempts, nano_usd) in [(&parent, 4, 1_111), (&child, 3, 1_110), (&grandchild, 2, 1_100)] {
        // `at` counts from 2026-09-21.
        for period in ["life", "2026-09", "2026-09-21"] {
            let accounts = [account(Scope::Session, &session.id.to_string(), period)];
            let told = stores.budgets.ledgers(tenant, &accounts).await.unwrap();
            let expected = Ledger { version: attempts, nano_usd, tokens: 110 * attempts };
            assert_eq!(told, [expected], "{period}");
        }
    }
    let told = stores.budgets.ledgers(tenant, &[account(Scope::Tenant, "", "life")]).await.unwrap();
    assert_eq!(told[0].nano_usd, 1_111, "the tenant pays once");
    assert_eq!(stores.sessions.get(tenant, parent.id).await.unwrap().unwrap().usage.attempts, 1, "its own are its own");
}

pub(crate) async fn tells_whose_cost_nobody_knows(stores: &Stores) {
    let [tenant, theirs] = two_tenants(stores).await;
    let parent = insert(stores, new_session(tenant)).await;
    let child = insert(stores, new_child(&parent, "a")).await;
    let sibling = insert(stores, new_child(&parent, "b")).await;
    let grandchild = insert(stores, new_child(&child, "a")).await;
    let other = session(stores, tenant).await;
    appended(stores, append(tenant, parent.id, vec![attempt("p", Some(1))])).await;
    for session in [parent.id, child.id, sibling.id, grandchild.id, other] {
        assert!(!stores.budgets.is_unpriced(tenant, session).await.unwrap());
    }
    appended(stores, append(tenant, grandchild.id, vec![attempt("g", None)])).await;
    for (session, is_unpriced) in
        [(parent.id, true), (child.id, true), (grandchild.id, true), (sibling.id, false), (other, false)]
    {
        assert_eq!(stores.budgets.is_unpriced(tenant, session).await.unwrap(), is_unpriced);
    }
    assert!(!stores.budgets.is_unpriced(theirs, parent.id).await.unwrap(), "it is another's");
}

pub(crate) async fn counts_a_repeated_attempt_once(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    for _ in 0..2 {
        appended(stores, append(tenant, session, vec![attempt("a", Some(7)), attempt("a", Some(7))])).await;
    }
    let accounts = [account(Scope::Tenant, "", "life"), account(Scope::Session, &session.to_string(), "life")];
    let once = Ledger { version: 1, nano_usd: 7, tokens: 110 };
    assert_eq!(stores.budgets.ledgers(tenant, &accounts).await.unwrap(), [once, once]);
}

pub(crate) async fn knows_nothing_of_what_was_not_spent(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let accounts = [
        account(Scope::Tenant, "", "life"),
        account(Scope::Agent, "nobody", "2026-11"),
        account(Scope::Session, &SessionId::generate().to_string(), "life"),
        account(Scope::Session, "nonsense", "2026-11-25"),
    ];
    assert_eq!(stores.budgets.ledgers(tenant, &accounts).await.unwrap(), [Ledger::default(); 4]);
    assert_eq!(stores.budgets.ledgers(tenant, &[]).await.unwrap(), []);
}

pub(crate) async fn tells_of_a_threshold_once(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    assert!(stores.budgets.alert(tenant, &alert(50, 10)).await.unwrap());
    assert!(!stores.budgets.alert(tenant, &alert(50, 10)).await.unwrap(), "whoever reached it");
    assert!(stores.budgets.alert(tenant, &alert(80, 10)).await.unwrap());
    assert!(stores.budgets.alert(tenant, &alert(50, 20)).await.unwrap(), "the limit was raised");
}

pub(crate) async fn knows_the_highest_threshold_of_each_limit_as_it_is(stores: &Stores) {
    let [ours, theirs] = two_tenants(stores).await;
    let both = budget(Scope::Agent, "helper", Period::Month, Some(20), Some(10));
    let month = account(Scope::Agent, "helper", "2026-11");
    let highest =
        async |tenant, account: &Account| stores.budgets.highest_alerts(tenant, &both, account).await.unwrap();
    assert_eq!(highest(ours, &month).await, []);
    let of_money = Alert { unit: Unit::NanoUsd, ..alert(50, 20) };
    let (told, raised) = ([alert(100, 10), alert(80, 10), of_money.clone()], [alert(100, 9), alert(100, 20)]);
    for alert in told.iter().chain(&raised) {
        assert!(stores.budgets.alert(ours, alert).await.unwrap());
    }
    assert!(stores.budgets.alert(theirs, &alert(50, 10)).await.unwrap());
    assert_eq!(highest(ours, &month).await, [of_money, told[0].clone()], "others are of other limits");
    assert_eq!(highest(theirs, &month).await.iter().map(|alert| alert.percent).collect::<Vec<_>>(), [50]);
    for other in [account(Scope::Agent, "helper", "2026-12"), account(Scope::Tenant, "", "2026-11")] {
        assert_eq!(highest(ours, &other).await, []);
    }
}

/// In tests of one database each; those in memory have one each.
pub(crate) async fn posts_an_alert_once_unless_its_try_failed(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let (first, second) = (alert(50, 10), alert(80, 10));
    for alert in [&first, &second] {
        stores.budgets.alert(tenant, alert).await.unwrap();
    }
    let claim = async |lease| {
        let mut claimed = stores.budgets.claim_hooks(10, lease).await.unwrap();
        claimed.sort_by_key(|claimed| claimed.alert.percent);
        claimed
    };
    let claimed = claim(Duration::from_mins(1)).await;
    assert_eq!(
        claimed.iter().map(|claimed| (&claimed.alert, claimed.tries)).collect::<Vec<_>>(),
        [(&first, 1), (&second, 1)]
    );
    assert_eq!((claimed[0].tenant, claimed[0].tenant_name.as_str()), (tenant, "ours"));
    assert_eq!(claim(Duration::ZERO).await, [], "nobody else takes them");
    stores.budgets.hook_ended(tenant, &first, HookEnd::Again(Duration::ZERO)).await.unwrap();
    stores.budgets.hook_ended(tenant, &second, HookEnd::Taken).await.unwrap();
    let again = claim(Duration::ZERO).await;
    assert_eq!(again.iter().map(|claimed| (&claimed.alert, claimed.tries)).collect::<Vec<_>>(), [(&first, 2)]);
    assert_eq!(claim(Duration::ZERO).await[0].tries, 3, "whoever had it has died, and the lease is over");
    stores.budgets.hook_ended(tenant, &first, HookEnd::Dead).await.unwrap();
    assert_eq!(claim(Duration::ZERO).await, []);
}

pub(crate) async fn remembers_who_was_not_told(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let (told, untold) = (alert(50, 10), alert(80, 10));
    for alert in [&told, &untold] {
        stores.budgets.alert(tenant, alert).await.unwrap();
    }
    stores.budgets.told(tenant, &told).await.unwrap();
    let ours = async |older_than| {
        let mut found = stores.budgets.untold(older_than, 1_000).await.unwrap();
        found.retain(|(owner, _): &(TenantId, Alert)| *owner == tenant);
        found
    };
    assert_eq!(ours(Duration::ZERO).await, [(tenant, untold)]);
    assert_eq!(ours(Duration::from_mins(10)).await, []);
}
