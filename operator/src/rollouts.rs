//! Exchanges of workers for the platform's sake that are under way, and those that wait for a permit; see [`Permits`].

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::marks::Marks;
use crate::metrics::Metrics;
use crate::permits::{Holder, Permits, most};

/// Why a tenant's workers wait: as many as may be under way are, or come before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// Tenants whose workers may be exchanged at a time.
    pub(crate) most: usize,
}

/// Shared by all passes. It gives no permit until [`Rollouts::open`], as a leader must know first what the one before it has begun.
pub(crate) struct Rollouts {
    state: Mutex<State>,
    /// Who waits and gets a permit is looked at at once.
    tenants: Marks<String>,
    metrics: Metrics,
}

#[derive(Default)]
struct State {
    permits: Permits,
    /// How many may be under way, as of the last question.
    most: usize,
    is_open: bool,
    /// Tenants whose own change is still to reach their workers.
    owed: HashSet<String>,
}

impl Rollouts {
    pub(crate) fn new(tenants: Marks<String>, metrics: Metrics) -> Self {
        Self { state: Mutex::default(), tenants, metrics }
    }

    /// Notes that the workers of `under_way` are being exchanged, and gives permits from then on.
    pub(crate) fn open(&self, under_way: Vec<String>) {
        self.change(|state| {
            state.is_open = true;
            for tenant in under_way {
                state.permits.note_under_way(&tenant);
                // It may be over since.
                self.tenants.mark(tenant);
            }
        });
    }

    /// Asks for a permit for one of so many tenants, `percent` of which may be under way. Whoever gets none is looked at again when one is
    /// free.
    pub(crate) fn ask(&self, tenant: &str, is_served: bool, tenants: usize, percent: u8) -> Result<Holder, Waiting> {
        self.change(|state| {
            state.most = most(tenants, percent);
            let free_for = if state.is_open { state.most } else { 0 };
            state.permits.ask(tenant, is_served, free_for).ok_or(Waiting { most: state.most })
        })
    }

    /// See [`Permits::note_under_way`].
    pub(crate) fn note_under_way(&self, tenant: &str) {
        self.change(|state| state.permits.note_under_way(tenant));
    }

    /// Notes that the wanted template is in the cluster; see [`Permits::note_begun`].
    pub(crate) fn note_begun(&self, tenant: &str) {
        self.change(|state| {
            state.owed.remove(tenant);
            state.permits.note_begun(tenant);
        });
    }

    /// Notes that a tenant's own change needs no permit, until its workers are as it wants them: the first try may fail. It waits no more.
    pub(crate) fn owe(&self, tenant: &str) {
        self.change(|state| {
            state.owed.insert(tenant.to_owned());
            state.permits.step_back(tenant);
        });
    }

    pub(crate) fn is_owed(&self, tenant: &str) -> bool {
        self.state().owed.contains(tenant)
    }

    /// See [`Permits::settle`].
    pub(crate) fn settle(&self, tenant: &str) {
        self.take_out(tenant);
    }

    /// Takes a tenant out whose workers are exchanged, and counts it if it held a permit. One that only gives its permit back is not counted:
    /// that so many come to their end is what tells a rollout that goes on from one that is stuck.
    pub(crate) fn end(&self, tenant: &str) {
        if self.take_out(tenant) {
            self.metrics.rollouts_ended.inc();
        }
    }

    fn take_out(&self, tenant: &str) -> bool {
        self.change(|state| {
            state.owed.remove(tenant);
            state.permits.settle(tenant)
        })
    }

    /// See [`Permits::give_up`].
    pub(crate) fn give_up(&self, tenant: &str) {
        self.change(|state| state.permits.give_up(tenant));
    }

    pub(crate) fn holder(&self, tenant: &str) -> Option<Holder> {
        self.state().permits.holder(tenant)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let changed = change(&mut state);
        if state.is_open {
            state.permits.first(state.most).for_each(|tenant| self.tenants.mark(tenant.clone()));
        }
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.metrics.rollouts_under_way.set(count(state.permits.under_way()));
        self.metrics.rollouts_waiting.set(count(state.permits.waiting()));
        changed
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollouts() -> (Rollouts, Marks<String>, Metrics) {
        let (tenants, metrics) = (Marks::new(), Metrics::register(&prometheus::Registry::new()).unwrap());
        (Rollouts::new(tenants.clone(), metrics.clone()), tenants, metrics)
    }

    #[tokio::test]
    async fn no_permit_is_given_before_what_is_under_way_is_known() {
        let (rollouts, marks, metrics) = rollouts();
        assert_eq!(rollouts.ask("heron", true, 3, 5), Err(Waiting { most: 10 }));
        assert_eq!(metrics.rollouts_under_way.get(), 0);
        rollouts.open((0..10).map(|at| format!("egret-{at}")).collect());
        for at in 0..10 {
            assert_eq!(marks.next().await, format!("egret-{at}"));
        }
        assert_eq!(rollouts.ask("heron", true, 3, 5), Err(Waiting { most: 10 }));
        assert_eq!((metrics.rollouts_under_way.get(), metrics.rollouts_waiting.get()), (10, 1));
        rollouts.end("egret-7");
        assert_eq!(marks.next().await, "heron");
        assert!(rollouts.ask("heron", true, 3, 5).is_ok());
        assert_eq!((metrics.rollouts_ended.get(), metrics.rollouts_waiting.get()), (1, 0));
        rollouts.settle("egret-3");
        rollouts.end("egret-3");
        assert_eq!((metrics.rollouts_ended.get(), metrics.rollouts_under_way.get()), (1, 9), "it gave its permit back");
    }

    #[tokio::test]
    async fn a_tenant_that_went_and_stands_at_the_head_of_the_queue_keeps_nobody_waiting() {
        let (rollouts, marks, metrics) = rollouts();
        rollouts.open((0..10).map(|at| format!("egret-{at}")).collect());
        for _ in 0..10 {
            marks.next().await;
        }
        assert!(rollouts.ask("gone", true, 3, 5).is_err() && rollouts.ask("heron", true, 3, 5).is_err());
        rollouts.settle("egret-7");
        // It is looked at, and is not there.
        assert_eq!(marks.next().await, "gone");
        rollouts.settle("gone");
        assert_eq!(marks.next().await, "heron");
        assert!(rollouts.ask("heron", true, 3, 5).is_ok());
        assert_eq!((metrics.rollouts_under_way.get(), metrics.rollouts_waiting.get()), (10, 0));
    }

    #[tokio::test]
    async fn who_waited_for_the_beginning_is_looked_at_when_it_comes() {
        let (rollouts, marks, _) = rollouts();
        assert!(rollouts.ask("heron", true, 3, 5).is_err());
        rollouts.open(Vec::new());
        assert_eq!(marks.next().await, "heron");
    }
}
