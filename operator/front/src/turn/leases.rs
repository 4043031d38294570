//! Leases are renewed apart from the work, so that a slow step is not taken for a dead front, and together, as a turn that is running
//! shall cost the store next to nothing. None has to run out when this replica goes in order before its turns are over.

use std::future::ready;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{Either, select};
use futures::{StreamExt, stream};
use tokio::time::{Instant, timeout};

use super::held::Batch;
use crate::core::Core;

/// Calls of the store at the same time: half of the connections that it has.
const AT_A_TIME: usize = 8;

/// Renews all leases that are held here, three times in the life of one, until this replica is gone.
pub async fn keep_leases(core: Arc<Core>) {
    let (ttl, ending) = (core.options.lease_ttl, core.tasks.ending());
    let mut round_at = Instant::now() + ttl / 3;
    loop {
        tokio::select! {
            () = ending.cancelled() => return,
            () = tokio::time::sleep_until(round_at) => {}
        }
        let renewals = stream::iter(core.held.batches()).map(|batch| renew(&core, batch, ttl));
        let renewals = renewals.buffer_unordered(AT_A_TIME).fold(true, |all, one| ready(all && one));
        // A store that hangs keeps the others of a round, but not the rounds. What time the leases had left for it is used up: there is
        // another round at once.
        let is_done = timeout(ttl / 3, renewals).await.unwrap_or(false);
        round_at = if is_done { round_at + ttl / 3 } else { Instant::now() };
        core.held.give_up_what_ran_out();
    }
}

/// False when the store did not answer before the next round is due. Half way there it is asked a second time, as the first may never be
/// answered. It goes on with that too: a store that is only slow would have all of it before it again.
async fn renew(core: &Core, batch: Batch, ttl: Duration) -> bool {
    let ask = async |later: Duration| {
        tokio::time::sleep(later).await;
        let asked = Instant::now();
        (asked, core.stores.leases.renew_all(batch.0, &batch.1, ttl).await)
    };
    let either = async {
        match select(pin!(ask(Duration::ZERO)), pin!(ask(ttl / 6))).await {
            Either::Left((answer @ (_, Ok(_)), _)) | Either::Right((answer @ (_, Ok(_)), _)) => answer,
            // One that fails late may be behind one that does not.
            Either::Left(((asked, Err(_)), second)) if asked.elapsed() >= ttl / 6 => second.await,
            Either::Left((refused, _)) => refused,
            Either::Right((_, first)) => first.await,
        }
    };
    let Ok((asked, renewed)) = timeout(ttl / 3, either).await else {
        tracing::warn!(tenant = %batch.0, "leases were not renewed in time, trying again");
        return false;
    };
    match renewed {
        Ok(lost) => core.held.renewed(batch, &lost, asked + ttl),
        Err(error) => tracing::warn!(tenant = %batch.0, %error, "leases not renewed, trying again"),
    }
    true
}

/// Waits until this replica goes, and leaves the turns that are not over to others, who need not wait for their leases to run out.
pub async fn leave_turns_behind(core: Arc<Core>) {
    core.tasks.ending().cancelled().await;
    let leave = core.held.let_go().into_iter().map(|((tenant, session), epoch)| {
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
