//! Group commit: appends that come while others are being stored wait, and are then stored together.
//!
//! Load makes the groups and no clock does: an append that finds a lane free goes at once, by itself; one that finds none goes
//! with all who wait when the next lane comes free. A group is one transaction of one tenant, and has at most one append
//! of a session, so each of them is refused or stored as if it were alone.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::SessionEvent;
use croft_serve::Tasks;
use tokio::sync::oneshot;

use super::Postgres;
use super::events::Prepared;
use crate::error::Error;
use crate::events::log::{Append, Appended, EventLog, IdempotencyKey, StoredCheckpoint};

/// Transactions of one tenant that append at a time. More of them would make smaller groups.
pub(super) const LANES: usize = 2;
/// Appends, and events, in one transaction; what is beyond waits for the next. One append may have more events.
const APPENDS_MAX: usize = 256;
const EVENTS_MAX: usize = 4_096;
/// Appends of one tenant that wait; at the bound a further one is refused as unavailable.
const WAITING_MAX: usize = 8_192;

/// The event log in Postgres, for many appends at a time.
pub(in crate::store) struct GroupedLog {
    shared: Arc<Shared>,
}

struct Shared {
    postgres: Arc<Postgres>,
    tasks: Tasks,
    queues: Mutex<HashMap<TenantId, Queue>>,
}

/// Of one tenant. It is there while there is something in it.
#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// Being stored. A second append of such a session waits, so that its lock is never asked for twice.
    storing: HashSet<SessionId>,
    lanes: usize,
}

struct Waiting {
    prepared: Prepared,
    done: oneshot::Sender<Result<Appended, Error>>,
}

impl GroupedLog {
    /// Its lanes are tasks of `tasks`; they end when nothing waits.
    pub(in crate::store) fn new(postgres: Arc<Postgres>, tasks: &Tasks) -> Self {
        Self { shared: Arc::new(Shared { postgres, tasks: tasks.clone(), queues: Mutex::default() }) }
    }
}

#[async_trait]
impl EventLog for GroupedLog {
    async fn append(&self, append: Append) -> Result<Appended, Error> {
        let prepared = Prepared::of(append)?;
        // A key may turn out to be taken, and an end takes more locks: neither should hold up a group.
        if prepared.append.idempotency_key.is_some() || prepared.fences() {
            return self.shared.postgres.append_prepared(prepared).await;
        }
        let tenant = prepared.append.tenant;
        let (done, outcome) = oneshot::channel();
        if self.shared.enter(tenant, Waiting { prepared, done })? {
            let lane = Lane { shared: Arc::clone(&self.shared), tenant, storing: Vec::new(), is_open: true };
            self.shared.tasks.spawn("append-lane", lane.run());
        }
        let lost = |_| Err(Error::unavailable("the event log", anyhow::anyhow!("the lane of an append has failed")));
        outcome.await.unwrap_or_else(lost)
    }

    async fn find_sent(
        &self,
        tenant: TenantId,
        session: SessionId,
        key: &IdempotencyKey,
    ) -> Result<Option<u64>, Error> {
        self.shared.postgres.find_sent(tenant, session, key).await
    }

    async fn read(
        &self,
        tenant: TenantId,
        session: SessionId,
        after_seq: u64,
        limit: u32,
    ) -> Result<Vec<SessionEvent>, Error> {
        self.shared.postgres.read(tenant, session, after_seq, limit).await
    }

    async fn checkpoint(&self, tenant: TenantId, session: SessionId) -> Result<Option<StoredCheckpoint>, Error> {
        self.shared.postgres.checkpoint(tenant, session).await
    }
}

impl Shared {
    fn queues(&self) -> MutexGuard<'_, HashMap<TenantId, Queue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a lane is to be opened for it.
    fn enter(&self, tenant: TenantId, waiting: Waiting) -> Result<bool, Error> {
        let mut queues = self.queues();
        let queue = queues.entry(tenant).or_default();
        if queue.waiting.len() >= WAITING_MAX {
            return Err(Error::unavailable("the event log", anyhow::anyhow!("{WAITING_MAX} appends wait")));
        }
        queue.waiting.push_back(waiting);
        let opens = queue.lanes < self.postgres.append_lanes;
        queue.lanes += usize::from(opens);
        Ok(opens)
    }
}

impl Queue {
    /// The next group: of each session that is not being stored the oldest append.
    fn take(&mut self) -> Vec<Waiting> {
        let (mut group, mut left) = (Vec::new(), VecDeque::new());
        let mut events = 0;
        while let Some(next) = self.waiting.pop_front() {
            let is_full = group.len() == APPENDS_MAX || (events >= EVENTS_MAX && !group.is_empty());
            if is_full {
                left.push_back(next);
                break;
            }
            if self.storing.insert(next.prepared.append.session) {
                events += next.prepared.append.events.len();
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
struct Lane {
    shared: Arc<Shared>,
    tenant: TenantId,
    storing: Vec<SessionId>,
    is_open: bool,
}

impl Lane {
    async fn run(mut self) {
        while let Some(group) = self.next() {
            let (prepared, waiting): (Vec<_>, Vec<_>) =
                group.into_iter().map(|waiting| (waiting.prepared, waiting.done)).unzip();
            let outcomes = self.shared.postgres.append_group(self.tenant, prepared).await;
            // The sessions are free before anyone hears of it: who goes on with the same session must not find it taken.
            self.release();
            for (done, outcome) in waiting.into_iter().zip(outcomes) {
                // Who asked may have gone away; what is stored is stored.
                let _ = done.send(outcome);
            }
        }
    }

    /// The next group, or `None`, and with it the lane is closed: under one lock, or an append could come between and find
    /// all lanes open and none that looks again. What still waits then is of sessions that another lane is storing.
    fn next(&mut self) -> Option<Vec<Waiting>> {
        let mut queues = self.shared.queues();
        let group = queues.get_mut(&self.tenant).map(Queue::take).unwrap_or_default();
        if group.is_empty() {
            self.is_open = false;
            close(&mut queues, self.tenant);
            return None;
        }
        self.storing = group.iter().map(|waiting| waiting.prepared.append.session).collect();
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
impl Drop for Lane {
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

fn close(queues: &mut HashMap<TenantId, Queue>, tenant: TenantId) {
    let Some(queue) = queues.get_mut(&tenant) else { return };
    queue.lanes -= 1;
    if queue.lanes == 0 && queue.waiting.is_empty() {
        queues.remove(&tenant);
    }
}
