//! What a worker's refusal means to a client.

use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::error::Error;
use crate::routing::ALL_FULL;

/// The worker knows of a driver of the session's turn that came later.
pub(crate) fn is_of_stale_epoch(status: &Status) -> bool {
    status.code() == Code::Aborted
        && status.get_error_details().error_info().is_some_and(|info| info.reason == "EPOCH_STALE")
}

/// What a worker refuses that another of its tenant's may take: while a rollout or a change of providers reaches one after the other, they are
/// of two kinds.
pub(crate) fn may_suit_another(error: &Error) -> bool {
    let lacks = |reason: &str| reason == "PROVIDER_MISSING" || reason.ends_with("_UNSUPPORTED");
    matches!(error, Error::WorkerRefused { reason, .. } if lacks(reason))
}

/// A worker that says why has refused; one that can't be reached is lost.
pub(crate) fn from_status(status: &Status) -> Error {
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| info.reason.clone()).unwrap_or_default();
    match status.code() {
        // Other fronts have placed there, too.
        Code::ResourceExhausted if reason == "WORKER_FULL" => {
            Error::WorkersFull { why: ALL_FULL.to_owned(), problem: String::new() }
        }
        Code::InvalidArgument | Code::FailedPrecondition | Code::ResourceExhausted | Code::PermissionDenied => {
            let reason = if reason.is_empty() { "WORKER_REFUSED".to_owned() } else { reason };
            Error::WorkerRefused { reason, message: status.message().to_owned() }
        }
        code => {
            tracing::warn!(?code, message = status.message(), "worker call failed");
            Error::WorkerLost { message: format!("its connection ended ({code:?})") }
        }
    }
}
