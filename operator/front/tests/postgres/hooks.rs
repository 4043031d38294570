//! Alerts that wait for a webhook in the database.

use std::time::Duration;

use croft_front::budget::alert::{Alert, Unit};
use croft_front::budget::{Account, Scope};
use croft_front::store::Stores;
use croft_proto::id::SessionId;
use croft_serve::Tasks;

use crate::contract::fixtures::tenant;
use crate::database::{Database, execute};

/// Without a webhook they wait for one, and whoever is told of the last year at once hears nothing of today.
#[tokio::test]
async fn what_nobody_tried_to_post_within_a_day_is_posted_no_more() {
    let database = Database::migrated().await;
    let stores = Stores::postgres(&database.front().await, &Tasks::new());
    let tenant = tenant(&stores, "ours").await;
    let account = Account { scope: Scope::Tenant, subject: String::new(), period: "2026-11".into() };
    let session = SessionId::generate();
    let alert = |percent| Alert { account: account.clone(), unit: Unit::Tokens, limit: 10, percent, spent: 9, session };
    for percent in [50, 80, 90] {
        stores.budgets.alert(tenant, &alert(percent)).await.unwrap();
    }
    let mut admin = database.admin().await;
    // One is of today, and one has been tried for that long.
    let age = "update budget_alerts set hook_time = now() - interval '25 hours' where percent < 90;
        update budget_alerts set hook_tries = 1 where percent = 80";
    execute(&mut admin, age).await.unwrap();
    let claimed = stores.budgets.claim_hooks(10, Duration::ZERO).await.unwrap();
    let mut percents: Vec<_> = claimed.into_iter().map(|claimed| claimed.alert.percent).collect();
    percents.sort_unstable();
    assert_eq!(percents, [80, 90]);
    database.end().await;
}
