//! The leases of turns that run here. They are renewed apart from the work, so that a slow step is not taken for a dead front, and
//! together, as a turn that is running shall cost the store next to nothing. None has to run out when this replica goes in order before
//! its turns are over.

use std::collections::HashMap;
use std::future::ready;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use croft_proto::id::{SessionId, TenantId};
use futures::future::{Either, select};
use futures::{StreamExt, stream};
use tokio::sync::SetOnce;
use tokio::time::{Instant, timeout};

use crate::core::Core;

/// Calls of the store at the same time: half of the connections that it has.
const AT_A_TIME: usize = 8;
/// Leases that are renewed by one call. Their rows are locked together.
const TOGETHER_MAX: usize = 500;

type Turn = (TenantId, SessionId);

/// Which they are.
#[derive(Debug, Clone, Default)]
pub struct Held {
    leases: Arc<Mutex<HashMap<Turn, Lease>>>,
}

#[derive(Debug)]
struct Lease {
    epoch: u64,
    /// What the last renewal said.
    good_until: Instant,
    lost: Arc<SetOnce<Loss>>,
    /// Its driver is giving it up: see [`Hold::gives_up`].
    is_given_up: bool,
}

/// How it is known that a lease is somebody else's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// The store said so.
    Told,
    /// The store has said nothing for as long as the lease was good; or a newer one is held here.
    Inferred,
}

impl Lease {
    /// It is somebody else's. Whoever gives it up has nothing to stop for.
    fn lose(&self, how: Loss) {
        if !self.is_given_up {
            // The first word counts.
            let _ = self.lost.set(how);
        }
    }
}

/// Leases of one tenant, with their epochs.
type Batch = (TenantId, Vec<(SessionId, u64)>);

impl Held {
    /// Until what comes back is dropped, a lease is held, which is good for `ttl` from now on. Whoever held an older one of the session here
    /// has lost it.
    pub(super) fn hold(&self, tenant: TenantId, session: SessionId, epoch: u64, ttl: Duration) -> Hold {
        let (turn, lost) = ((tenant, session), Arc::new(SetOnce::new()));
        let lease = Lease { epoch, good_until: Instant::now() + ttl, lost: Arc::clone(&lost), is_given_up: false };
        if let Some(older) = self.lock().insert(turn, lease) {
            older.lose(Loss::Inferred);
        }
        Hold { held: self.clone(), turn, epoch, lost }
    }

    /// A turn of the session is driven here.
    pub(crate) fn holds(&self, tenant: TenantId, session: SessionId) -> bool {
        self.lock().contains_key(&(tenant, session))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Turn, Lease>> {
        // No code that holds the lock can leave the map half changed.
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them.
    fn batches(&self) -> Vec<Batch> {
        let mut by_tenant: HashMap<TenantId, Vec<(SessionId, u64)>> = HashMap::new();
        for ((tenant, session), lease) in &*self.lock() {
            by_tenant.entry(*tenant).or_default().push((*session, lease.epoch));
        }
        let cut = |(tenant, leases): (TenantId, Vec<_>)| {
            leases.chunks(TOGETHER_MAX).map(|some| (tenant, some.to_vec())).collect::<Vec<_>>()
        };
        by_tenant.into_iter().flat_map(cut).collect()
    }

    /// These are good until then, but for those that are lost.
    fn renewed(&self, (tenant, leases): Batch, lost: &[SessionId], good_until: Instant) {
        let mut held = self.lock();
        for (session, epoch) in leases {
            // Another of the same session may have come since.
            let Some(lease) = held.get_mut(&(tenant, session)).filter(|lease| lease.epoch == epoch) else { continue };
            if lost.contains(&session) {
                lease.lose(Loss::Told);
            } else {
                lease.good_until = good_until;
            }
        }
    }

    /// Those that nobody could renew are ours for as long as the last renewal said, and no longer.
    fn give_up_what_ran_out(&self) {
        let now = Instant::now();
        for lease in self.lock().values().filter(|lease| lease.good_until <= now) {
            lease.lose(Loss::Inferred);
        }
    }
}

pub(super) struct Hold {
    held: Held,
    turn: Turn,
    epoch: u64,
    lost: Arc<SetOnce<Loss>>,
}

impl Hold {
    /// Until the lease is somebody else's.
    pub(super) async fn lost(&self) -> Loss {
        *self.lost.wait().await
    }

    /// The driver is about to give the lease up, with the turn's last word: from then on the lease is nobody's, which a renewal would find
    /// while what belongs to the end is still being done. Nothing more can be stored under a lease that was lost before.
    pub(super) fn gives_up(&self) {
        self.change(|lease| lease.is_given_up = true);
    }

    /// It has kept the lease after all: a message waits.
    pub(super) fn keeps(&self) {
        self.change(|lease| lease.is_given_up = false);
    }

    fn change(&self, change: impl FnOnce(&mut Lease)) {
        if let Some(lease) = self.held.lock().get_mut(&self.turn).filter(|lease| lease.epoch == self.epoch) {
            change(lease);
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut leases = self.held.lock();
        if leases.get(&self.turn).is_some_and(|lease| lease.epoch == self.epoch) {
            leases.remove(&self.turn);
        }
    }
}

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
    let left: Vec<_> = core.held.lock().drain().collect();
    let leave = left.into_iter().map(|((tenant, session), Lease { epoch, .. })| {
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

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(9);

    #[tokio::test(start_paused = true)]
    async fn whoever_loses_a_lease_learns_whether_the_store_said_so() {
        let (held, tenant) = (Held::default(), TenantId::generate());
        let [told, silent, older] = [(); 3].map(|()| SessionId::generate());
        let take = |session| held.hold(tenant, session, 1, TTL);
        let (told_of, ran_out, replaced) = (take(told), take(silent), take(older));
        held.renewed((tenant, vec![(told, 1), (older, 1)]), &[told], Instant::now() + 2 * TTL);
        assert_eq!(told_of.lost().await, Loss::Told);
        tokio::time::sleep(TTL).await;
        held.give_up_what_ran_out();
        assert_eq!((told_of.lost().await, ran_out.lost().await), (Loss::Told, Loss::Inferred));
        let _newer = held.hold(tenant, older, 2, TTL);
        assert_eq!(replaced.lost().await, Loss::Inferred);
    }
}
