//! What a front has told of a declared session: the part of it that a status has room for.

use croft_crds::labels;
use croft_crds::session::SessionUsageStatus;
use croft_proto::Timestamp;
use croft_proto::v1::{Session, SessionState, UsageTotals};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// A session of the front, without its agent: there may be very many of them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Known {
    pub(super) session_id: String,
    pub(super) state: SessionState,
    pub(super) worker: String,
    pub(super) last_seq: u64,
    pub(super) usage: Option<SessionUsageStatus>,
    pub(super) last_activity: Option<Time>,
    pub(super) end_reason: String,
}

impl Known {
    pub(super) fn of(session: &Session) -> Self {
        Self {
            session_id: session.session_id.clone(),
            state: session.state(),
            worker: session.worker.clone(),
            last_seq: session.last_seq,
            usage: session.usage.as_ref().filter(|usage| usage.attempts > 0).map(usage),
            last_activity: session.update_time.as_ref().and_then(time),
            end_reason: session.terminate_reason.clone(),
        }
    }

    /// Whether there is still something that could be ended.
    pub(super) fn is_open(&self) -> bool {
        self.state != SessionState::Terminated
    }
}

/// The name of the AgentSession that a session was made for.
pub(super) fn object_name(session: &Session) -> Option<&str> {
    session.labels.get(labels::AGENT_SESSION_NAME).map(String::as_str)
}

fn usage(totals: &UsageTotals) -> SessionUsageStatus {
    let tokens = totals.tokens.unwrap_or_default();
    SessionUsageStatus {
        attempts: totals.attempts,
        input_tokens: tokens
            .input_uncached_tokens
            .saturating_add(tokens.cache_read_tokens)
            .saturating_add(tokens.cache_write_5m_tokens)
            .saturating_add(tokens.cache_write_1h_tokens),
        output_tokens: tokens.output_tokens,
        cost_usd: dollars(totals.cost_nano_usd),
    }
}

/// To the second, as conditions have it.
fn time(timestamp: &Timestamp) -> Option<Time> {
    jiff::Timestamp::from_second(timestamp.seconds).ok().map(Time)
}

/// Billionths of a dollar as dollars, exact, with at least two digits after the point.
fn dollars(nano_usd: i64) -> String {
    let nano_usd = nano_usd.max(0);
    let fraction = format!("{:09}", nano_usd % 1_000_000_000);
    let digits = fraction.trim_end_matches('0').len().max(2);
    format!("{}.{}", nano_usd / 1_000_000_000, &fraction[..digits])
}

#[cfg(test)]
mod tests {
    use croft_proto::v1::TokenUsage;

    use super::*;

    #[test]
    fn the_classes_of_input_are_added_up_and_money_is_exact() {
        let session = Session {
            usage: Some(UsageTotals {
                attempts: 3,
                tokens: Some(TokenUsage {
                    input_uncached_tokens: 1,
                    cache_read_tokens: 20,
                    cache_write_5m_tokens: 300,
                    cache_write_1h_tokens: 4_000,
                    output_tokens: 50_000,
                    reasoning_tokens: 49_000,
                }),
                cost_nano_usd: 12_345_000,
                unpriced_attempts: 0,
            }),
            ..Session::default()
        };
        let usage = Known::of(&session).usage.unwrap();
        assert_eq!((usage.attempts, usage.input_tokens, usage.output_tokens), (3, 4_321, 50_000));
        assert_eq!(usage.cost_usd, "0.012345");
    }

    #[test]
    fn dollars_have_two_digits_or_as_many_as_they_need() {
        for (nano_usd, text) in
            [(0, "0.00"), (1, "0.000000001"), (500_000_000, "0.50"), (12_340_000_000, "12.34"), (-1, "0.00")]
        {
            assert_eq!(dollars(nano_usd), text);
        }
    }
}
