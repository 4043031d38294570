//! What a tenant may spend on models.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Bounds of a calendar month (UTC); what is not set comes from the tier.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BudgetSpec {
    /// What the models may cost, in US dollars, for example "250" or "0.50".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 19), regex(pattern = r"^[0-9]{1,9}(\.[0-9]{1,9})?$"))]
    #[x_kube(
        validation = Rule::new("self.matches('[1-9]')")
            .message("monthlyUsd is nothing at all: to stop a tenant set suspend")
    )]
    pub monthly_usd: Option<String>,
    /// Tokens of all classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000_000_000_i64))]
    pub monthly_tokens: Option<i64>,
    /// What happens when either is used up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_exceeded: Option<OnExceeded>,
}

/// What happens to model calls when a budget is used up.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnExceeded {
    /// They are refused until the month ends or the budget grows.
    #[default]
    Block,
    /// They are slowed down.
    Throttle,
    /// They go on, and it is told.
    Warn,
}

/// Dollars, as written in a spec, in billionths of a dollar; `None` if the text is no amount of money.
pub fn nano_usd(dollars: &str) -> Option<i64> {
    let (whole, fraction) = dollars.split_once('.').unwrap_or((dollars, "0"));
    let digits = |part: &str| (1..=9).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return None;
    }
    let whole: i64 = whole.parse().ok()?;
    let fraction: i64 = format!("{fraction:0<9}").parse().ok()?;
    whole.checked_mul(1_000_000_000)?.checked_add(fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_is_exact() {
        assert_eq!(nano_usd("250"), Some(250_000_000_000));
        assert_eq!(nano_usd("0.50"), Some(500_000_000));
        assert_eq!(nano_usd("0.000000001"), Some(1));
        assert_eq!(nano_usd("999999999.999999999"), Some(999_999_999_999_999_999));
        for text in ["", ".5", "1.", "-1", "1e3", "1.0000000001", "9999999999"] {
            assert_eq!(nano_usd(text), None, "{text:?}");
        }
    }
}
