//! Bytes that are held for clients: so many of all, and so many of one tenant.

use std::sync::Arc;
use std::time::Duration;

use croft_proto::id::TenantId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

use crate::error::Error;
use crate::shares::Shares;

/// What takes fewer bytes is not reckoned: it is as many as the rates allow.
const SMALL_BYTES: usize = 16 * 1024;
/// When there may be some for a tenant again that had it all.
const ROOM_AFTER: Duration = Duration::from_secs(1);

/// Of one kind. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Rooms {
    what: &'static str,
    max: usize,
    all: Arc<Semaphore>,
    shares: Shares,
}

/// Of the tenant's, and of all tenants'.
pub(crate) type Room = Option<[OwnedSemaphorePermit; 2]>;

impl Rooms {
    /// Of what an error then tells.
    pub(crate) fn of(what: &'static str, max: usize, of_tenant_max: usize) -> Self {
        let (all, shares) = (Arc::new(Semaphore::new(max)), Shares::of(of_tenant_max));
        Self { what, max, all, shares }
    }

    /// Sees to it that there is room for so many bytes, until `room` is dropped. Fails with [`Error::Unavailable`], without a source where it
    /// is the tenant's own share that is full.
    pub(crate) fn reckon(&self, tenant: TenantId, bytes: usize, room: &mut Room) -> Result<(), Error> {
        let held = room.as_ref().map_or(0, |[own, _]| own.num_permits());
        if bytes <= SMALL_BYTES || bytes <= held {
            return Ok(());
        }
        let full = |_: TryAcquireError| {
            let Self { what, max, .. } = self;
            Error::unavailable("the intake", anyhow::anyhow!("{max} bytes of all {what} are held already"))
        };
        let own_full = |_: TryAcquireError| {
            let part = "the intake: the tenant has as much there as one may have";
            Error::Unavailable { part, retry_after: ROOM_AFTER, source: None }
        };
        let more = u32::try_from(bytes - held).unwrap_or(u32::MAX);
        let own = self.shares.of_tenant(tenant).try_acquire_many_owned(more).map_err(own_full)?;
        let all = Arc::clone(&self.all).try_acquire_many_owned(more).map_err(full)?;
        match room {
            Some([tenants, everybodys]) => {
                tenants.merge(own);
                everybodys.merge(all);
            }
            None => *room = Some([own, all]),
        }
        Ok(())
    }
}
