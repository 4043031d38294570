//! What becomes of a turn whose driver panics: it would panic again wherever it went on, and each time models would be asked. So it
//! ends, with an error, and the session goes on with the next message.

use std::sync::Arc;

use croft_proto::id::{SessionId, TenantId};
use tracing::Instrument as _;

use super::Driver;
use crate::core::Core;
use crate::error::Error;
use crate::session::Session;

/// Is there while turns are driven under a lease. Once only: should the end of the turn panic as well, the lease runs out.
pub(super) struct Watch {
    core: Arc<Core>,
    tenant: TenantId,
    session: SessionId,
    epoch: u64,
    is_second: bool,
}

impl Watch {
    pub(super) fn over(driver: &Driver) -> Self {
        let (tenant, session) = (driver.session.tenant, driver.session.id);
        Self { core: Arc::clone(&driver.core), tenant, session, epoch: driver.epoch, is_second: driver.has_panicked }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !std::thread::panicking() || self.is_second {
            return;
        }
        let Self { tenant, session, epoch, .. } = *self;
        let core = Arc::clone(&self.core);
        drop(self.core.tasks.spawn("turn", async move {
            match still_held(&core, tenant, session, epoch).await {
                Ok(Some(found)) => {
                    let driver = Driver { has_panicked: true, ..Driver::new(core, found, epoch) };
                    let span = driver.span();
                    driver.run().instrument(span).await;
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%tenant, %session, %error, "a turn that panicked waits for its lease to run out");
                }
            }
        }));
    }
}

/// The session, while the lease is ours: it may have gone with the last word before the panic.
async fn still_held(core: &Core, tenant: TenantId, session: SessionId, epoch: u64) -> Result<Option<Session>, Error> {
    match core.stores.leases.renew(tenant, session, epoch, core.options.lease_ttl).await {
        Ok(()) => core.stores.sessions.get(tenant, session).await,
        Err(Error::LeaseLost { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
