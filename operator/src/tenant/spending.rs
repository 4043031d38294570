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
const THRESHOLDS: [i64; 4] = [100, 90, 80, 50];

/// `None` for a tenant without a budget.
pub(super) fn within_budget(tenant: &AgentTenant, tiers: &Tiers, month: Option<&Month>) -> Option<Verdict> {
    let budget = budget(tenant, tiers);
    let spent =
        |limit: Option<i64>, spent: i64| Some(i128::from(spent) * 100 / i128::from(limit.filter(|limit| *limit > 0)?));
    let money = budget.monthly_usd.as_deref().and_then(nano_usd);
    let spent_usd = month.and_then(|month| nano_usd(&month.spend.usd)).unwrap_or(0);
    let of_money = spent(money, spent_usd);
    let of_tokens = spent(budget.monthly_tokens, month.map_or(0, |month| month.tokens));
    let percent = of_money.into_iter().chain(of_tokens).max()?;
    let reached = THRESHOLDS.into_iter().find(|threshold| percent >= i128::from(*threshold));
    let what = if of_money == Some(percent) {
        format!("{} USD", budget.monthly_usd.unwrap_or_default())
    } else {
        format!("{} tokens", budget.monthly_tokens.unwrap_or_default())
    };
    let (holds, reason) = match reached {
        None => (true, "BudgetAmple"),
        Some(50) => (true, "BudgetHalfSpent"),
        Some(100) => (false, "BudgetSpent"),
        Some(_) => (true, "BudgetNearlySpent"),
    };
    let message = match (reached, budget.on_exceeded.unwrap_or_default()) {
        (None, _) => format!("less than half of the month's {what} is spent"),
        (Some(100), OnExceeded::Block) => format!("the month's {what} is spent: model calls are refused"),
        (Some(100), OnExceeded::Throttle) => format!("the month's {what} is spent: model calls are slowed down"),
        (Some(100), OnExceeded::Warn) => format!("the month's {what} is spent"),
        (Some(percent), _) => format!("{percent} % of the month's {what} is spent"),
    };
    Some(Verdict { kind: KIND, holds: Some(holds), reason, message })
}

#[cfg(test)]
mod tests {
    use croft_crds::tenant::SpendStatus;

    use super::super::fixtures;
    use super::*;

    fn told(usd: &str, tokens: i64) -> (&'static str, String) {
        let spend = SpendStatus { month: "2026-11".into(), usd: usd.into(), unpriced_attempts: 0 };
        let month = Month { spend, tokens };
        // 123.45 USD and a million tokens.
        let verdict = within_budget(&fixtures::full(), &Tiers::default(), Some(&month)).unwrap();
        assert_eq!(verdict.holds, Some(verdict.reason != "BudgetSpent"));
        (verdict.reason, verdict.message)
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

    #[test]
    fn what_happens_at_the_limit_is_said() {
        let mut tenant = fixtures::full();
        let spend = SpendStatus { month: "2026-11".into(), usd: "200.00".into(), unpriced_attempts: 0 };
        let month = Month { spend, tokens: 0 };
        tenant.spec.budget.on_exceeded = Some(OnExceeded::Block);
        let verdict = within_budget(&tenant, &Tiers::default(), Some(&month)).unwrap();
        assert!(verdict.message.ends_with("model calls are refused"), "{}", verdict.message);
    }
}
