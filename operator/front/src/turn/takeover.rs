//! Takes over turns whose front went silent.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use tracing::Instrument as _;

use super::driver::Driver;
use crate::core::Core;
use crate::error::Error;
use crate::lease::Abandoned;

/// Between two looks; a turn waits for its lease to run out and for at most this.
const EVERY: Duration = Duration::from_secs(1);
/// Turns that one look finds at most; there is another look at once while there are as many.
const BATCH: u32 = 100;
const CONCURRENCY: usize = 8;

/// Looks for abandoned turns until shutdown.
pub async fn watch_for_abandoned_turns(core: Arc<Core>) {
    let stopping = core.tasks.stopping();
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        // Whoever does not know the tenants yet has no worker for anybody.
        while core.tenants.synced() && !stopping.is_cancelled() {
            match look(&core).await {
                // Where none could be had, others are at it, or another look at once would find the same.
                Ok(Found { turns, taken }) if turns == BATCH as usize && taken > 0 => {}
                Ok(_) => break,
                Err(error) => {
                    tracing::warn!(%error, "abandoned turns not looked for, trying again");
                    break;
                }
            }
        }
    }
}

/// What one look came to.
struct Found {
    turns: usize,
    taken: usize,
}

async fn look(core: &Arc<Core>) -> Result<Found, Error> {
    let abandoned = core.stores.leases.abandoned(BATCH).await?;
    let turns = abandoned.len();
    let taken = stream::iter(abandoned)
        .map(|turn| async move {
            take_over(core, turn).await.unwrap_or_else(|error| {
                tracing::warn!(session = %turn.session, %error, "turn not taken over, trying again");
                false
            })
        })
        .buffer_unordered(CONCURRENCY)
        .filter(|taken| std::future::ready(*taken))
        .count()
        .await;
    Ok(Found { turns, taken })
}

/// False when another has it.
async fn take_over(core: &Arc<Core>, Abandoned { tenant, session }: Abandoned) -> Result<bool, Error> {
    let Some(epoch) = core.stores.leases.acquire(tenant, session, &core.replica, core.options.lease_ttl).await? else {
        return Ok(false);
    };
    match core.stores.sessions.get(tenant, session).await? {
        Some(found) => {
            tracing::info!(%tenant, %session, epoch, "took over a turn");
            core.metrics.takeovers.inc();
            let driver = Driver::new(Arc::clone(core), found, epoch);
            let span = driver.span();
            core.tasks.spawn("turn", driver.run().instrument(span));
        }
        None => core.stores.leases.release(tenant, session, epoch).await?,
    }
    Ok(true)
}
