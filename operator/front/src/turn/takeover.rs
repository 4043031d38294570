//! Takes over turns whose front went silent.

use std::sync::Arc;
use std::time::Duration;

use tracing::Instrument as _;

use super::driver::Driver;
use crate::core::Core;
use crate::error::Error;
use crate::lease::Abandoned;

/// Between two looks; a turn waits for its lease to run out and for at most this.
const EVERY: Duration = Duration::from_secs(1);
/// Turns that one look takes over at most; the next look takes more.
const BATCH: u32 = 20;

/// Looks for abandoned turns until shutdown.
pub async fn watch_for_abandoned_turns(core: Arc<Core>) {
    let stopping = core.tasks.stopping();
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        match core.stores.leases.abandoned(BATCH).await {
            Ok(abandoned) => {
                for turn in abandoned {
                    if let Err(error) = take_over(&core, turn).await {
                        tracing::warn!(session = %turn.session, %error, "turn not taken over, trying again");
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "abandoned turns not looked for, trying again"),
        }
    }
}

async fn take_over(core: &Arc<Core>, Abandoned { tenant, session }: Abandoned) -> Result<(), Error> {
    let Some(epoch) = core.stores.leases.acquire(tenant, session, &core.replica, core.options.lease_ttl).await? else {
        return Ok(());
    };
    match core.stores.sessions.get(tenant, session).await? {
        Some(found) => {
            tracing::info!(%tenant, %session, epoch, "took over a turn");
            core.metrics.takeovers.inc();
            let driver = Driver::new(Arc::clone(core), found, epoch);
            let span = driver.span();
            core.tasks.spawn("turn", driver.run().instrument(span));
            Ok(())
        }
        None => core.stores.leases.release(tenant, session, epoch).await,
    }
}
