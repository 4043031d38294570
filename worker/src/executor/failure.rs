//! What a failed model call means for the turn.

use croft_llm::{Class, Error};
use croft_proto::v1::{GrantRefused, SessionError, StopReason};

/// The reason that the turn ends with.
pub(super) fn stop_reason(class: Class) -> StopReason {
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

/// What the session's people are told.
pub(super) fn session_error(error: &Error) -> SessionError {
    let reason = match error.class {
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
    };
    SessionError { reason: reason.into(), message: error.to_string(), retryable: error.is_retryable() }
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
