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

/// Which changes could be seen at some moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Horizon {
    /// None from this number on.
    pub next: u64,
    /// Nor those of these numbers, which are lower: they were being made. One for each transaction that ran, at most.
    pub open: Vec<u64>,
}

impl Horizon {
    /// Whether the change of this number could be seen, if there was one.
    pub fn shows(&self, number: u64) -> bool {
        number < self.next && !self.open.contains(&number)
    }
}

/// What can be seen without a tenant.
#[async_trait]
pub trait AcrossTenants: Send + Sync {
    /// Sessions of all tenants whose time is up as of `now`, longest first, at most `limit`. Whoever ends one appends with
    /// [`Authority::Overdue`](crate::events::log::Authority::Overdue): it may have been heard from since.
    async fn due(&self, now: Timestamp, limit: u32) -> Result<Vec<(TenantId, SessionId)>, Error>;

    /// Open sessions of sub-agents whose call is over: their parent runs its turn no more. At most `limit`.
    async fn orphaned(&self, limit: u32) -> Result<Vec<(TenantId, SessionId)>, Error>;

    /// Tenants of which a session is being erased, whether they are still served or not. At most `limit`.
    async fn erasing(&self, limit: u32) -> Result<Vec<TenantId>, Error>;

    /// Which changes can be seen now.
    async fn horizon(&self) -> Result<Horizon, Error>;

    /// Sessions whose state's last change could not be seen from this horizon, and can be now: those behind this number and id, in the
    /// order of both, at most `limit`.
    async fn changed(&self, since: &Horizon, after: (u64, SessionId), limit: u32) -> Result<Vec<Changed>, Error>;
}
