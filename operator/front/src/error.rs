//! What can go wrong at the front, free of any transport. [`crate::status`] turns it into gRPC, once.

use std::time::Duration;

/// Before a worker is asked for once more: a turn elsewhere may be over by then, or a pod in the place of one that is gone.
const WORKER_RETRY: Duration = Duration::from_secs(1);

/// A failure with all that the caller may know about it.
///
/// Nothing in a message comes from SQL, a key or another tenant: what a caller can't act on is [`Error::Internal`], whose
/// source only the log sees.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{field} {problem}")]
    Invalid { field: String, problem: String },
    #[error("no valid credential: {problem}")]
    Unauthenticated { problem: &'static str },
    /// The credential that a stream was opened with is good no more; with another it may come back with this number.
    #[error("the credential has ended: resume after {resume_after} with a valid one")]
    CredentialEnded { resume_after: u64 },
    #[error("{action} is not allowed for this identity")]
    Forbidden { action: &'static str },
    #[error("session {session_id} does not exist")]
    SessionNotFound { session_id: String },
    #[error("approval {approval_id} is not pending")]
    ApprovalNotPending { approval_id: String },
    #[error("model {model} does not exist")]
    ModelNotFound { model: String },
    /// What a request names that may be registered later: the same request may be taken then.
    #[error("{field} names {model:?}, which the registry does not have")]
    ModelNotRegistered { field: &'static str, model: String },
    #[error("session {session_id} is terminated")]
    SessionTerminated { session_id: String },
    #[error("session {session_id} is running a turn")]
    SessionBusy { session_id: String },
    #[error("the idempotency key was used for another request")]
    IdempotencyKeyReused,
    #[error("after_seq {after_seq} is beyond the last event, {last_seq}")]
    CursorBeyondEnd { after_seq: u64, last_seq: u64 },
    #[error("the tenant has {max} sessions, its limit")]
    SessionLimit { max: u32 },
    #[error("the tenant has {max} streams open at this replica, its limit")]
    StreamLimit { max: usize },
    #[error("{max} messages wait in session {session_id}, its limit")]
    MessageLimit { session_id: String, max: u32 },
    #[error("the limit of {limit} {resource} in a minute is reached")]
    RateLimited { resource: &'static str, limit: i64, retry_after: Duration },
    #[error("the tenant takes no new sessions: {why}")]
    TenantClosed { why: &'static str },
    #[error("the tenant is stopped: nothing runs until its administrator lets it go on")]
    TenantStopped,
    #[error("the tenant is suspended: nothing runs until its administrator wakes it")]
    TenantSuspended,
    /// None of the tenant's workers is ready. `problem` is the operator's fixed word for what must be mended, and empty where time alone may
    /// do it.
    #[error("no worker can take the session: {why}")]
    NoWorker { why: String, problem: String },
    /// Each of the tenant's ready workers runs as many sessions as it may. `problem` is the operator's fixed word for what keeps it from having
    /// more of them, and empty where nothing does.
    #[error("no worker can take the session: {why}")]
    WorkersFull { why: String, problem: String },
    #[error("the worker refused the session: {message}")]
    WorkerRefused { reason: String, message: String },
    #[error("the worker was lost: {message}")]
    WorkerLost { message: String },
    /// A subscriber that can't keep up; it may come back with this number.
    #[error("the subscriber is too slow: resume after {resume_after}")]
    SlowConsumer { resume_after: u64 },
    /// The lease of the turn was taken over; whoever sees this stops writing.
    #[error("the lease of epoch {epoch} is no longer valid")]
    LeaseLost { epoch: u64 },
    #[error("{part} is not available")]
    Unavailable { part: &'static str, retry_after: Duration, source: Option<anyhow::Error> },
    #[error("the request could not be carried out")]
    Internal { source: anyhow::Error },
}

impl Error {
    /// A field of a request that can't be used; `problem` continues the sentence that the field begins.
    pub fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), problem: problem.into() }
    }

    /// A fault of ours.
    pub fn internal(source: impl Into<anyhow::Error>) -> Self {
        Self::Internal { source: source.into() }
    }

    /// A store that does not answer.
    pub fn unavailable(part: &'static str, source: impl Into<anyhow::Error>) -> Self {
        Self::Unavailable { part, retry_after: Duration::from_secs(1), source: Some(source.into()) }
    }

    /// No worker is ready, and nothing is known that somebody would have to mend.
    pub fn no_worker(why: impl Into<String>) -> Self {
        Self::NoWorker { why: why.into(), problem: String::new() }
    }

    /// When the same request may be taken; `None` where time alone changes nothing, or nobody knows.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } | Self::Unavailable { retry_after, .. } => Some(*retry_after),
            Self::WorkersFull { .. } | Self::WorkerLost { .. } => Some(WORKER_RETRY),
            Self::NoWorker { problem, .. } if problem.is_empty() => Some(WORKER_RETRY),
            _ => None,
        }
    }

    /// The fixed word for `ErrorInfo.reason`, metrics and the audit log.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "INVALID_ARGUMENT",
            Self::Unauthenticated { .. } => "UNAUTHENTICATED",
            Self::CredentialEnded { .. } => "CREDENTIAL_ENDED",
            Self::Forbidden { .. } => "FORBIDDEN",
            Self::SessionNotFound { .. } => "SESSION_NOT_FOUND",
            Self::ApprovalNotPending { .. } => "APPROVAL_NOT_PENDING",
            Self::ModelNotFound { .. } | Self::ModelNotRegistered { .. } => "MODEL_NOT_FOUND",
            Self::SessionTerminated { .. } => "SESSION_TERMINATED",
            Self::SessionBusy { .. } => "SESSION_BUSY",
            Self::IdempotencyKeyReused => "IDEMPOTENCY_KEY_REUSED",
            Self::CursorBeyondEnd { .. } => "CURSOR_BEYOND_END",
            Self::SessionLimit { .. } => "SESSION_LIMIT",
            Self::StreamLimit { .. } => "STREAM_LIMIT",
            Self::MessageLimit { .. } => "MESSAGE_LIMIT",
            Self::RateLimited { .. } => "RATE_LIMITED",
            Self::TenantClosed { .. } | Self::TenantSuspended => "TENANT_CLOSED",
            Self::TenantStopped => "TENANT_STOPPED",
            Self::NoWorker { .. } => "NO_WORKER",
            Self::WorkersFull { .. } => "WORKERS_FULL",
            Self::WorkerRefused { .. } => "WORKER_REFUSED",
            Self::WorkerLost { .. } => "WORKER_LOST",
            Self::SlowConsumer { .. } => "SLOW_CONSUMER",
            Self::LeaseLost { .. } => "LEASE_LOST",
            Self::Unavailable { .. } => "UNAVAILABLE",
            Self::Internal { .. } => "INTERNAL",
        }
    }
}
