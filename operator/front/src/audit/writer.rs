//! Writes audit records behind the callers' backs, in batches as large as the load makes them. Where there is a folder for it, a record
//! is in a journal there before its caller is answered; while the store is away batches wait there, too, and are replayed in their
//! order when it is back. What is found in the folder at the start is stored before anything else, each record once. A record that the
//! store refuses for good stands in nobody's way: it is set aside in the folder.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use croft_serve::Tasks;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::journal::Journal;
use super::lag::Lag;
use super::spool::{self, Folder, Spool};
use super::{Action, AuditStore, Place};
use crate::clock::now;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::store::time::micros;

/// Records that may wait in memory. At the bound an action waits for room before it is answered: an unaudited action is worse
/// than a slow one.
const QUEUE_MAX: usize = 10_000;
const BATCH_MAX: usize = 500;
const RETRY: Duration = Duration::from_millis(500);
/// How long records that are in a journal wait for others. One by one, their transactions would stand in the way of the very calls that
/// they tell of.
const GATHER: Duration = Duration::from_millis(50);

/// The way into the audit log; cheap to clone.
#[derive(Clone)]
pub struct AuditWriter {
    queue: mpsc::Sender<(u64, Action)>,
    journal: Arc<Journal>,
    /// Records that were given to us so far, and those that are stored.
    given: Arc<AtomicU64>,
    stored: watch::Receiver<u64>,
    lag: Lag,
    /// Somebody waits for what waits.
    hurry: Arc<Notify>,
}

/// What writes.
struct Writing {
    store: Arc<dyn AuditStore>,
    journal: Arc<Journal>,
    spool: Option<Spool>,
    metrics: Metrics,
    storing: watch::Sender<u64>,
    /// Up to which of its records the journal was given to the store.
    sent: u64,
}

impl AuditWriter {
    /// Starts the writer. It ends at shutdown, once every other owner of this handle is gone or all that may act has ended, and the
    /// queue is empty. What waits in the folder is replayed first. Fails when the folder can't be used.
    pub async fn start(
        store: Arc<dyn AuditStore>,
        folder: Option<&Folder>,
        metrics: Metrics,
        tasks: &Tasks,
    ) -> anyhow::Result<Self> {
        let spool = match folder {
            Some(folder) => {
                let unusable = || format!("{} can't keep audit records", folder.path.display());
                let spool = Spool::open(folder).await.with_context(unusable)?;
                metrics.audit_refused.inc_by(spool.unreadable());
                Some(spool)
            }
            None => None,
        };
        let (queue, mut waiting) = mpsc::channel(QUEUE_MAX);
        let (storing, stored) = watch::channel(0);
        let (given, hurry): (Arc<AtomicU64>, Arc<Notify>) = Default::default();
        let (journal, lag) = (Arc::new(Journal::new(folder.map(|folder| &*folder.path))), metrics.audit_lag.clone());
        let mut work = Writing { store, journal: Arc::clone(&journal), spool, metrics, storing, sent: 0 };
        let gathering = folder.map(|_| Gathering { hurry: Arc::clone(&hurry), stopping: tasks.stopping() });
        // Calls and turns that are being drained still act.
        let ending = tasks.ending();
        tasks.spawn_last("audit-writer", async move {
            let mut batch = Vec::with_capacity(BATCH_MAX);
            loop {
                let taken = tokio::select! {
                    taken = waiting.recv_many(&mut batch, BATCH_MAX) => taken,
                    () = tokio::time::sleep(RETRY), if work.has_kept() => {
                        work.replay().await;
                        continue;
                    }
                    () = ending.cancelled(), if waiting.is_empty() => {
                        waiting.close();
                        waiting.recv_many(&mut batch, BATCH_MAX).await
                    }
                };
                if taken == 0 {
                    // One more try: what can't be stored now is for the next process.
                    work.replay().await;
                    return;
                }
                if let Some(gathering) = &gathering {
                    gathering.fill(&mut batch, &mut waiting).await;
                }
                work.write(std::mem::take(&mut batch)).await;
            }
        });
        Ok(Self { queue, journal, given, stored, lag, hurry })
    }

    /// Records an action.
    pub async fn record(&self, action: Action) {
        // Before it is in the queue: whoever waits for all records that there are waits for this one too.
        let giving = Giving::new(&self.given);
        let act_micros = action.act_micros.or_else(|| Some(micros(&now())));
        let action = Action { act_micros, ..action.plain() };
        match self.queue.reserve().await {
            Ok(room) => {
                giving.done();
                // In the queue they are in the order of their numbers.
                self.journal.note(action, |number, action| {
                    self.lag.given(number);
                    room.send((number, action));
                });
            }
            Err(_) => {
                tracing::error!(action = %action.action, resource = action.resource, "audit record after shutdown");
            }
        }
    }

    /// Waits until all that was recorded before is stored, but not for longer than this; tells how many records are not.
    pub async fn unwritten(&self, patience: Duration) -> u64 {
        let (given, mut stored) = (self.given.load(Ordering::SeqCst), self.stored.clone());
        self.hurry.notify_one();
        // Either end of the wait is the same to us: the count tells.
        let _ = timeout(patience, stored.wait_for(|stored| *stored >= given)).await;
        given.saturating_sub(*stored.borrow())
    }
}

/// A record that is being given. Its caller may go away before there is room for it: then it is not waited for.
struct Giving<'writer> {
    given: &'writer AtomicU64,
    is_done: bool,
}

impl<'writer> Giving<'writer> {
    fn new(given: &'writer AtomicU64) -> Self {
        given.fetch_add(1, Ordering::SeqCst);
        Self { given, is_done: false }
    }

    fn done(mut self) {
        self.is_done = true;
    }
}

impl Drop for Giving<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.given.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Waits for records to be stored together.
struct Gathering {
    hurry: Arc<Notify>,
    stopping: CancellationToken,
}

impl Gathering {
    /// Adds what comes until it is time, the batch is full, or somebody waits for it.
    async fn fill(&self, batch: &mut Vec<(u64, Action)>, waiting: &mut mpsc::Receiver<(u64, Action)>) {
        let until = Instant::now() + GATHER;
        while batch.len() < BATCH_MAX {
            let room = BATCH_MAX - batch.len();
            tokio::select! {
                taken = waiting.recv_many(batch, room) => {
                    if taken == 0 {
                        return;
                    }
                }
                () = tokio::time::sleep_until(until) => return,
                () = self.hurry.notified() => return,
                () = self.stopping.cancelled() => return,
            }
        }
    }
}

impl Writing {
    fn has_kept(&self) -> bool {
        self.spool.as_ref().is_some_and(|spool| !spool.is_empty())
    }

    /// Stores a batch, or keeps it on disk; waits where neither can be done.
    async fn write(&mut self, batch: Vec<(u64, Action)>) {
        let Some(&(first, _)) = batch.first() else { return };
        let place = Place { journal: self.journal.id(), first };
        let last = first + batch.len() as u64 - 1;
        let batch: Vec<_> = batch.into_iter().map(|(_, action)| action).collect();
        self.store_or_keep(place, &batch).await;
        self.journal.forget(last);
    }

    async fn store_or_keep(&mut self, place: Place, batch: &[Action]) {
        // Behind what waits there already, so that the order stays.
        if !self.has_kept() && self.store(place, batch, true).await {
            return;
        }
        if let Some(spool) = &mut self.spool {
            // By its present name: under the one before, the next process would take it for stored.
            let place = Place { journal: self.journal.id(), ..place };
            match spool.keep(place, batch).await {
                Ok(()) => {
                    self.metrics.audit_kept.inc_by(batch.len() as u64);
                    self.replay().await;
                    return;
                }
                Err(error) => tracing::error!(%error, "audit records can't be kept on disk, and wait in memory"),
            }
        }
        loop {
            self.replay().await;
            if !self.has_kept() && self.store(place, batch, true).await {
                return;
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Stores a batch, but for what the store refuses for good; false if it has to be tried again. `is_given` says that they were given to
    /// this process.
    async fn store(&mut self, place: Place, batch: &[Action], is_given: bool) -> bool {
        let (records, last) = (batch.len() as u64, place.behind(batch.len()).first - 1);
        let sent = self.sent;
        let place = if is_given {
            self.sent = last.max(sent);
            // By its present name, whatever it was noted under.
            Place { journal: self.journal.id(), ..place }
        } else {
            place
        };
        match self.store.append(place, batch.to_vec()).await {
            // What an earlier process had sent nobody knows.
            Ok(stored) if is_given && stored > sent => {
                self.metrics.audit_refused.inc_by(records);
                tracing::error!(
                    stored,
                    sent,
                    records,
                    "the database has more of the audit journal than was ever sent, so somebody else wrote there; \
                     the records are given to it again, as another journal's"
                );
                self.journal.rename();
                return false;
            }
            Ok(_) => self.metrics.audit_records.inc_by(records),
            Err(Error::Invalid { problem, .. }) => {
                let [action] = batch else {
                    // Which one it is, halves tell.
                    let (before, behind) = batch.split_at(batch.len() / 2);
                    return Box::pin(self.store(place, before, is_given)).await
                        && Box::pin(self.store(place.behind(before.len()), behind, is_given)).await;
                };
                self.set_aside(place, action, &problem).await;
            }
            Err(error) => {
                self.metrics.audit_failures.inc();
                tracing::warn!(%error, records, "audit records not stored, trying again");
                return false;
            }
        }
        if is_given {
            // By its number: where the other half of a batch could not be stored, this one comes again.
            self.metrics.audit_lag.stored(last);
            self.storing.send_modify(|stored| *stored = last.max(*stored));
        }
        true
    }

    /// A dead letter.
    async fn set_aside(&self, place: Place, action: &Action, problem: &str) {
        self.metrics.audit_refused.inc();
        tracing::error!(problem, action = %action.action, "an audit record is refused by the store, and is set aside");
        if let Some(spool) = &self.spool
            && let Err(error) = spool.set_aside(place, action).await
        {
            tracing::error!(%error, ?action, "an audit record can't be set aside");
        }
    }

    /// Stores what waits on disk, for as long as that works. A batch whose file we could not remove is given to the store again, which
    /// knows it.
    async fn replay(&mut self) {
        while let Some(spool) = self.spool.as_ref().filter(|spool| !spool.is_empty()) {
            let is_given = !spool.is_oldest_inherited();
            let (place, batch) = match spool.oldest().await {
                Ok(Some(oldest)) => oldest,
                Ok(None) => return,
                Err(error) if !spool::is_for_good(&error) => {
                    tracing::error!(%error, "kept audit records can't be read, trying again");
                    return;
                }
                Err(error) => {
                    tracing::error!(%error, "kept audit records can't be read, and are set aside");
                    if let Some(spool) = &mut self.spool
                        && let Err(error) = spool.set_oldest_aside().await
                    {
                        tracing::error!(%error, "kept audit records can't be set aside");
                        return;
                    }
                    continue;
                }
            };
            if !self.store(place, &batch, is_given).await {
                return;
            }
            if let Some(spool) = &mut self.spool
                && let Err(error) = spool.forget_oldest().await
            {
                tracing::error!(%error, "replayed audit records can't be removed from the disk");
            }
        }
    }
}

#[cfg(test)]
mod tests;
