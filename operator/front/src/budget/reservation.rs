//! What one model call may cost at most, and what it is settled to.

use std::sync::Arc;

use croft_proto::estimate;
use croft_proto::v1::{BudgetReached, Model, ModelAttempt, TokenUsage};

use super::keeper::reached_event;
use super::{Budget, Budgets};
use crate::counters::{Amount, Ask};
use crate::models::price::Quote;

/// Tokens of output below which a call is not worth making: a budget that has room for fewer is used up.
pub const OUTPUT_TOKENS_MIN: i64 = 64;

/// The grant of one model call, and what was reserved for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Reservation {
    /// That may be called, as it was known then.
    pub model: Arc<Model>,
    /// As it was granted: its id is the grant's.
    pub ask: Ask,
    /// That hold for the call, as far as it was looked at last.
    pub budgets: Budgets,
    /// `None` when the price is unknown.
    pub quote: Option<Quote>,
    pub input_tokens: i64,
    pub output_tokens_max: i64,
    /// The budget that left no room for as much output as was asked for.
    pub clipped_by: Option<Budget>,
    /// Of the answer so far, as it was shown: see [`estimate`].
    pub weight: usize,
}

impl Reservation {
    /// What the call may have cost by now: no more than what was reserved for it, however much its answer weighs.
    pub fn so_far(&self) -> Amount {
        let output = i64::try_from(self.weight / estimate::TOKEN).unwrap_or(i64::MAX).min(self.output_tokens_max);
        Amount {
            nano_usd: self.quote.map_or(0, |quote| quote.nano_usd(self.input_tokens, output)),
            tokens: self.input_tokens.saturating_add(output),
        }
    }

    /// Why the session's work must end with this attempt, if it must: its output was cut short for want of room, or nobody
    /// knows what it cost.
    pub fn ends_with(&self, attempt: &ModelAttempt) -> Option<BudgetReached> {
        if let Some(budget) = self.budgets.hard_money().filter(|_| attempt.cost_nano_usd.is_none()) {
            let (model, described) = (&attempt.model, budget.described());
            let message = format!("what a call of model {model} cost is not known, and {described} must not be passed");
            return Some(BudgetReached { scope: budget.scope.as_str().to_owned(), message });
        }
        let clipped_by = self.clipped_by.as_ref().filter(|_| attempt.finish_reason == "max_tokens")?;
        Some(reached_event(Some(clipped_by)))
    }
}

/// Tokens of all classes. What is negative is none: see `store::projection`.
pub fn tokens_of(usage: &TokenUsage) -> i64 {
    let TokenUsage {
        input_uncached_tokens,
        cache_read_tokens,
        cache_write_5m_tokens,
        cache_write_1h_tokens,
        output_tokens,
        ..
    } = usage;
    [input_uncached_tokens, cache_read_tokens, cache_write_5m_tokens, cache_write_1h_tokens, output_tokens]
        .into_iter()
        .fold(0_i64, |sum, class| sum.saturating_add((*class).max(0)))
}

/// How much output fits what is left, when so much input is certain.
pub fn output_that_fits(left: Amount, quote: Option<Quote>, input_tokens: i64) -> i64 {
    let by_tokens = left.tokens.saturating_sub(input_tokens);
    let by_money = quote.map_or(i64::MAX, |quote| quote.output_for(left.nano_usd, input_tokens));
    by_tokens.min(by_money)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use croft_proto::id::TenantId;

    use super::*;

    #[test]
    fn a_call_has_used_no_more_than_it_was_given_however_long_its_tokens_are() {
        let ask = Ask {
            tenant: TenantId::generate(),
            id: "a call".into(),
            ttl: Duration::from_secs(1),
            nano_usd: 0,
            tokens: 0,
            windows: Vec::new(),
            bounds: Vec::new(),
        };
        let of = |weight| Reservation {
            model: Arc::default(),
            ask: ask.clone(),
            budgets: Budgets::default(),
            quote: None,
            input_tokens: 10,
            output_tokens_max: 100,
            clipped_by: None,
            weight,
        };
        for (weight, tokens) in [(0, 10), (200, 60), (400, 110), (1_000, 110)] {
            assert_eq!(of(weight).so_far().tokens, tokens, "{weight}");
        }
    }
}
