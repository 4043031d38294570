//! Takes frames from the outbox to the relay, several at a time, one of each session.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use croft_serve::Tasks;
use tokio::sync::watch;
use tokio::time::timeout;

use super::metrics::{Metrics, count};
use super::outbox::{Job, Key, Outbox};
use super::shared::set_up;
use super::topics::{Elsewhere, Topics};
use crate::events::relay::{Frame, Relay};
use crate::sync::Mutex;

const SENDERS: usize = 4;
/// After a failure, so that a relay that is down is not asked a million times a second. Meanwhile the outbox sheds.
const PAUSE: Duration = Duration::from_millis(100);

/// Starts the senders, and the task that closes the outbox at shutdown: once no turn is left, which may have more to say.
pub(super) fn spawn(tasks: &Tasks, sender: &Sender, mut turns: watch::Receiver<usize>) {
    for _ in 0..SENDERS {
        tasks.spawn_endless("relay-sender", sender.clone().run());
    }
    let closing = Arc::clone(&sender.outbox);
    let stopping = tasks.stopping();
    tasks.spawn_endless("relay-closer", async move {
        stopping.cancelled().await;
        // An error says that the hub is gone.
        let _ = turns.wait_for(|turns| *turns == 0).await;
        closing.close();
    });
}

/// One of several that do the same.
#[derive(Clone)]
pub(super) struct Sender {
    pub(super) relay: Arc<dyn Relay>,
    pub(super) outbox: Arc<Outbox>,
    pub(super) publish_timeout: Duration,
    pub(super) metrics: Metrics,
    pub(super) relay_up: Arc<AtomicBool>,
    pub(super) topics: Arc<Mutex<Topics>>,
}

impl Sender {
    async fn run(self) {
        while let Some(Job { key, envelope }) = self.outbox.take().await {
            let (tenant, session) = key;
            let before = self.elsewhere(key, |elsewhere| *elsewhere);
            let sent = timeout(self.publish_timeout, self.relay.publish(tenant, session, &envelope)).await;
            let failure = match sent {
                Ok(Ok(listeners)) => {
                    if let Some(before) = before {
                        self.elsewhere(key, |elsewhere| elsewhere.count(before, listeners));
                    }
                    None
                }
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some("no answer in time".to_owned()),
            };
            set_up(&self.relay_up, &self.metrics, failure.is_none());
            self.metrics.relay_waiting.set(count(self.outbox.len()));
            let Some(failure) = failure else {
                self.outbox.done(key, 0);
                continue;
            };
            tracing::debug!(%tenant, %session, failure, "a frame is lost to other replicas");
            self.metrics.relay_failures.with_label_values(&["publish"]).inc();
            let lost = match &envelope.frame {
                Frame::Events(events) => events.iter().filter(|event| event.seq == 0).count() as u64,
                Frame::Interrupt { .. } | Frame::Terminated | Frame::ApprovalResolved { .. } | Frame::Listening => 0,
            };
            self.metrics.previews_dropped.with_label_values(&["relay"]).inc_by(lost);
            tokio::time::sleep(PAUSE).await;
            self.outbox.done(key, lost + envelope.dropped_previews);
        }
    }

    /// Looks at what is known of the session's listeners elsewhere, if anybody listens here.
    fn elsewhere<T>(&self, key: Key, look: impl FnOnce(&mut Elsewhere) -> T) -> Option<T> {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        topics.get_mut(&key).map(|topic| look(&mut topic.elsewhere))
    }
}
