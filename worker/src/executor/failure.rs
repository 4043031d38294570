//! What a failed model call means for the turn.

use std::time::Duration;

use croft_llm::retry::Schedule;
use croft_llm::{Class, Error, Stop};
use croft_proto::v1::{GrantRefused, SessionError, StopReason};

use super::chain::Cause;

/// Why nothing came of an attempt.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Call(Error),
    /// The provider answered, so that it is no error of its own. Another answer may do better.
    #[error("{provider} could make no sense of the tool call that the model wrote")]
    BadToolCall { provider: &'static str },
}

impl Failure {
    /// The fixed word for logs and metrics.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Call(error) => error.class.as_str(),
            Self::BadToolCall { .. } => Stop::BadToolCall.as_str(),
        }
    }

    /// No call was made: a breaker is open.
    pub(super) fn was_not_made(&self) -> bool {
        match self {
            Self::Call(error) => error.was_not_made,
            Self::BadToolCall { .. } => false,
        }
    }

    /// How long to wait before the next attempt; `None` when there must be none.
    pub(super) fn again(&self, schedule: &mut Schedule) -> Option<Duration> {
        match self {
            Self::Call(error) => schedule.after(error),
            Self::BadToolCall { .. } => schedule.again(),
        }
    }

    /// Why another model takes over.
    pub(super) fn cause(&self) -> Cause {
        match self {
            Self::Call(error) => Cause::of_error(error.class),
            Self::BadToolCall { .. } => Cause::Error,
        }
    }

    /// The reason that the turn ends with.
    pub(super) fn stop_reason(&self) -> StopReason {
        match self {
            Self::Call(error) => stop_reason(error.class),
            Self::BadToolCall { .. } => StopReason::Error,
        }
    }

    /// What the session's people are told.
    pub(super) fn session_error(&self) -> SessionError {
        let (reason, retryable) = match self {
            Self::Call(error) => (reason(error.class), error.is_retryable()),
            Self::BadToolCall { .. } => ("MODEL_BAD_TOOL_CALL", true),
        };
        SessionError { reason: reason.into(), message: self.to_string(), retryable }
    }
}

fn stop_reason(class: Class) -> StopReason {
    match class {
        Class::Context => StopReason::ContextFull,
        Class::Content => StopReason::Refusal,
        Class::Rate
        | Class::Quota
        | Class::Overload
        | Class::Auth
        | Class::Invalid
        | Class::Timeout
        | Class::Network
        | Class::Truncated => StopReason::Error,
    }
}

fn reason(class: Class) -> &'static str {
    match class {
        Class::Rate => "MODEL_RATE_LIMITED",
        Class::Quota => "MODEL_QUOTA_SPENT",
        Class::Overload => "MODEL_OVERLOADED",
        Class::Auth => "MODEL_KEY_REFUSED",
        Class::Invalid => "MODEL_REQUEST_INVALID",
        Class::Context => "MODEL_CONTEXT_FULL",
        Class::Content => "MODEL_CONTENT_REFUSED",
        Class::Timeout => "MODEL_TIMEOUT",
        Class::Network => "MODEL_UNREACHABLE",
        Class::Truncated => "MODEL_ANSWER_TRUNCATED",
    }
}

/// What people are told of an answer that came to the most that it may have before there was anything to show: the turn would end
/// without a word. `is_agents` says that the agent's own limit was the least of those that held.
pub(super) fn wordless(output_tokens: u32, is_agents: bool) -> SessionError {
    let advice = if is_agents { "; the agent's limit of output tokens may be raised" } else { "" };
    let message = format!(
        "the model used all {output_tokens} output tokens, thinking included, before it wrote an answer{advice}"
    );
    SessionError { reason: "MODEL_OUTPUT_TOKENS_SPENT".to_owned(), message, retryable: false }
}

/// What people are told of a turn that ended in order, without a word and without a call.
pub(super) fn silent() -> SessionError {
    let message = "the model ended its answer without a word".to_owned();
    SessionError { reason: "MODEL_ANSWER_EMPTY".to_owned(), message, retryable: true }
}

/// What people are told of an answer that the model would not give, where its provider says why.
pub(super) fn refusal(model: &str, why: &str) -> SessionError {
    let message = format!("{model} would not go on: {why}");
    SessionError { reason: reason(Class::Content).to_owned(), message, retryable: Class::Content.is_retryable() }
}

/// What a refused grant means: the reason, and what people are told unless the front has told them of the budget
/// itself.
pub(super) fn refused(refused: GrantRefused) -> (StopReason, Option<SessionError>) {
    if refused.reason == "BUDGET" {
        return (StopReason::Budget, None);
    }
    let retryable = refused.reason == "RATE_LIMIT";
    let error = SessionError { reason: refused.reason, message: refused.message, retryable };
    (StopReason::Error, Some(error))
}
