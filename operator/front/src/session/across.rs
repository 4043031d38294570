//! Looks across tenants: what somebody must know of all of them at once. They tell ids, and no more.

use async_trait::async_trait;
use croft_proto::Timestamp;
use croft_proto::id::{SessionId, TenantId};

use crate::error::Error;

/// A session whose state has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Changed {
    pub tenant: TenantId,
    pub session: SessionId,
    /// Grows from change to change, but not in the order in which they can be seen: see [`AcrossTenants::horizon`].
    pub number: u64,
}

/// What can be seen without a tenant.
#[async_trait]
pub trait AcrossTenants: Send + Sync {
    /// Sessions of all tenants whose time is up as of `now`, longest first, at most `limit`. Whoever ends one appends with
    /// [`Authority::Overdue`](crate::events::log::Authority::Overdue): it may have been heard from since.
    async fn due(&self, now: Timestamp, limit: u32) -> Result<Vec<(TenantId, SessionId)>, Error>;

    /// Open sessions of sub-agents whose call is over: their parent runs its turn no more. At most `limit`.
    async fn orphaned(&self, limit: u32) -> Result<Vec<(TenantId, SessionId)>, Error>;

    /// Every change that can't be seen yet will have this number or a higher one. Changes with higher numbers may be seen
    /// already, so who reads on from here knows which it has had.
    async fn horizon(&self) -> Result<u64, Error>;

    /// Sessions whose state's last change comes behind this number and id, in the order of both, at most `limit`.
    async fn changed(&self, after: (u64, SessionId), limit: u32) -> Result<Vec<Changed>, Error>;
}
