//! Writes audit records behind the callers' backs, in batches as large as the load makes them.

use std::sync::Arc;
use std::time::Duration;

use croft_serve::Tasks;
use tokio::sync::mpsc;

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
}

impl AuditWriter {
    /// Starts the writer. It ends at shutdown, once every other owner of this handle is gone or the tasks are stopping and the
    /// queue is empty.
    pub fn start(store: Arc<dyn AuditStore>, metrics: Metrics, tasks: &Tasks) -> Self {
        let (queue, mut waiting) = mpsc::channel(QUEUE_MAX);
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
                store_until_stored(&*store, &mut batch, &metrics).await;
            }
        });
        Self { queue }
    }

    /// Records an action.
    pub async fn record(&self, action: Action) {
        if let Err(rejected) = self.queue.send(action).await {
            tracing::error!(action = rejected.0.action, resource = rejected.0.resource, "audit record after shutdown");
        }
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
