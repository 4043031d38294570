//! The leases of turns that run here, as their drivers hold them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use croft_proto::id::{SessionId, TenantId};
use tokio::sync::SetOnce;
use tokio::time::Instant;

/// Leases that are renewed by one call. Their rows are locked together.
const TOGETHER_MAX: usize = 500;

pub(super) type Turn = (TenantId, SessionId);

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
pub(super) type Batch = (TenantId, Vec<(SessionId, u64)>);

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

    /// All of them, which are held here no more: nobody is told that they are lost.
    pub(super) fn let_go(&self) -> Vec<(Turn, u64)> {
        self.lock().drain().map(|(turn, lease)| (turn, lease.epoch)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Turn, Lease>> {
        // No code that holds the lock can leave the map half changed.
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them.
    pub(super) fn batches(&self) -> Vec<Batch> {
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
    pub(super) fn renewed(&self, (tenant, leases): Batch, lost: &[SessionId], good_until: Instant) {
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
    pub(super) fn give_up_what_ran_out(&self) {
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
