//! What a front's refusal means for a declared session: never, not as things are, or not now.

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// Whether the same request would be refused again: the agent can't be edited, so there is no use in trying.
pub(super) fn is_final(status: &Status) -> bool {
    matches!(status.code(), Code::InvalidArgument | Code::NotFound | Code::OutOfRange | Code::Unimplemented)
        && !is_model_missing(status)
}

/// Whether the agent names a model that the registry does not have yet: who declares sessions may be quicker than who registers models.
pub(super) fn is_model_missing(status: &Status) -> bool {
    has_reason(status, "MODEL_NOT_FOUND")
}

/// Whether it is the tenant that takes nothing now. A front that says no reason means that.
pub(super) fn is_closed(status: &Status) -> bool {
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| info.reason.as_str());
    status.code() == Code::FailedPrecondition && reason.is_none_or(|reason| reason.starts_with("TENANT_"))
}

/// Whether the front finds no worker of the tenant's that is ready and has room.
pub(super) fn is_without_worker(status: &Status) -> bool {
    has_reason(status, "NO_WORKER") || has_reason(status, "WORKERS_FULL")
}

fn has_reason(status: &Status, reason: &str) -> bool {
    status.get_error_details().error_info().is_some_and(|info| info.reason == reason)
}

/// Whether the tenant's workers lack what the agent needs, such as a provider, a declared tool server, or a kind of check that only
/// newer ones know. An edit of the tenant changes that, or an upgrade, and workers that come of it wake the session.
pub(super) fn is_lack(status: &Status) -> bool {
    let details = status.get_error_details();
    let worker_reason = details.error_info().and_then(|info| info.metadata.get("worker_reason"));
    worker_reason.is_some_and(|reason| reason == "PROVIDER_MISSING" || reason.ends_with("_UNSUPPORTED"))
}

/// Whether the session must wait for something that its agent needs, rather than for its turn.
pub(super) fn lacks_something(status: &Status) -> bool {
    is_lack(status) || is_model_missing(status)
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    /// As the front tells of a worker's refusal.
    pub(crate) fn by_worker(reason: &str) -> Status {
        let metadata = HashMap::from([("worker_reason".to_owned(), reason.to_owned())]);
        let details = ErrorDetails::with_error_info("WORKER_REFUSED", "croft.dev", metadata);
        Status::with_error_details(Code::FailedPrecondition, "refused", details)
    }

    #[test]
    fn only_what_can_never_be_taken_is_given_up() {
        for code in [Code::InvalidArgument, Code::NotFound] {
            assert!(is_final(&Status::new(code, "")));
        }
        for code in [Code::Unavailable, Code::ResourceExhausted, Code::Internal, Code::FailedPrecondition] {
            assert!(!is_final(&Status::new(code, "")));
        }
    }

    /// As the front tells of a refusal of its own.
    pub(crate) fn by_front(code: Code, reason: &str) -> Status {
        Status::with_error_details(code, "refused", ErrorDetails::with_error_info(reason, "croft.dev", HashMap::new()))
    }

    #[test]
    fn a_model_that_is_not_registered_may_be_later() {
        let missing = by_front(Code::InvalidArgument, "MODEL_NOT_FOUND");
        assert!(is_model_missing(&missing) && !is_final(&missing));
        let invalid = by_front(Code::InvalidArgument, "INVALID_ARGUMENT");
        assert!(is_final(&invalid) && !is_model_missing(&invalid));
    }

    #[test]
    fn a_tenant_without_a_worker_is_told_from_a_front_that_is_away() {
        assert!(is_without_worker(&by_front(Code::Unavailable, "NO_WORKER")));
        assert!(is_without_worker(&by_front(Code::ResourceExhausted, "WORKERS_FULL")));
        assert!(!is_without_worker(&by_front(Code::Unavailable, "UNAVAILABLE")));
        assert!(!is_without_worker(&Status::new(Code::Unavailable, "")));
    }

    #[test]
    fn only_a_tenant_that_takes_nothing_is_told_as_not_open() {
        let of = |reason: &str| by_front(Code::FailedPrecondition, reason);
        assert!(is_closed(&of("TENANT_CLOSED")) && is_closed(&of("TENANT_STOPPED")));
        assert!(is_closed(&Status::failed_precondition("it is cordoned")));
        assert!(!is_closed(&of("IDEMPOTENCY_KEY_REUSED")) && !is_closed(&by_worker("PROVIDER_MISSING")));
    }

    #[test]
    fn what_the_workers_lack_is_known_by_the_workers_own_reason() {
        for (reason, lacks) in [
            ("PROVIDER_MISSING", true),
            ("TOOL_UNSUPPORTED", true),
            ("GUARDRAIL_UNSUPPORTED", true),
            ("PERMISSION_RULE_UNSUPPORTED", true),
            ("TENANT_MISMATCH", false),
        ] {
            assert_eq!(is_lack(&by_worker(reason)), lacks, "{reason}");
            assert!(!is_final(&by_worker(reason)));
        }
        assert!(!is_lack(&Status::failed_precondition("it is cordoned")));
    }
}
