//! What the fronts last told of each tenant: how many sessions are open, and what the month has cost.
//!
//! This is for statuses, which people look at: it is rounded to what they show, and a tenant is looked at again at most
//! once in an interval.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use croft_crds::tenant::SpendStatus;
use croft_proto::v1::{TenantTotals, UsageTotals};
use jiff::Timestamp;
use kube::ResourceExt as _;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::session::admission;

/// One tenant's, as its status shows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Total {
    /// Sessions that have not ended.
    pub(crate) sessions_open: i64,
    /// The last that could be told.
    pub(crate) month: Option<Month>,
}

/// What a month has cost, as a status shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Month {
    pub(crate) spend: SpendStatus,
    /// Of all classes in the month, to three digits: a status tells of percents.
    pub(crate) tokens: i64,
}

/// By the UID of the AgentTenant. Only the replica that writes listens, so only it has any.
#[derive(Default)]
pub struct Totals {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    by_tenant: HashMap<String, Total>,
    changed: HashSet<String>,
}

impl Totals {
    /// What is known of a tenant; nothing until the fronts have told.
    pub(crate) fn of(&self, tenant_id: &str) -> Option<Total> {
        self.inner().by_tenant.get(tenant_id).cloned()
    }

    /// Takes in what a front tells.
    pub(crate) fn tell(&self, totals: &TenantTotals) {
        let mut inner = self.inner();
        let before = inner.by_tenant.get(&totals.tenant_id);
        let month = read(totals).or_else(|| before?.month.clone());
        let total = Total { sessions_open: totals.sessions_open, month };
        if before != Some(&total) {
            inner.by_tenant.insert(totals.tenant_id.clone(), total);
            inner.changed.insert(totals.tenant_id.clone());
        }
    }

    /// A picture is complete that named just these.
    pub(crate) fn complete(&self, named: &HashSet<String>) {
        let mut inner = self.inner();
        inner.by_tenant.retain(|tenant_id, _| named.contains(tenant_id));
        inner.changed.retain(|tenant_id| named.contains(tenant_id));
    }

    fn take_changed(&self) -> HashSet<String> {
        std::mem::take(&mut self.inner().changed)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks every `interval` for those tenants to be looked at whose totals read differently, and for the sessions that they have room for
/// now, until `stopping`.
pub(crate) async fn run(context: Arc<Context>, interval: Duration, stopping: CancellationToken) {
    let mark = async {
        loop {
            tokio::time::sleep(interval).await;
            let changed = context.totals.take_changed();
            if changed.is_empty() {
                continue;
            }
            for tenant in context.cluster.tenants.state() {
                if tenant.metadata.uid.as_ref().is_some_and(|uid| changed.contains(uid)) {
                    context.cluster.changes.tenants.mark(tenant.name_any());
                    admission::wake(&tenant, &context);
                }
            }
        }
    };
    stopping.run_until_cancelled(mark).await;
}

/// `None` if it says nothing of a month.
fn read(totals: &TenantTotals) -> Option<Month> {
    let month = totals.month.unwrap_or_default();
    let start = Timestamp::from_second(totals.month_start.as_ref()?.seconds).ok()?;
    let spend = SpendStatus {
        month: month_of(start),
        usd: cents(month.cost_nano_usd),
        unpriced_attempts: month.unpriced_attempts,
    };
    Some(Month { spend, tokens: three_digits(tokens(&month)) })
}

/// What a tenant has spent in the month of `now` that has done nothing in it.
pub(crate) fn nothing_spent(now: Timestamp) -> SpendStatus {
    SpendStatus { month: month_of(now), usd: cents(0), unpriced_attempts: 0 }
}

fn tokens(month: &UsageTotals) -> i64 {
    let tokens = month.tokens.unwrap_or_default();
    let input = tokens.input_uncached_tokens + tokens.cache_read_tokens;
    input + tokens.cache_write_5m_tokens + tokens.cache_write_1h_tokens + tokens.output_tokens
}

/// The first three digits, and zeros.
fn three_digits(number: i64) -> i64 {
    let mut unit = 1;
    while number / unit >= 1_000 {
        unit *= 10;
    }
    number / unit * unit
}

fn month_of(time: Timestamp) -> String {
    time.strftime("%Y-%m").to_string()
}

/// Billionths of a dollar as dollars, to the nearest cent.
fn cents(nano_usd: i64) -> String {
    let cents = nano_usd.max(0).saturating_add(5_000_000) / 10_000_000;
    format!("{}.{:02}", cents / 100, cents % 100)
}

#[cfg(test)]
mod tests {
    use croft_proto::Timestamp;
    use croft_proto::v1::TokenUsage;

    use super::*;

    fn told(sessions_open: i64, cost_nano_usd: i64) -> TenantTotals {
        TenantTotals {
            tenant_id: "heron".into(),
            sessions_open,
            month: Some(UsageTotals { cost_nano_usd, unpriced_attempts: 2, ..UsageTotals::default() }),
            // 2026-11-01
            month_start: Some(Timestamp { seconds: 1_793_491_200, nanos: 0 }),
        }
    }

    #[test]
    fn what_a_status_would_not_show_is_no_change() {
        let totals = Totals::default();
        totals.tell(&told(3, 12_340_000_000));
        assert_eq!(totals.take_changed().len(), 1);
        totals.tell(&told(3, 12_344_999_999));
        assert!(totals.take_changed().is_empty());
        totals.tell(&told(3, 12_345_000_000));
        assert_eq!(totals.take_changed().len(), 1);
        let total = totals.of("heron").unwrap();
        assert_eq!(total.sessions_open, 3);
        let spend = total.month.unwrap().spend;
        assert_eq!((spend.month.as_str(), spend.usd.as_str(), spend.unpriced_attempts), ("2026-11", "12.35", 2));
    }

    #[test]
    fn tokens_are_told_to_three_digits() {
        let mut month = told(0, 0);
        let tokens = TokenUsage { input_uncached_tokens: 1_234_567, output_tokens: 1_000, ..TokenUsage::default() };
        month.month.as_mut().unwrap().tokens = Some(tokens);
        let totals = Totals::default();
        totals.tell(&month);
        assert_eq!(totals.of("heron").unwrap().month.unwrap().tokens, 1_230_000);
        assert_eq!([0, 7, 999, 1_000, 1_009].map(three_digits), [0, 7, 999, 1_000, 1_000]);
    }

    #[test]
    fn a_picture_forgets_tenants_that_are_gone() {
        let totals = Totals::default();
        totals.tell(&told(3, 0));
        totals.complete(&HashSet::new());
        assert_eq!(totals.of("heron"), None);
        assert!(totals.take_changed().is_empty());
    }

    /// Once, who was told without a month was forgotten, and sessions that waited for room heard of none.
    #[test]
    fn where_the_month_cannot_be_summed_up_what_is_open_is_told_and_the_last_sum_stays() {
        let totals = Totals::default();
        let open = |sessions_open| TenantTotals { tenant_id: "heron".into(), sessions_open, ..TenantTotals::default() };
        totals.tell(&open(3));
        assert_eq!(totals.of("heron"), Some(Total { sessions_open: 3, month: None }));
        totals.tell(&told(3, 12_340_000_000));
        let month = totals.of("heron").unwrap().month;
        assert!(month.is_some());
        totals.take_changed();
        totals.tell(&open(2));
        totals.complete(&HashSet::from(["heron".to_owned()]));
        assert_eq!(totals.of("heron"), Some(Total { sessions_open: 2, month }));
        assert_eq!(totals.take_changed().len(), 1, "there is room for one");
    }
}
