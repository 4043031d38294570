//! What an agent's limits must look like. Bounds are those of the kind `AgentSession`; 0 is none of an agent's own.

use std::ops::RangeInclusive;

use croft_proto::v1::AgentLimits;

use crate::error::Error;

/// Of models and of tools, in one turn.
const CALLS_MAX: u32 = 10_000;
const OUTPUT_TOKENS_MAX: u32 = 10_000_000;
const CONTEXT_TOKENS: RangeInclusive<u32> = 256..=100_000_000;
const TURN_TIMEOUT_MS_MAX: i64 = 86_400_000;
/// Nine digits of dollars and nine of their parts.
const BUDGET_NANO_USD_MAX: i64 = 999_999_999_999_999_999;
const BUDGET_TOKENS_MAX: i64 = 1_000_000_000_000;

/// The limits of a new session's agent.
pub(super) fn limits(limits: &AgentLimits) -> Result<(), Error> {
    for (field, count, max) in [
        ("agent.limits.model_calls_max", limits.model_calls_max, CALLS_MAX),
        ("agent.limits.tool_calls_max", limits.tool_calls_max, CALLS_MAX),
        ("agent.limits.output_tokens_max", limits.output_tokens_max, OUTPUT_TOKENS_MAX),
    ] {
        between_zero_and(count.into(), max.into()).map_err(|problem| Error::invalid(field, problem))?;
    }
    for (field, amount, max) in [
        ("agent.limits.budget_nano_usd", limits.budget_nano_usd, BUDGET_NANO_USD_MAX),
        ("agent.limits.budget_tokens", limits.budget_tokens, BUDGET_TOKENS_MAX),
    ] {
        between_zero_and(amount, max).map_err(|problem| Error::invalid(field, problem))?;
    }
    milliseconds(limits.turn_timeout_ms, TURN_TIMEOUT_MS_MAX)
        .map_err(|problem| Error::invalid("agent.limits.turn_timeout_ms", problem))?;
    if limits.context_tokens_max != 0 && !CONTEXT_TOKENS.contains(&limits.context_tokens_max) {
        let (min, max) = (CONTEXT_TOKENS.start(), CONTEXT_TOKENS.end());
        let problem = format!("is not 0 and not between {min} and {max}");
        return Err(Error::invalid("agent.limits.context_tokens_max", problem));
    }
    Ok(())
}

/// A time that something may take, in milliseconds; or what is wrong with it.
pub(super) fn milliseconds(time: i64, max: i64) -> Result<(), String> {
    between_zero_and(time, max)
}

fn between_zero_and(number: i64, max: i64) -> Result<(), String> {
    match number {
        ..0 => Err("is negative".to_owned()),
        number if number > max => Err(format!("is more than {max}")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bound_is_the_last_that_is_taken() {
        let none = AgentLimits::default();
        let cases = [
            (none, ""),
            (AgentLimits { model_calls_max: 10_000, ..none }, ""),
            (AgentLimits { model_calls_max: 10_001, ..none }, "agent.limits.model_calls_max is more than 10000"),
            (AgentLimits { tool_calls_max: 10_000, ..none }, ""),
            (AgentLimits { tool_calls_max: 10_001, ..none }, "agent.limits.tool_calls_max is more than 10000"),
            (AgentLimits { output_tokens_max: 10_000_000, ..none }, ""),
            (
                AgentLimits { output_tokens_max: 10_000_001, ..none },
                "agent.limits.output_tokens_max is more than 10000000",
            ),
            (AgentLimits { context_tokens_max: 256, ..none }, ""),
            (AgentLimits { context_tokens_max: 100_000_000, ..none }, ""),
            (
                AgentLimits { context_tokens_max: 255, ..none },
                "agent.limits.context_tokens_max is not 0 and not between 256 and 100000000",
            ),
            (
                AgentLimits { context_tokens_max: 100_000_001, ..none },
                "agent.limits.context_tokens_max is not 0 and not between 256 and 100000000",
            ),
            (AgentLimits { turn_timeout_ms: 86_400_000, ..none }, ""),
            (AgentLimits { turn_timeout_ms: 86_400_001, ..none }, "agent.limits.turn_timeout_ms is more than 86400000"),
            (AgentLimits { turn_timeout_ms: -1, ..none }, "agent.limits.turn_timeout_ms is negative"),
            (AgentLimits { budget_nano_usd: 999_999_999_999_999_999, ..none }, ""),
            (
                AgentLimits { budget_nano_usd: 1_000_000_000_000_000_000, ..none },
                "agent.limits.budget_nano_usd is more than 999999999999999999",
            ),
            (AgentLimits { budget_nano_usd: -1, ..none }, "agent.limits.budget_nano_usd is negative"),
            (AgentLimits { budget_tokens: 1_000_000_000_000, ..none }, ""),
            (
                AgentLimits { budget_tokens: 1_000_000_000_001, ..none },
                "agent.limits.budget_tokens is more than 1000000000000",
            ),
            (AgentLimits { budget_tokens: -1, ..none }, "agent.limits.budget_tokens is negative"),
        ];
        for (agents, expected) in cases {
            let refusal = limits(&agents).err().map(|error| error.to_string()).unwrap_or_default();
            assert_eq!(refusal, expected, "{agents:?}");
        }
    }
}
