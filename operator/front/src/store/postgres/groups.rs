//! Group commit: what comes while others are being stored waits, and is then stored together with whatever else waits.
//!
//! Load makes the groups and no clock does: a job that finds a lane free goes at once, by itself; one that finds none goes
//! with all who wait when the next lane comes free. A group is one transaction of one tenant, and has at most one job
//! of a session, so each of them is refused or stored as if it were alone.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use croft_proto::id::{SessionId, TenantId};
use croft_serve::Tasks;
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};

use super::Postgres;
use crate::error::Error;

/// Transactions of one tenant at a time: while one waits for the disk, another is being worked on. More of them would make smaller
/// groups. See BENCHMARKS.md.
pub(super) const LANES: usize = 2;
/// Jobs, events and bytes in one transaction; what is beyond waits for the next. One job may have more.
const JOBS_MAX: usize = 256;
const EVENTS_MAX: usize = 4_096;
const BYTES_MAX: usize = 4 * 1024 * 1024;
/// One that is larger goes by itself: nobody else waits for its bytes.
const SHARED_BYTES_MAX: usize = 256 * 1024;
/// Of such large ones, of all tenants, so many bytes are stored at a time: on its way to the server each is held several times over.
/// More of them wait.
const LARGE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// What their room is counted in.
const UNIT_BYTES: usize = 1024;
/// Jobs of one tenant that wait; at the bound a further one is refused as unavailable.
const WAITING_MAX: usize = 8_192;

/// What can be stored together with others of its kind.
#[async_trait]
pub(super) trait Job: Sized + Send + 'static {
    type Outcome: Send + 'static;

    fn session(&self) -> SessionId;

    /// How many it stores.
    fn events(&self) -> usize;

    /// How large what it stores is, roughly.
    fn bytes(&self) -> usize;

    /// Stores a group of one tenant, each of another session. One outcome a job, in their order: what refuses one of them does not
    /// touch the others. Comes back in bounded time, also from a server that is silent: until then the group's sessions take nothing.
    async fn store(postgres: &Postgres, tenant: TenantId, group: Vec<Self>) -> Vec<Result<Self::Outcome, Error>>;
}

/// Stores jobs of one kind in groups.
pub(super) struct Groups<J: Job> {
    shared: Arc<Shared<J>>,
}

struct Shared<J: Job> {
    postgres: Arc<Postgres>,
    tasks: Tasks,
    queues: Mutex<HashMap<TenantId, Queue<J>>>,
    large: Semaphore,
}

/// Of one tenant. It is there while there is something in it.
struct Queue<J: Job> {
    waiting: VecDeque<Waiting<J>>,
    /// Being stored. A second job of such a session waits, so that its lock is never asked for twice.
    storing: HashSet<SessionId>,
    lanes: usize,
}

impl<J: Job> Default for Queue<J> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), storing: HashSet::new(), lanes: 0 }
    }
}

struct Waiting<J: Job> {
    job: J,
    bytes: usize,
    done: oneshot::Sender<Result<J::Outcome, Error>>,
}

impl<J: Job> Groups<J> {
    /// Its lanes are tasks of `tasks`; they end when nothing waits.
    pub(super) fn new(postgres: Arc<Postgres>, tasks: &Tasks) -> Self {
        let large = Semaphore::new(LARGE_BYTES_MAX / UNIT_BYTES);
        Self { shared: Arc::new(Shared { postgres, tasks: tasks.clone(), queues: Mutex::default(), large }) }
    }

    /// One job, with whatever others there are.
    pub(super) async fn store(&self, tenant: TenantId, job: J) -> Result<J::Outcome, Error> {
        let (done, outcome) = oneshot::channel();
        let bytes = job.bytes();
        if self.shared.enter(tenant, Waiting { job, bytes, done })? {
            let lane = Lane { shared: Arc::clone(&self.shared), tenant, storing: Vec::new(), is_open: true };
            self.shared.tasks.spawn("store-lane", lane.run());
        }
        let lost = |_| Err(Error::unavailable("postgres", anyhow::anyhow!("the lane of a group has failed")));
        outcome.await.unwrap_or_else(lost)
    }
}

impl<J: Job> Shared<J> {
    fn queues(&self) -> MutexGuard<'_, HashMap<TenantId, Queue<J>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for a group whose largest job has so many bytes, if that is a large one: then it is the only one. One that is larger than all
    /// there is goes alone.
    async fn room(&self, bytes: usize) -> Option<SemaphorePermit<'_>> {
        if bytes <= SHARED_BYTES_MAX {
            return None;
        }
        let units = u32::try_from(bytes.min(LARGE_BYTES_MAX) / UNIT_BYTES).unwrap_or(u32::MAX);
        // It is never closed.
        self.large.acquire_many(units).await.ok()
    }

    /// Whether a lane is to be opened for it.
    fn enter(&self, tenant: TenantId, waiting: Waiting<J>) -> Result<bool, Error> {
        let mut queues = self.queues();
        let queue = queues.entry(tenant).or_default();
        if queue.waiting.len() >= WAITING_MAX {
            return Err(Error::unavailable("postgres", anyhow::anyhow!("{WAITING_MAX} jobs wait")));
        }
        queue.waiting.push_back(waiting);
        let opens = queue.lanes < self.postgres.append_lanes;
        queue.lanes += usize::from(opens);
        Ok(opens)
    }
}

impl<J: Job> Queue<J> {
    /// The next group: of each session that is not being stored the oldest job.
    fn take(&mut self) -> Vec<Waiting<J>> {
        let (mut group, mut left) = (Vec::new(), VecDeque::new());
        let (mut events, mut bytes, mut is_full) = (0, 0, false);
        while !is_full && let Some(next) = self.waiting.pop_front() {
            let is_large = next.bytes > SHARED_BYTES_MAX;
            if is_large && !group.is_empty() {
                left.push_back(next);
                break;
            }
            if self.storing.insert(next.job.session()) {
                events += next.job.events();
                bytes += next.bytes;
                is_full = is_large || group.len() + 1 == JOBS_MAX || events >= EVENTS_MAX || bytes >= BYTES_MAX;
                group.push(next);
            } else {
                left.push_back(next);
            }
        }
        left.append(&mut self.waiting);
        self.waiting = left;
        group
    }
}

/// Stores one group after the other until nothing waits.
struct Lane<J: Job> {
    shared: Arc<Shared<J>>,
    tenant: TenantId,
    storing: Vec<SessionId>,
    is_open: bool,
}

impl<J: Job> Lane<J> {
    async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        while let Some(group) = self.next() {
            let largest = group.iter().map(|waiting| waiting.bytes).max().unwrap_or_default();
            let _room = shared.room(largest).await;
            let (jobs, waiting): (Vec<_>, Vec<_>) =
                group.into_iter().map(|waiting| (waiting.job, waiting.done)).unzip();
            let outcomes = J::store(&self.shared.postgres, self.tenant, jobs).await;
            // The sessions are free before anyone hears of it: who goes on with the same session must not find it taken.
            self.release();
            for (done, outcome) in waiting.into_iter().zip(outcomes) {
                // Who asked may have gone away; what is stored is stored.
                let _ = done.send(outcome);
            }
        }
    }

    /// The next group, or `None`, and with it the lane is closed: under one lock, or a job could come between and find
    /// all lanes open and none that looks again. What still waits then is of sessions that another lane is storing.
    fn next(&mut self) -> Option<Vec<Waiting<J>>> {
        let mut queues = self.shared.queues();
        let group = queues.get_mut(&self.tenant).map(Queue::take).unwrap_or_default();
        if group.is_empty() {
            self.is_open = false;
            close(&mut queues, self.tenant);
            return None;
        }
        self.storing = group.iter().map(|waiting| waiting.job.session()).collect();
        Some(group)
    }

    fn release(&mut self) {
        let mut queues = self.shared.queues();
        if let Some(queue) = queues.get_mut(&self.tenant) {
            for session in self.storing.drain(..) {
                queue.storing.remove(&session);
            }
        }
    }
}

/// When it was broken off: no session stays taken, and what waits fails at once rather than never.
impl<J: Job> Drop for Lane<J> {
    fn drop(&mut self) {
        if self.is_open {
            self.release();
            let mut queues = self.shared.queues();
            if let Some(queue) = queues.get_mut(&self.tenant)
                && queue.lanes == 1
            {
                queue.waiting.clear();
            }
            close(&mut queues, self.tenant);
        }
    }
}

fn close<J: Job>(queues: &mut HashMap<TenantId, Queue<J>>, tenant: TenantId) {
    let Some(queue) = queues.get_mut(&tenant) else { return };
    queue.lanes -= 1;
    if queue.lanes == 0 && queue.waiting.is_empty() {
        queues.remove(&tenant);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use futures::future::join_all;
    use tokio::time::sleep;

    use super::*;

    /// Takes a second to be stored.
    struct Slow {
        session: SessionId,
        bytes: usize,
        held: Arc<Held>,
    }

    #[derive(Default)]
    struct Held {
        bytes: AtomicUsize,
        most: AtomicUsize,
        groups: AtomicUsize,
    }

    #[async_trait]
    impl Job for Slow {
        type Outcome = ();

        fn session(&self) -> SessionId {
            self.session
        }

        fn events(&self) -> usize {
            1
        }

        fn bytes(&self) -> usize {
            self.bytes
        }

        async fn store(_: &Postgres, _: TenantId, group: Vec<Self>) -> Vec<Result<(), Error>> {
            let held = Arc::clone(&group[0].held);
            let bytes: usize = group.iter().map(|job| job.bytes).sum();
            held.groups.fetch_add(1, Ordering::Relaxed);
            let now = held.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
            held.most.fetch_max(now, Ordering::Relaxed);
            sleep(Duration::from_secs(1)).await;
            held.bytes.fetch_sub(bytes, Ordering::Relaxed);
            group.iter().map(|_| Ok(())).collect()
        }
    }

    /// So many jobs of this size, each of another tenant, or all of one.
    async fn store(jobs: usize, bytes: usize, of_one_tenant: bool) -> Arc<Held> {
        let groups = Groups::new(Arc::new(Postgres::unconnected()), &Tasks::new());
        let (held, one) = (Arc::new(Held::default()), TenantId::generate());
        let stored = join_all((0..jobs).map(|_| {
            let tenant = if of_one_tenant { one } else { TenantId::generate() };
            groups.store(tenant, Slow { session: SessionId::generate(), bytes, held: Arc::clone(&held) })
        }));
        assert!(stored.await.iter().all(Result::is_ok));
        held
    }

    #[tokio::test(start_paused = true)]
    async fn large_ones_of_many_tenants_are_stored_a_few_at_a_time_and_small_ones_are_not_held_up() {
        let large = store(20, 20 * 1024 * 1024, false).await;
        assert_eq!(large.most.load(Ordering::Relaxed), 3 * 20 * 1024 * 1024);
        let beyond = store(3, 2 * LARGE_BYTES_MAX, false).await;
        assert_eq!(beyond.most.load(Ordering::Relaxed), 2 * LARGE_BYTES_MAX, "one at a time");
        let small = store(1_000, SHARED_BYTES_MAX, false).await;
        assert_eq!(small.most.load(Ordering::Relaxed), 1_000 * SHARED_BYTES_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_ends_when_it_has_enough_bytes() {
        let held = store(40, SHARED_BYTES_MAX, true).await;
        assert_eq!(held.most.load(Ordering::Relaxed), LANES * BYTES_MAX);
        assert!(held.groups.load(Ordering::Relaxed) < 10, "they share transactions");
    }
}
