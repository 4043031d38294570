//! The edge: [`Error`] becomes a gRPC status here, and nowhere else.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::error::Error;

/// `ErrorInfo.domain` of everything that the front answers.
pub const DOMAIN: &str = "croft.dev";

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = code(&error);
        let message = sentence(&error);
        let mut details = ErrorDetails::new();
        details.set_error_info(error.reason(), DOMAIN, metadata(&error));
        match &error {
            Error::Invalid { field, problem } => {
                details.add_bad_request_violation(field, problem);
            }
            Error::ModelNotRegistered { field, .. } => {
                details.add_bad_request_violation(*field, message.as_str());
            }
            Error::CursorBeyondEnd { .. } => {
                details.add_bad_request_violation("after_seq", message.as_str());
            }
            Error::SessionLimit { .. } => {
                details.add_quota_failure_violation("sessions", message.as_str());
            }
            Error::StreamLimit { .. } => {
                details.add_quota_failure_violation("streams", message.as_str());
            }
            Error::MessageLimit { .. } => {
                details.add_quota_failure_violation("messages", message.as_str());
            }
            Error::RateLimited { resource, .. } => {
                details.add_quota_failure_violation(*resource, message.as_str());
            }
            Error::WorkersFull { .. } => {
                details.add_quota_failure_violation("workers", message.as_str());
            }
            _ => {}
        }
        if let Some(retry_after) = error.retry_after() {
            details.set_retry_info(Some(retry_after));
        }
        match &error {
            Error::Internal { source } | Error::Unavailable { source: Some(source), .. } => {
                tracing::error!(reason = error.reason(), error = format!("{error}: {source:#}"), "request failed");
            }
            _ => {}
        }
        Status::with_error_details(code, message, details)
    }
}

fn code(error: &Error) -> Code {
    match error {
        Error::Invalid { .. } | Error::ModelNotRegistered { .. } => Code::InvalidArgument,
        Error::Unauthenticated { .. } | Error::CredentialEnded { .. } => Code::Unauthenticated,
        Error::Forbidden { .. } => Code::PermissionDenied,
        Error::SessionNotFound { .. } | Error::ModelNotFound { .. } => Code::NotFound,
        Error::ApprovalNotPending { .. }
        | Error::SessionTerminated { .. }
        | Error::IdempotencyKeyReused
        | Error::TenantClosed { .. }
        | Error::TenantStopped
        | Error::TenantSuspended => Code::FailedPrecondition,
        Error::WorkerRefused { reason, .. } => match reason.as_str() {
            // No worker would ever take it. What one lacks may come: a provider, a tool server.
            reason if reason == "MALFORMED" || reason.ends_with("_INVALID") => Code::InvalidArgument,
            _ => Code::FailedPrecondition,
        },
        Error::SessionBusy { .. } | Error::LeaseLost { .. } => Code::Aborted,
        Error::CursorBeyondEnd { .. } => Code::OutOfRange,
        Error::SessionLimit { .. }
        | Error::StreamLimit { .. }
        | Error::MessageLimit { .. }
        | Error::RateLimited { .. }
        | Error::WorkersFull { .. }
        | Error::SlowConsumer { .. } => Code::ResourceExhausted,
        Error::NoWorker { .. } | Error::WorkerLost { .. } | Error::Unavailable { .. } => Code::Unavailable,
        Error::Internal { .. } => Code::Internal,
    }
}

/// The message with the field or thing named first, as it reads best alone.
fn sentence(error: &Error) -> String {
    match error {
        Error::Internal { .. } => "an internal error; the log of the front has it".to_owned(),
        other => other.to_string(),
    }
}

fn metadata(error: &Error) -> HashMap<String, String> {
    let pairs: &[(&str, String)] = match error {
        Error::Invalid { field, .. } => &[("field", field.clone())],
        Error::SessionNotFound { session_id }
        | Error::SessionTerminated { session_id }
        | Error::SessionBusy { session_id } => &[("session_id", session_id.clone())],
        Error::ModelNotFound { model } => &[("model", model.clone())],
        Error::ModelNotRegistered { field, model } => &[("field", (*field).to_owned()), ("model", model.clone())],
        Error::CursorBeyondEnd { last_seq, .. } => &[("last_seq", last_seq.to_string())],
        Error::SlowConsumer { resume_after } | Error::CredentialEnded { resume_after } => {
            &[("resume_after", resume_after.to_string())]
        }
        Error::RateLimited { resource, limit, .. } => {
            &[("resource", (*resource).to_owned()), ("limit", limit.to_string())]
        }
        Error::WorkerRefused { reason, .. } => &[("worker_reason", reason.clone())],
        Error::NoWorker { problem, .. } | Error::WorkersFull { problem, .. } if !problem.is_empty() => {
            &[("workers_problem", problem.clone())]
        }
        _ => &[],
    };
    pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_field_is_named_in_message_violation_and_metadata() {
        let status = Status::from(Error::invalid("agent.model", "is empty"));
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), "agent.model is empty");
        let details = status.get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "agent.model");
        assert_eq!(details.error_info().unwrap().metadata["field"], "agent.model");
    }

    #[test]
    fn a_model_that_may_be_registered_later_is_told_apart_from_what_is_never_taken() {
        let error = Error::ModelNotRegistered { field: "agent.model", model: "house-1".to_owned() };
        let status = Status::from(error);
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), "agent.model names \"house-1\", which the registry does not have");
        let details = status.get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "agent.model");
        let info = details.error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.metadata["model"].as_str()), ("MODEL_NOT_FOUND", "house-1"));
    }

    #[test]
    fn what_no_worker_would_ever_take_is_an_invalid_argument() {
        let code = |reason: &str| {
            let status = Status::from(Error::WorkerRefused { reason: reason.to_owned(), message: String::new() });
            assert_eq!(status.get_error_details().error_info().unwrap().metadata["worker_reason"], reason);
            status.code()
        };
        for reason in ["MALFORMED", "TOOL_INVALID", "PERMISSION_RULE_INVALID", "GUARDRAIL_INVALID"] {
            assert_eq!(code(reason), Code::InvalidArgument, "{reason}");
        }
        for reason in ["PROVIDER_MISSING", "TOOL_UNSUPPORTED", "GUARDRAIL_UNSUPPORTED", "WORKER_REFUSED"] {
            assert_eq!(code(reason), Code::FailedPrecondition, "{reason}");
        }
    }

    #[test]
    fn a_tenant_without_room_says_what_must_be_mended_or_when_to_come_back() {
        let told = |error: Error| {
            let status = Status::from(error);
            let details = status.get_error_details();
            let info = details.error_info().unwrap().clone();
            let comes_back = details.retry_info().is_some();
            (status.code(), info.reason, info.metadata.get("workers_problem").cloned(), comes_back)
        };
        let of = |problem: &str| ("as it is".to_owned(), problem.to_owned());
        let quota = || Some("QuotaExceeded".to_owned());
        let (why, problem) = of("");
        let waits = (Code::Unavailable, "NO_WORKER".to_owned(), None, true);
        assert_eq!(told(Error::NoWorker { why, problem }), waits);
        let (why, problem) = of("QuotaExceeded");
        let must_be_mended = (Code::Unavailable, "NO_WORKER".to_owned(), quota(), false);
        assert_eq!(told(Error::NoWorker { why, problem }), must_be_mended);
        // A turn may end all the same.
        let (why, problem) = of("QuotaExceeded");
        let full = (Code::ResourceExhausted, "WORKERS_FULL".to_owned(), quota(), true);
        assert_eq!(told(Error::WorkersFull { why, problem }), full);
    }

    #[test]
    fn a_caller_never_sees_what_went_wrong_inside() {
        let status = Status::from(Error::internal(anyhow::anyhow!("relation \"sessions\" does not exist")));
        assert_eq!(status.code(), Code::Internal);
        assert!(!status.message().contains("relation"), "{}", status.message());
    }

    #[test]
    fn a_rate_that_is_used_up_says_which_and_when_to_come_back() {
        let retry_after = std::time::Duration::from_millis(1_250);
        let status = Status::from(Error::RateLimited { resource: "tokens", limit: 9_000, retry_after });
        assert_eq!(status.code(), Code::ResourceExhausted);
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.metadata["limit"].as_str()), ("RATE_LIMITED", "9000"));
        assert_eq!(details.retry_info().unwrap().retry_delay, Some(retry_after));
        assert_eq!(details.quota_failure().unwrap().violations[0].subject, "tokens");
    }

    #[test]
    fn an_outage_says_when_to_come_back() {
        let status = Status::from(Error::unavailable("postgres", anyhow::anyhow!("connection refused")));
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(status.message(), "postgres is not available");
        assert!(status.get_error_details().retry_info().unwrap().retry_delay.is_some());
    }
}
