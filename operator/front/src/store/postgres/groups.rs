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
use tokio::sync::oneshot;

use super::Postgres;
use crate::error::Error;

/// Transactions of one tenant at a time: while one waits for the disk, another is being worked on. More of them would make smaller
/// groups. See BENCHMARKS.md.
pub(super) const LANES: usize = 2;
/// Jobs, and events, in one transaction; what is beyond waits for the next. One job may have more events.
const JOBS_MAX: usize = 256;
const EVENTS_MAX: usize = 4_096;
/// Jobs of one tenant that wait; at the bound a further one is refused as unavailable.
const WAITING_MAX: usize = 8_192;

/// What can be stored together with others of its kind.
#[async_trait]
pub(super) trait Job: Sized + Send + 'static {
    type Outcome: Send + 'static;

    fn session(&self) -> SessionId;

    /// How many it stores.
    fn events(&self) -> usize;

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
    done: oneshot::Sender<Result<J::Outcome, Error>>,
}

impl<J: Job> Groups<J> {
    /// Its lanes are tasks of `tasks`; they end when nothing waits.
    pub(super) fn new(postgres: Arc<Postgres>, tasks: &Tasks) -> Self {
        Self { shared: Arc::new(Shared { postgres, tasks: tasks.clone(), queues: Mutex::default() }) }
    }

    /// One job, with whatever others there are.
    pub(super) async fn store(&self, tenant: TenantId, job: J) -> Result<J::Outcome, Error> {
        let (done, outcome) = oneshot::channel();
        if self.shared.enter(tenant, Waiting { job, done })? {
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
        let mut events = 0;
        while let Some(next) = self.waiting.pop_front() {
            let is_full = group.len() == JOBS_MAX || (events >= EVENTS_MAX && !group.is_empty());
            if is_full {
                left.push_back(next);
                break;
            }
            if self.storing.insert(next.job.session()) {
                events += next.job.events();
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
        while let Some(group) = self.next() {
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
