//! Why a worker will not do what the front asks, and how that looks in gRPC.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// The domain of the reasons in `google.rpc.ErrorInfo`.
const DOMAIN: &str = "croft.dev";

/// A refusal with all that the caller may know about it. Each has a fixed reason; none holds a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{field} is missing or malformed")]
    Malformed { field: &'static str },
    #[error("this worker serves another tenant")]
    WrongTenant,
    #[error("the session is not known to this worker")]
    SessionUnknown,
    #[error("this worker holds {sessions_max} sessions, as many as it may")]
    WorkerFull { sessions_max: usize },
    #[error("this worker is shutting down")]
    WorkerDraining,
    #[error("a step of the newer epoch {newest} was begun")]
    EpochStale { newest: u64 },
    #[error("the step was not started in time")]
    StartMissing,
    #[error("the step's requests ended before it did")]
    FrontGone,
    #[error("the step broke off: the worker's log has the reason")]
    BrokenOff,
    #[error("this worker has no provider {provider}, which model {model} needs")]
    ProviderMissing { provider: String, model: String },
    #[error("tool {tool} can't run here: {problem}")]
    ToolUnsupported { tool: String, problem: String },
    #[error("tool {tool} is not usable: {problem}")]
    ToolInvalid { tool: String, problem: String },
    #[error("permission rule {position} can't be kept here: {problem}")]
    RuleUnsupported { position: usize, problem: &'static str },
    #[error("permission rule {position} is not usable: {problem}")]
    RuleInvalid { position: usize, problem: String },
    #[error("guardrail {guardrail:?} can't be made here: {problem}")]
    GuardrailUnsupported { guardrail: String, problem: &'static str },
    #[error("guardrail {guardrail:?} is not usable: {problem}")]
    GuardrailInvalid { guardrail: String, problem: String },
}

impl Refusal {
    /// The fixed word for `ErrorInfo.reason` and logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed { .. } => "MALFORMED",
            Self::WrongTenant => "TENANT_MISMATCH",
            Self::SessionUnknown => "SESSION_UNKNOWN",
            Self::WorkerFull { .. } => "WORKER_FULL",
            Self::WorkerDraining => "WORKER_DRAINING",
            Self::EpochStale { .. } => "EPOCH_STALE",
            Self::StartMissing => "START_MISSING",
            Self::FrontGone => "FRONT_GONE",
            Self::BrokenOff => "STEP_BROKEN_OFF",
            Self::ProviderMissing { .. } => "PROVIDER_MISSING",
            Self::ToolUnsupported { .. } => "TOOL_UNSUPPORTED",
            Self::ToolInvalid { .. } => "TOOL_INVALID",
            Self::RuleUnsupported { .. } => "PERMISSION_RULE_UNSUPPORTED",
            Self::RuleInvalid { .. } => "PERMISSION_RULE_INVALID",
            Self::GuardrailUnsupported { .. } => "GUARDRAIL_UNSUPPORTED",
            Self::GuardrailInvalid { .. } => "GUARDRAIL_INVALID",
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::Malformed { .. } => Code::InvalidArgument,
            Self::WrongTenant => Code::PermissionDenied,
            Self::SessionUnknown => Code::NotFound,
            Self::WorkerFull { .. } => Code::ResourceExhausted,
            // Elsewhere, or later, the same call succeeds.
            Self::WorkerDraining => Code::Unavailable,
            Self::EpochStale { .. } => Code::Aborted,
            Self::StartMissing => Code::DeadlineExceeded,
            Self::FrontGone => Code::Cancelled,
            Self::BrokenOff => Code::Internal,
            Self::ProviderMissing { .. }
            | Self::ToolUnsupported { .. }
            | Self::ToolInvalid { .. }
            | Self::RuleUnsupported { .. }
            | Self::RuleInvalid { .. }
            | Self::GuardrailUnsupported { .. }
            | Self::GuardrailInvalid { .. } => Code::FailedPrecondition,
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let details = ErrorDetails::with_error_info(refusal.reason(), DOMAIN, HashMap::new());
        Self::with_error_details(refusal.code(), refusal.to_string(), details)
    }
}
