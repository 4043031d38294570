//! Writes audit records behind the callers' backs, in batches as large as the load makes them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use croft_serve::Tasks;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::{Action, AuditStore};
use crate::metrics::Metrics;

/// Records that may wait. At the bound an action waits for room before it is answered: an unaudited action is worse than
/// a slow one.
const QUEUE_MAX: usize = 10_000;
const BATCH_MAX: usize = 500;
const RETRY: Duration = Duration::from_millis(500);

/// The way into the audit log; cheap to clone.
#[derive(Clone)]
pub struct AuditWriter {
    queue: mpsc::Sender<Action>,
    /// Records that were given to us so far, and those that are stored.
    given: Arc<AtomicU64>,
    stored: watch::Receiver<u64>,
}

impl AuditWriter {
    /// Starts the writer. It ends at shutdown, once every other owner of this handle is gone or the tasks are stopping and the
    /// queue is empty.
    pub fn start(store: Arc<dyn AuditStore>, metrics: Metrics, tasks: &Tasks) -> Self {
        let (queue, mut waiting) = mpsc::channel(QUEUE_MAX);
        let (storing, stored) = watch::channel(0);
        let stopping = tasks.stopping();
        tasks.spawn("audit-writer", async move {
            let mut batch = Vec::with_capacity(BATCH_MAX);
            loop {
                let taken = tokio::select! {
                    taken = waiting.recv_many(&mut batch, BATCH_MAX) => taken,
                    () = stopping.cancelled(), if waiting.is_empty() => {
                        // Calls that are being drained may still act: the channel closes behind them.
                        waiting.close();
                        waiting.recv_many(&mut batch, BATCH_MAX).await
                    }
                };
                if taken == 0 {
                    return;
                }
                let records = batch.len() as u64;
                store_until_stored(&*store, &mut batch, &metrics).await;
                storing.send_modify(|stored| *stored += records);
            }
        });
        Self { queue, given: Arc::default(), stored }
    }

    /// Records an action.
    pub async fn record(&self, action: Action) {
        // Before it is in the queue: whoever waits for all records that there are waits for this one too.
        self.given.fetch_add(1, Ordering::SeqCst);
        if let Err(rejected) = self.queue.send(action).await {
            tracing::error!(action = rejected.0.action, resource = rejected.0.resource, "audit record after shutdown");
        }
    }

    /// Waits until all that was recorded before is stored, but not for longer than this; tells how many records are not.
    pub async fn unwritten(&self, patience: Duration) -> u64 {
        let (given, mut stored) = (self.given.load(Ordering::SeqCst), self.stored.clone());
        // Either end of the wait is the same to us: the count tells.
        let _ = timeout(patience, stored.wait_for(|stored| *stored >= given)).await;
        given.saturating_sub(*stored.borrow())
    }
}

async fn store_until_stored(store: &dyn AuditStore, batch: &mut Vec<Action>, metrics: &Metrics) {
    let records = batch.len() as u64;
    let actions = std::mem::take(batch);
    loop {
        match store.append(actions.clone()).await {
            Ok(()) => {
                metrics.audit_records.inc_by(records);
                return;
            }
            Err(error) => {
                metrics.audit_failures.inc();
                tracing::warn!(%error, records, "audit records not stored, trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}
