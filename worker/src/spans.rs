//! The spans of what a turn does here, by OpenTelemetry's names: <https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/>. They tell
//! of sizes, names and outcomes, and never what was said: no text, arguments, results or messages of errors.

use std::time::Duration;

use croft_llm::{Class, gemini};
use croft_proto::id::SessionId;
use croft_proto::v1::{Grant, TokenUsage};
use opentelemetry::trace::Status;
use opentelemetry::{Array, Value};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

const ERROR_TYPE: &str = "error.type";
const RESPONSE_ID: &str = "gen_ai.response.id";
const RESPONSE_MODEL: &str = "gen_ai.response.model";
const RESPONSE_FINISH_REASONS: &str = "gen_ai.response.finish_reasons";
const RESPONSE_TIME_TO_FIRST_CHUNK: &str = "gen_ai.response.time_to_first_chunk";
const USAGE_INPUT_TOKENS: &str = "gen_ai.usage.input_tokens";
const USAGE_OUTPUT_TOKENS: &str = "gen_ai.usage.output_tokens";
const USAGE_CACHE_READ_INPUT_TOKENS: &str = "gen_ai.usage.cache_read.input_tokens";
const USAGE_CACHE_CREATION_INPUT_TOKENS: &str = "gen_ai.usage.cache_creation.input_tokens";
const USAGE_REASONING_OUTPUT_TOKENS: &str = "gen_ai.usage.reasoning.output_tokens";

/// One attempt at a model, under the current span.
pub(crate) fn chat(grant: &Grant, session: SessionId, agent: &str) -> Span {
    tracing::info_span!(
        "chat",
        otel.name = format!("chat {}", grant.model),
        otel.kind = "client",
        gen_ai.operation.name = "chat",
        gen_ai.provider.name = provider(&grant.provider),
        gen_ai.request.model = %grant.model,
        gen_ai.conversation.id = %session,
        gen_ai.agent.name = agent,
    )
}

/// One call of a tool, under the current span.
pub(crate) fn execute_tool(name: &str, tool_call_id: &str) -> Span {
    tracing::info_span!(
        "execute_tool",
        otel.name = format!("execute_tool {name}"),
        gen_ai.operation.name = "execute_tool",
        gen_ai.tool.name = name,
        gen_ai.tool.call.id = tool_call_id,
    )
}

/// What is known of an attempt once it is over.
pub(crate) struct Ended<'attempt> {
    /// This and the next are empty until the provider took the call.
    pub(crate) response_id: &'attempt str,
    pub(crate) response_model: &'attempt str,
    /// The fixed word for how it ended, unless it failed.
    pub(crate) outcome: Result<&'static str, Class>,
    /// If the provider told it.
    pub(crate) usage: Option<TokenUsage>,
    pub(crate) first_token: Option<Duration>,
}

impl Ended<'_> {
    /// Writes it on the span of the attempt. Not as fields of the span: those know no lists, and come with each log line.
    pub(crate) fn record(&self, span: &Span) {
        for (name, value) in [(RESPONSE_ID, self.response_id), (RESPONSE_MODEL, self.response_model)] {
            if !value.is_empty() {
                span.set_attribute(name, value.to_owned());
            }
        }
        match self.outcome {
            Ok(reason) => span.set_attribute(RESPONSE_FINISH_REASONS, Value::Array(Array::String(vec![reason.into()]))),
            Err(class) => failed(span, class.as_str()),
        }
        if let Some(first_token) = self.first_token {
            span.set_attribute(RESPONSE_TIME_TO_FIRST_CHUNK, first_token.as_secs_f64());
        }
        if let Some(usage) = &self.usage {
            for (name, tokens) in tokens(usage) {
                span.set_attribute(name, tokens);
            }
        }
    }
}

/// Marks what the span is of as failed. The word is a fixed one.
pub(crate) fn failed(span: &Span, error_type: &'static str) {
    span.set_attribute(ERROR_TYPE, error_type);
    span.set_status(Status::error(""));
}

/// The convention counts what a cache served or took in to the input, and reasoning to the output.
fn tokens(usage: &TokenUsage) -> [(&'static str, i64); 5] {
    let cache_creation = usage.cache_write_5m_tokens.saturating_add(usage.cache_write_1h_tokens);
    let input = usage.input_uncached_tokens.saturating_add(usage.cache_read_tokens).saturating_add(cache_creation);
    [
        (USAGE_INPUT_TOKENS, input),
        (USAGE_OUTPUT_TOKENS, usage.output_tokens),
        (USAGE_CACHE_READ_INPUT_TOKENS, usage.cache_read_tokens),
        (USAGE_CACHE_CREATION_INPUT_TOKENS, cache_creation),
        (USAGE_REASONING_OUTPUT_TOKENS, usage.reasoning_tokens),
    ]
}

/// The convention's name of a provider; it knows `anthropic` and `openai` by ours.
fn provider(name: &str) -> &str {
    if name == gemini::NAME { "gcp.gemini" } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_cache_served_or_took_in_is_input_too() {
        let usage = TokenUsage {
            input_uncached_tokens: 1,
            cache_read_tokens: 20,
            cache_write_5m_tokens: 300,
            cache_write_1h_tokens: 4000,
            output_tokens: 50,
            reasoning_tokens: 6,
        };
        assert_eq!(tokens(&usage).map(|(_, tokens)| tokens), [4321, 50, 20, 4300, 6]);
    }
}
