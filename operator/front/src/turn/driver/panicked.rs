//! What becomes of a turn whose driver panics: it would panic again wherever it went on, and each time models would be asked. So it
//! ends, with an error, and the session goes on with the next message.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use croft_proto::id::{SessionId, TenantId, TurnId};
use tracing::Instrument as _;

use super::Driver;
use crate::core::Core;
use crate::error::Error;
use crate::session::Session;

/// The turn that a driver drives, or drove last.
#[derive(Clone, Default)]
pub(super) struct Driven(Arc<Mutex<Option<TurnId>>>);

impl Driven {
    pub(super) fn set(&self, turn: TurnId) {
        *self.lock() = Some(turn);
    }

    fn get(&self) -> Option<TurnId> {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Option<TurnId>> {
        // No code that holds the lock can leave half a turn.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a driver was at when it panicked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Panicked {
    /// It may have stored the turn's last word before: then there is no more of it to end, and the next one is none of the panic's.
    pub(super) turn: Option<TurnId>,
}

/// Is there while turns are driven under a lease. Once only for each: should the end of the turn panic as well, the lease runs out.
pub(super) struct Watch {
    core: Arc<Core>,
    tenant: TenantId,
    session: SessionId,
    epoch: u64,
    driven: Driven,
    /// Of the driver before.
    panicked: Option<Panicked>,
}

impl Watch {
    pub(super) fn over(driver: &Driver) -> Self {
        let (tenant, session) = (driver.session.tenant, driver.session.id);
        let (core, reached) = (Arc::clone(&driver.core), driver.driven.clone());
        Self { core, tenant, session, epoch: driver.epoch, driven: reached, panicked: driver.panicked }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let panicked = Some(Panicked { turn: self.driven.get() });
        if panicked == self.panicked {
            return;
        }
        // One that panics before it drives anything is no further than the one before.
        let reached = self.driven.clone();
        let Self { tenant, session, epoch, .. } = *self;
        let core = Arc::clone(&self.core);
        drop(self.core.tasks.spawn("turn", async move {
            match still_held(&core, tenant, session, epoch).await {
                Ok(Some(found)) => {
                    let driver = Driver { driven: reached, panicked, ..Driver::new(core, found, epoch) };
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
