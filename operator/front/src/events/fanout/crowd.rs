//! All queues of a replica: what lies in them together is bounded, in all and by tenant, and nothing durable lies there for long.
//!
//! An event that lies in several queues is held, and counted, once. Beyond a bound all make room by their previews, and if that is not
//! enough, those that hold most end; but none whose reader has taken all but what has just come, and none that holds next to nothing: its
//! end would help nobody.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use croft_proto::id::TenantId;
use croft_serve::Tasks;
use tokio::time::sleep;

use super::Options;
use super::queue::Queue;
use super::shared::Shared;
use crate::sync::{Mutex, MutexGuard};

/// How often all queues are looked at.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// A queue that holds less than such a part of a bound does not end to make room.
const SMALL_PART: usize = 256;

/// Of one replica.
pub(super) struct Crowd {
    all: Arc<Account>,
    tenant_bytes_max: usize,
    /// So many looks after something durable was found in a queue of which nothing is taken, it ends.
    sweeps_max: u32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Those whose subscription is over are struck out by the next look.
    queues: Vec<(TenantId, Weak<Queue>)>,
    tenants: HashMap<TenantId, Weak<Account>>,
}

/// Bytes that lie in queues.
#[derive(Debug)]
struct Account {
    bytes: AtomicUsize,
    bytes_max: usize,
    /// Nobody was found who could make room: there is no use in another look before the next sweep.
    has_no_more: AtomicBool,
}

/// What a queue's events count in: its tenant's account, and that of all.
#[derive(Debug, Clone)]
pub(super) struct Held {
    own: Arc<Account>,
    all: Arc<Account>,
}

/// What queues did to make room.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Relief {
    pub(super) previews: u64,
    pub(super) ended: u64,
}

impl Account {
    fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { bytes: AtomicUsize::new(0), bytes_max, has_no_more: AtomicBool::new(false) })
    }

    fn is_over(&self, bytes_max: usize) -> bool {
        self.bytes.load(Ordering::Relaxed) > bytes_max
    }

    fn wants_relief(&self) -> bool {
        self.is_over(self.bytes_max) && !self.has_no_more.load(Ordering::Relaxed)
    }
}

impl Held {
    pub(super) fn add(&self, bytes: usize) {
        self.own.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.all.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn subtract(&self, bytes: usize) {
        self.own.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.all.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// More than there may be lies in the tenant's queues, or in all.
    pub(super) fn wants_relief(&self) -> bool {
        self.own.wants_relief() || self.all.wants_relief()
    }

    #[cfg(test)]
    pub(super) fn unbounded() -> Self {
        Self { own: Account::new(usize::MAX), all: Account::new(usize::MAX) }
    }
}

impl Crowd {
    pub(super) fn new(options: &Options) -> Self {
        let sweeps = options.unread_max.as_secs() / SWEEP_EVERY.as_secs();
        Self {
            all: Account::new(options.held_bytes_max),
            tenant_bytes_max: options.tenant_bytes_max,
            sweeps_max: u32::try_from(sweeps).unwrap_or(u32::MAX),
            state: Mutex::default(),
        }
    }

    /// A queue for a subscriber of the tenant's.
    pub(super) fn join(&self, tenant: TenantId, options: &Options) -> Arc<Queue> {
        let mut state = self.lock();
        let own = state.tenants.get(&tenant).and_then(Weak::upgrade).unwrap_or_else(|| {
            let own = Account::new(self.tenant_bytes_max);
            state.tenants.retain(|_, account| account.strong_count() > 0);
            state.tenants.insert(tenant, Arc::downgrade(&own));
            own
        });
        let held = Held { own, all: Arc::clone(&self.all) };
        let queue = Arc::new(Queue::new(options.subscriber_events_max, options.subscriber_bytes_max, held));
        state.queues.push((tenant, Arc::downgrade(&queue)));
        queue
    }

    /// Makes room, where the tenant's queues or all together hold too much.
    pub(super) fn relieve(&self, tenant: TenantId, held: &Held) -> Relief {
        let is_own = held.own.wants_relief();
        let account = if is_own { &held.own } else { &held.all };
        let mut queues = self.queues();
        queues.retain(|(owner, _)| !is_own || *owner == tenant);
        // Some at a time, so that not each event that comes looks for more.
        let enough = account.bytes_max / 8 * 7;
        let mut relief = Relief::default();
        for queue in heaviest_first(&queues, 0) {
            if !account.is_over(enough) {
                return relief;
            }
            relief.previews += queue.shed();
        }
        // Also less than an equal part for each, so that those that are left alone never hold more than the bound together.
        let bytes_min = (account.bytes_max / SMALL_PART.max(queues.len())).max(1);
        // An end that frees nothing, as all lies in other queues too, is no reason to stop: theirs may come next.
        for queue in heaviest_first(&queues, bytes_min) {
            if !account.is_over(enough) {
                return relief;
            }
            relief.ended += u64::from(queue.end(bytes_min));
        }
        account.has_no_more.store(account.is_over(account.bytes_max), Ordering::Relaxed);
        relief
    }

    /// Ends queues in which something durable lies and of which nothing was taken for too long: so many.
    pub(super) fn sweep(&self) -> u64 {
        let mut ended = 0;
        for (_, queue) in self.queues() {
            ended += u64::from(queue.sweep(self.sweeps_max));
            queue.held().own.has_no_more.store(false, Ordering::Relaxed);
        }
        self.all.has_no_more.store(false, Ordering::Relaxed);
        ended
    }

    /// Bytes that lie in all queues.
    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.all.bytes.load(Ordering::Relaxed)
    }

    fn queues(&self) -> Vec<(TenantId, Arc<Queue>)> {
        let mut state = self.lock();
        state.queues.retain(|(_, queue)| queue.strong_count() > 0);
        state.queues.iter().filter_map(|(tenant, queue)| Some((*tenant, queue.upgrade()?))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Those that weigh so much at least.
fn heaviest_first(queues: &[(TenantId, Arc<Queue>)], bytes_min: usize) -> impl Iterator<Item = &Queue> {
    let weighed = queues.iter().map(|(_, queue)| (queue.weight(), &**queue));
    let mut weighed: Vec<_> = weighed.filter(|(weight, _)| *weight >= bytes_min).collect();
    weighed.sort_by_key(|(weight, _)| Reverse(*weight));
    weighed.into_iter().map(|(_, queue)| queue)
}

/// Starts the task that looks at all queues. It ends with the hub, or when nobody is left who reads.
pub(super) fn spawn(tasks: &Tasks, shared: &Arc<Shared>) {
    let (hub, ending) = (Arc::downgrade(shared), tasks.ending());
    let sweeps = async move {
        loop {
            sleep(SWEEP_EVERY).await;
            let Some(shared) = hub.upgrade() else { return };
            shared.metrics.slow_subscribers.inc_by(shared.crowd.sweep());
        }
    };
    tasks.spawn_last("event-queues", async move {
        ending.run_until_cancelled(sweeps).await;
    });
}
