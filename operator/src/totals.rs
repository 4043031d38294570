//! What the fronts last told of each tenant: how many sessions are open, and what the month has cost.
//!
//! This is for statuses, which people look at: a tenant is looked at again where its status would read differently, and at most once in an
//! interval.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use croft_crds::tenant::{SpendStatus, nano_usd};
use croft_proto::v1::{BudgetAlert, TenantTotals, UsageTotals};
use jiff::Timestamp;
use kube::ResourceExt as _;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::session::admission;
use crate::tenant::reads_differently;

/// One tenant's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Total {
    /// Sessions that have not ended.
    pub(crate) sessions_open: i64,
    /// The last that could be told.
    pub(crate) month: Option<Month>,
}

/// What a month has cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Month {
    /// As a status shows it.
    pub(crate) spend: SpendStatus,
    /// Billionths of a US dollar, to the last.
    pub(crate) nano_usd: i64,
    /// Of all classes in the month.
    pub(crate) tokens: i64,
    /// The thresholds of the tenant's budget that were told of.
    pub(crate) alerts: Vec<BudgetAlert>,
}

impl Month {
    /// As far as a status tells: to the cent, and of tokens and thresholds nothing.
    pub(crate) fn shown(spend: SpendStatus) -> Self {
        Self { nano_usd: nano_usd(&spend.usd).unwrap_or(0), tokens: 0, alerts: Vec::new(), spend }
    }
}

impl Total {
    /// What a status shows as it is.
    fn shown(&self) -> (i64, Option<&SpendStatus>) {
        (self.sessions_open, self.month.as_ref().map(|month| &month.spend))
    }
}

/// By the UID of the AgentTenant. Only the replica that writes listens, so only it has any.
#[derive(Default)]
pub struct Totals {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    by_tenant: HashMap<String, Total>,
    /// Since they were taken last: those whose status shows other numbers now.
    changed: HashSet<String>,
    /// And those of which only what the status judges by is another.
    moved: HashSet<String>,
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
            let is_shown = before.map(Total::shown) != Some(total.shown());
            inner.by_tenant.insert(totals.tenant_id.clone(), total);
            let marked = if is_shown { &mut inner.changed } else { &mut inner.moved };
            marked.insert(totals.tenant_id.clone());
        }
    }

    /// A picture is complete that named just these.
    pub(crate) fn complete(&self, named: &HashSet<String>) {
        let mut inner = self.inner();
        inner.by_tenant.retain(|tenant_id, _| named.contains(tenant_id));
        inner.changed.retain(|tenant_id| named.contains(tenant_id));
        inner.moved.retain(|tenant_id| named.contains(tenant_id));
    }

    fn take_changed(&self) -> HashSet<String> {
        std::mem::take(&mut self.inner().changed)
    }

    fn take_moved(&self) -> HashSet<String> {
        std::mem::take(&mut self.inner().moved)
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
            let (changed, moved) = (context.totals.take_changed(), context.totals.take_moved());
            if changed.is_empty() && moved.is_empty() {
                continue;
            }
            for tenant in context.cluster.tenants.state() {
                let Some(uid) = &tenant.metadata.uid else { continue };
                if changed.contains(uid) {
                    context.cluster.changes.tenants.mark(tenant.name_any());
                    admission::wake(&tenant, &context);
                } else if moved.contains(uid) {
                    let month = context.totals.of(uid).and_then(|total| total.month);
                    if reads_differently(&tenant, &context.settings.tiers, month.as_ref()) {
                        context.cluster.changes.tenants.mark(tenant.name_any());
                    }
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
    Some(Month { spend, nano_usd: month.cost_nano_usd, tokens: tokens(&month), alerts: totals.alerts.clone() })
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
            alerts: Vec::new(),
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
    fn what_the_budget_is_judged_by_is_kept_to_the_last_and_may_move_without_a_change() {
        let totals = Totals::default();
        totals.tell(&told(3, 12_340_000_000));
        totals.take_changed();
        let mut month = told(3, 12_340_000_001);
        let tokens = TokenUsage { input_uncached_tokens: 1_234_567, output_tokens: 1_000, ..TokenUsage::default() };
        month.month.as_mut().unwrap().tokens = Some(tokens);
        for percent in [90, 100] {
            month.alerts = vec![BudgetAlert { percent, ..BudgetAlert::default() }];
            totals.tell(&month);
            assert!(totals.take_changed().is_empty(), "no number that is shown is another");
            assert_eq!(totals.take_moved(), HashSet::from(["heron".to_owned()]));
        }
        totals.tell(&month);
        assert!(totals.take_moved().is_empty());
        let known = totals.of("heron").unwrap().month.unwrap();
        assert_eq!((known.nano_usd, known.tokens, known.alerts[0].percent), (12_340_000_001, 1_235_567, 100));
    }

    #[test]
    fn a_picture_forgets_tenants_that_are_gone() {
        let totals = Totals::default();
        totals.tell(&told(3, 0));
        totals.tell(&told(3, 1));
        totals.complete(&HashSet::new());
        assert_eq!(totals.of("heron"), None);
        assert!(totals.take_changed().is_empty() && totals.take_moved().is_empty());
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
