//! The leases of turns that run here. None has to run out when this replica goes in order before its turns are over.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use croft_proto::id::{SessionId, TenantId};
use futures::{StreamExt, stream};

use crate::core::Core;

/// Leases that are left at the same time: as many as the store has connections for.
const AT_A_TIME: usize = 8;

type Turn = (TenantId, SessionId);

/// Which they are, with their epochs.
#[derive(Debug, Clone, Default)]
pub struct Held {
    leases: Arc<Mutex<HashMap<Turn, u64>>>,
}

impl Held {
    /// Until what comes back is dropped, a lease is held.
    pub(super) fn hold(&self, tenant: TenantId, session: SessionId, epoch: u64) -> Hold {
        self.lock().insert((tenant, session), epoch);
        Hold { held: self.clone(), turn: (tenant, session), epoch }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Turn, u64>> {
        // No code that holds the lock can leave the map half changed.
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct Hold {
    held: Held,
    turn: Turn,
    epoch: u64,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut leases = self.held.lock();
        // Another of the same session may have come since.
        if leases.get(&self.turn) == Some(&self.epoch) {
            leases.remove(&self.turn);
        }
    }
}

/// Waits until this replica goes, and leaves the turns that are not over to others, who need not wait for their leases to run out.
pub async fn leave_turns_behind(core: Arc<Core>) {
    core.tasks.ending().cancelled().await;
    let left: Vec<_> = core.held.lock().drain().collect();
    let leave = left.into_iter().map(|((tenant, session), epoch)| {
        let leases = Arc::clone(&core.stores.leases);
        async move {
            match leases.abandon(tenant, session, epoch).await {
                Ok(()) => tracing::info!(%tenant, %session, "left a turn to another front"),
                Err(error) => tracing::warn!(%tenant, %session, %error, "a turn is left when its lease runs out"),
            }
        }
    });
    stream::iter(leave).buffer_unordered(AT_A_TIME).collect::<()>().await;
}
