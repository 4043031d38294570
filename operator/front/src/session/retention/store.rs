//! What retention needs of a store.

use async_trait::async_trait;
use croft_proto::Timestamp;
use croft_proto::id::TenantId;

use crate::error::Error;

/// Who has erased a session, in the audit log.
pub(crate) const ACTOR: &str = "front";
/// What was done to it there.
pub(crate) const ACTION: &str = "session.erase";

/// What one transaction came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Erased {
    /// Those that are gone, with all of their events.
    pub sessions: u64,
    pub events: u64,
}

/// What a store can erase of a tenant that stays.
#[async_trait]
pub trait RetentionStore: Send + Sync {
    /// Erases sessions that ended before then, longest ended first: at most `sessions_max` of them go out of sight, with their
    /// checkpoints, leases, idempotency keys, budgets and alerts, and at most `events_max` of their events go, the newest first.
    /// What is left of a session goes with the next call, whatever `before` that has. When there is nothing to do, nothing was erased.
    /// What ended within the hour is left alone. Of each session that is gone the same transaction makes an audit record: while the
    /// tenant's audit log is held by another, sessions stay out of sight without being gone; and [`Error::Invalid`] where it takes no
    /// records at all, and nothing was erased.
    async fn erase_ended(
        &self,
        tenant: TenantId,
        before: Timestamp,
        sessions_max: u32,
        events_max: u32,
    ) -> Result<Erased, Error>;
}
