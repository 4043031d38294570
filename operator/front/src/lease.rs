//! Leases: which front drives a session's turn. The epoch only grows, and fences whoever had it before.

use std::time::Duration;

use async_trait::async_trait;
use croft_proto::id::{SessionId, TenantId};

use crate::error::Error;

/// A lease whose holder is gone: the turn under it wants another driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abandoned {
    pub tenant: TenantId,
    pub session: SessionId,
}

/// Time is the store's own clock, so that replicas need not agree on theirs.
#[async_trait]
pub trait LeaseStore: Send + Sync {
    /// Takes a lease that is abandoned, or that nobody has had yet. The new epoch, or `None` while someone else holds the lease, or where
    /// it was given up: then there is nothing to drive until a turn begins. The same holder counts as someone else: it drives one turn of
    /// a session at a time, too.
    ///
    /// Fails with [`Error::SessionNotFound`], and with [`Error::SessionTerminated`].
    async fn acquire(
        &self,
        tenant: TenantId,
        session: SessionId,
        holder: &str,
        ttl: Duration,
    ) -> Result<Option<u64>, Error>;

    /// Holds leases for `ttl` more, each under its epoch. Those of them that are lost: the epoch has moved on, or the lease was released.
    async fn renew_all(
        &self,
        tenant: TenantId,
        leases: &[(SessionId, u64)],
        ttl: Duration,
    ) -> Result<Vec<SessionId>, Error>;

    /// As [`Self::renew_all`] of one. Fails with [`Error::LeaseLost`] when it is lost.
    async fn renew(&self, tenant: TenantId, session: SessionId, epoch: u64, ttl: Duration) -> Result<(), Error> {
        let lost = self.renew_all(tenant, &[(session, epoch)], ttl).await?;
        if lost.is_empty() { Ok(()) } else { Err(Error::LeaseLost { epoch }) }
    }

    /// Gives the lease up. Giving up one that is lost is not an error. While a user's message waits, the lease is not free
    /// but abandoned from now on.
    async fn release(&self, tenant: TenantId, session: SessionId, epoch: u64) -> Result<(), Error>;

    /// Leaves a turn that is not over to whoever looks next. Nothing more is stored under the epoch. Leaving one that is lost is not an
    /// error.
    async fn abandon(&self, tenant: TenantId, session: SessionId, epoch: u64) -> Result<(), Error>;

    /// Sessions of all tenants whose lease ran out without release, or which have a message that waits and nobody to take it
    /// up, at most `limit`, longest first. Tells ids alone.
    async fn abandoned(&self, limit: u32) -> Result<Vec<Abandoned>, Error>;
}
