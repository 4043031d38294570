//! The edge: [`Error`] becomes an HTTP answer here, and nowhere else.

use axum::Json;
use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::error::Error;

/// A failure as HTTP and WebSocket clients see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// A fixed word, the same as in gRPC's `ErrorInfo`.
    pub reason: &'static str,
    pub message: String,
    /// For what may work later: not to come again sooner than that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// Of a stream: the last number that its caller has, as text, as numbers of events are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume_after: Option<String>,
}

impl Failure {
    /// One that another try can't help.
    pub(super) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), retry_after_ms: None, resume_after: None }
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let message = match error {
            Error::Internal { .. } => "an internal error; the log of the front has it".to_owned(),
            other => other.to_string(),
        };
        let retry_after_ms = error.retry_after().and_then(|after| u64::try_from(after.as_millis()).ok());
        let resume_after = match error {
            Error::CredentialEnded { resume_after } | Error::SlowConsumer { resume_after } => {
                Some(resume_after.to_string())
            }
            _ => None,
        };
        Self { retry_after_ms, resume_after, ..Self::new(error.reason(), message) }
    }
}

/// The body of every answer that tells of an error.
#[derive(Serialize)]
struct Body {
    error: Failure,
}

/// An error on its way out of a handler.
pub(super) struct Refused(pub(super) Error);

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        log(&self.0);
        let mut response = (status(&self.0), Json(Body { error: Failure::from(&self.0) })).into_response();
        if matches!(self.0, Error::Unauthenticated { .. }) {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(retry_after) = self.0.retry_after() {
            // In whole seconds, none too few, and never "at once".
            let seconds = retry_after.as_millis().div_ceil(1_000).max(1);
            let seconds = u64::try_from(seconds).unwrap_or(u64::MAX);
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// What the caller can't act on, someone else must see.
pub(super) fn log(error: &Error) {
    match error {
        Error::Internal { source } | Error::Unavailable { source: Some(source), .. } => {
            croft_serve::trace::failed();
            tracing::error!(reason = error.reason(), error = format!("{error}: {source:#}"), "request failed");
        }
        _ => {}
    }
}

/// An answer that is no [`Error`].
pub(super) fn response(status: StatusCode, reason: &'static str, message: &str) -> Response {
    (status, Json(Body { error: Failure::new(reason, message) })).into_response()
}

fn status(error: &Error) -> StatusCode {
    match error {
        Error::Invalid { .. } | Error::ModelNotRegistered { .. } | Error::CursorBeyondEnd { .. } => {
            StatusCode::BAD_REQUEST
        }
        Error::Unauthenticated { .. } | Error::CredentialEnded { .. } => StatusCode::UNAUTHORIZED,
        Error::Forbidden { .. } => StatusCode::FORBIDDEN,
        Error::SessionNotFound { .. } | Error::ModelNotFound { .. } => StatusCode::NOT_FOUND,
        Error::ApprovalNotPending { .. }
        | Error::SessionTerminated { .. }
        | Error::SessionBusy { .. }
        | Error::IdempotencyKeyReused
        | Error::TenantClosed { .. }
        | Error::TenantStopped
        | Error::TenantSuspended
        | Error::WorkerRefused { .. }
        | Error::LeaseLost { .. } => StatusCode::CONFLICT,
        Error::SessionLimit { .. }
        | Error::StreamLimit { .. }
        | Error::MessageLimit { .. }
        | Error::RateLimited { .. }
        | Error::WorkersFull { .. }
        | Error::SlowConsumer { .. } => StatusCode::TOO_MANY_REQUESTS,
        Error::NoWorker { .. } | Error::WorkerLost { .. } | Error::Unavailable { .. } => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        Error::Internal { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_never_sees_what_went_wrong_inside() {
        let failure = Failure::from(&Error::internal(anyhow::anyhow!("relation \"sessions\" does not exist")));
        assert!(!failure.message.contains("relation"), "{}", failure.message);
    }

    #[test]
    fn a_stream_that_is_cut_off_says_from_where_to_go_on() {
        for error in [Error::CredentialEnded { resume_after: 7 }, Error::SlowConsumer { resume_after: 7 }] {
            assert_eq!(serde_json::to_value(Failure::from(&error)).unwrap()["resumeAfter"], "7");
        }
        let other = serde_json::to_value(Failure::from(&Error::TenantStopped)).unwrap();
        assert!(other.get("resumeAfter").is_none(), "{other}");
    }

    #[test]
    fn an_outage_says_when_to_come_back() {
        let response = Refused(Error::unavailable("postgres", anyhow::anyhow!("refused"))).into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[RETRY_AFTER], "1");
    }
}
