//! How a tenant stands with its budget for the month, as a condition: what its people must know before its sessions stop.

use croft_crds::AgentTenant;
use croft_crds::condition::Verdict;
use croft_crds::tenant::{OnExceeded, nano_usd};

use super::bounds::budget;
use super::tier::Tiers;
use crate::totals::Month;

/// The condition's type. It is there only while the tenant has a budget.
pub(super) const KIND: &str = "WithinBudget";

/// Of the limit that is nearest. The same thresholds are events of the sessions that reach them.
const THRESHOLDS: [i128; 4] = [100, 90, 80, 50];

/// Of the limit: what is left of less spent has room for calls of the usual size, whatever was refused.
const NEARLY: i128 = 90;

/// One limit of a budget, and how near it is.
struct Reached {
    /// For sentences: `20 USD`.
    limit: String,
    /// Of the limit, whole ones: 100 also where what is left has no room for a call.
    percent: i128,
    /// As much as it is spent, or more.
    is_spent: bool,
}

/// `None` for a tenant without a budget.
pub(super) fn within_budget(tenant: &AgentTenant, tiers: &Tiers, month: Option<&Month>) -> Option<Verdict> {
    let budget = budget(tenant, tiers);
    let of_money = budget.monthly_usd.as_deref().and_then(|usd| {
        let spent = month.map_or(0, |month| month.nano_usd);
        reached(format!("{usd} USD"), "nano_usd", nano_usd(usd)?, spent, month)
    });
    let of_tokens = budget.monthly_tokens.and_then(|limit| {
        let spent = month.map_or(0, |month| month.tokens);
        reached(format!("{limit} tokens"), "tokens", limit, spent, month)
    });
    // Of two that are as near, what is spent says more than what has no room; then money.
    let nearest = of_tokens.into_iter().chain(of_money).max_by_key(|reached| (reached.percent, reached.is_spent))?;
    let Reached { limit, percent, is_spent } = nearest;
    let threshold = THRESHOLDS.into_iter().find(|threshold| percent >= *threshold);
    let (holds, reason) = match threshold {
        None => (true, "BudgetAmple"),
        Some(50) => (true, "BudgetHalfSpent"),
        Some(100) => (false, "BudgetSpent"),
        Some(_) => (true, "BudgetNearlySpent"),
    };
    let message = match (threshold, budget.on_exceeded.unwrap_or_default()) {
        (None, _) => format!("less than half of the month's {limit} is spent"),
        (Some(100), OnExceeded::Block) if !is_spent => {
            format!("what is left of the month's {limit} has no room for a call: model calls are refused")
        }
        (Some(100), OnExceeded::Block) => format!("the month's {limit} is spent: model calls are refused"),
        (Some(100), OnExceeded::Throttle) => format!("the month's {limit} is spent: model calls are slowed down"),
        (Some(100), OnExceeded::Warn) => format!("the month's {limit} is spent"),
        (Some(percent), _) => format!("{percent} % of the month's {limit} is spent"),
    };
    Some(Verdict { kind: KIND, holds: Some(holds), reason, message })
}

/// Whether the tenant's status says something else of its budget than there is to say of this month.
pub(crate) fn reads_differently(tenant: &AgentTenant, tiers: &Tiers, month: Option<&Month>) -> bool {
    let Some(verdict) = within_budget(tenant, tiers, month) else { return false };
    let mut told = tenant.status.iter().flat_map(|status| &status.conditions);
    told.find(|condition| condition.type_ == KIND)
        .is_none_or(|told| (told.reason.as_str(), told.message.as_str()) != (verdict.reason, verdict.message.as_str()))
}

/// `None` for a limit of nothing, which is none. What the fronts told of a threshold counts for the limit as it is, and for as long as so
/// much is spent: sums may be corrected. A single call that is too large for what is left is refused, and tells of every threshold too;
/// while more than [`NEARLY`] is free, smaller ones go on.
fn reached(limit_told: String, unit: &str, limit: i64, spent: i64, month: Option<&Month>) -> Option<Reached> {
    let limit = Some(limit).filter(|limit| *limit > 0)?;
    let alerts = month.map_or(&[][..], |month| &month.alerts).iter();
    let its = alerts.filter(|alert| (alert.unit.as_str(), alert.limit) == (unit, limit) && alert.spent <= spent);
    let told = its.map(|alert| i128::from(alert.percent)).max().unwrap_or(0);
    let percent = i128::from(spent) * 100 / i128::from(limit);
    let told = if percent >= NEARLY { told } else { 0 };
    Some(Reached { limit: limit_told, percent: percent.max(told), is_spent: spent >= limit })
}

#[cfg(test)]
mod tests {
    use croft_crds::tenant::BudgetSpec;
    use croft_proto::Timestamp;
    use croft_proto::v1::{BudgetAlert, TenantTotals, TokenUsage, UsageTotals};

    use super::super::fixtures;
    use super::*;
    use crate::totals::Totals;

    /// What the fronts told of a month.
    fn month(nano_usd: i64, tokens: i64, alerts: Vec<BudgetAlert>) -> Month {
        let tokens = TokenUsage { output_tokens: tokens, ..TokenUsage::default() };
        let month = UsageTotals { cost_nano_usd: nano_usd, tokens: Some(tokens), ..UsageTotals::default() };
        let totals = Totals::default();
        totals.tell(&TenantTotals {
            tenant_id: "heron".into(),
            month: Some(month),
            // 2026-11-01
            month_start: Some(Timestamp { seconds: 1_793_491_200, nanos: 0 }),
            alerts,
            ..TenantTotals::default()
        });
        totals.of("heron").unwrap().month.unwrap()
    }

    fn told(usd: &str, tokens: i64) -> (&'static str, String) {
        let month = month(nano_usd(usd).unwrap(), tokens, Vec::new());
        // 123.45 USD and a million tokens.
        let verdict = within_budget(&fixtures::full(), &Tiers::default(), Some(&month)).unwrap();
        assert_eq!(verdict.holds, Some(verdict.reason != "BudgetSpent"));
        (verdict.reason, verdict.message)
    }

    /// Of a tenant with this budget alone.
    fn reason(usd: Option<&str>, tokens: Option<i64>, month: &Month) -> &'static str {
        let mut tenant = fixtures::full();
        let monthly_usd = usd.map(str::to_owned);
        tenant.spec.budget = BudgetSpec { monthly_usd, monthly_tokens: tokens, ..tenant.spec.budget };
        within_budget(&tenant, &Tiers::default(), Some(month)).unwrap().reason
    }

    #[test]
    fn the_nearest_limit_is_told_by_its_threshold() {
        for (usd, tokens, reason, message) in [
            ("0.00", 0, "BudgetAmple", "less than half of the month's 123.45 USD is spent"),
            ("61.72", 499_000, "BudgetAmple", "less than half of the month's 123.45 USD is spent"),
            ("61.73", 0, "BudgetHalfSpent", "50 % of the month's 123.45 USD is spent"),
            ("0.00", 800_000, "BudgetNearlySpent", "80 % of the month's 1000000 tokens is spent"),
            ("112.00", 899_000, "BudgetNearlySpent", "90 % of the month's 123.45 USD is spent"),
            ("123.45", 0, "BudgetSpent", "the month's 123.45 USD is spent"),
            ("9999.00", 0, "BudgetSpent", "the month's 123.45 USD is spent"),
        ] {
            assert_eq!(told(usd, tokens), (reason, message.to_owned()), "{usd}, {tokens}");
        }
    }

    /// Once, tokens were cut to three digits and money rounded to cents before they were held against the limit.
    #[test]
    fn what_is_spent_is_held_against_the_limit_to_the_last_token_and_the_billionth_of_a_dollar() {
        let of_tokens = |spent| reason(None, Some(1_234_567), &month(0, spent, Vec::new()));
        assert_eq!(of_tokens(1_234_567), "BudgetSpent");
        assert_eq!(of_tokens(1_234_566), "BudgetNearlySpent");
        let of_money = |limit, spent| reason(Some(limit), None, &month(spent, 0, Vec::new()));
        assert_eq!(of_money("0.01", 5_000_000), "BudgetHalfSpent");
        assert_eq!(of_money("0.01", 9_999_999), "BudgetNearlySpent");
        assert_eq!(of_money("0.004", 4_000_000), "BudgetSpent");
    }

    /// Once, only what was spent counted, so that a budget that refuses what goes beyond it was never told to be spent.
    #[test]
    fn a_budget_without_room_for_a_call_is_spent_while_its_limit_and_its_sum_stand() {
        let alert = |limit, spent| BudgetAlert {
            unit: "nano_usd".into(),
            percent: 100,
            limit,
            spent,
            ..BudgetAlert::default()
        };
        let of = |spent, alert| reason(Some("5"), None, &month(spent, 0, vec![alert]));
        assert_eq!(of(4_970_000_000, alert(5_000_000_000, 4_970_000_000)), "BudgetSpent");
        assert_eq!(of(4_970_000_000, alert(4_000_000_000, 3_990_000_000)), "BudgetNearlySpent", "the limit was raised");
        assert_eq!(of(1_000_000_000, alert(5_000_000_000, 4_970_000_000)), "BudgetAmple", "the sum was corrected");
        assert_eq!(of(0, alert(5_000_000_000, 0)), "BudgetAmple", "one call was larger than all of it");
        let at = |spent| of(spent, alert(5_000_000_000, spent));
        assert_eq!((at(4_499_999_999), at(4_500_000_000)), ("BudgetNearlySpent", "BudgetSpent"));

        let mut tenant = fixtures::full();
        tenant.spec.budget.on_exceeded = Some(OnExceeded::Block);
        let month = month(120_000_000_000, 0, vec![alert(123_450_000_000, 120_000_000_000)]);
        let verdict = within_budget(&tenant, &Tiers::default(), Some(&month)).unwrap();
        let message = "what is left of the month's 123.45 USD has no room for a call: model calls are refused";
        assert_eq!(verdict.message, message);
    }

    #[test]
    fn what_happens_at_the_limit_is_said() {
        let mut tenant = fixtures::full();
        let month = month(200_000_000_000, 0, Vec::new());
        tenant.spec.budget.on_exceeded = Some(OnExceeded::Block);
        let verdict = within_budget(&tenant, &Tiers::default(), Some(&month)).unwrap();
        assert!(verdict.message.ends_with("model calls are refused"), "{}", verdict.message);
    }
}
