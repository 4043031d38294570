//! What a hub holds: it passes events, and words for turns, to whoever listens here.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use croft_proto::id::TenantId;
use croft_proto::v1::SessionEvent;
use croft_serve::Tasks;
use prost::Message;
use tokio::sync::watch;
use uuid::Uuid;

use super::Options;
use super::crowd::{Crowd, Held};
use super::metrics::Metrics;
use super::outbox::{Key, Outbox};
use super::queue::{Pushed, Sized};
use super::topics::{Topic, Topics};
use crate::events::relay::{Envelope, Frame, Relay};
use crate::events::replay::{Looks, Room};
use crate::sync::{Mutex, MutexGuard};

/// What the hub's clones, its listeners and its tasks share.
pub(super) struct Shared {
    /// This replica, to know its own frames when the relay brings them back.
    pub(super) origin: Uuid,
    pub(super) relay: Arc<dyn Relay>,
    pub(super) tasks: Tasks,
    pub(super) options: Options,
    pub(super) metrics: Metrics,
    pub(super) outbox: Arc<Outbox>,
    pub(super) topics: Arc<Mutex<Topics>>,
    pub(super) crowd: Crowd,
    pub(super) relay_up: Arc<AtomicBool>,
    /// Calls of the relay that had failed when it answered last.
    pub(super) relay_failures: AtomicU64,
    /// Turns that listen for controls: while there are any, something may still be published.
    pub(super) turns: watch::Sender<usize>,
    /// What is held of logs for those who follow.
    pub(super) replays: Room,
    /// What is known of logs to those who follow.
    pub(super) looks: Looks,
}

impl Shared {
    /// Hands events to the subscribers here. `after_seq` is the newest number that another replica knew of; `None` for what
    /// happened at this one.
    ///
    /// Returns them with their sizes, and whether other replicas may want the previews among them.
    ///
    /// Each preview is marked with the newest number that its own sender knew of: by ours, a preview that was held up on its way
    /// would look newer than the event that replaces it.
    pub(super) fn deliver(
        &self,
        key: Key,
        events: Vec<SessionEvent>,
        after_seq: Option<u64>,
        dropped_previews: u64,
    ) -> (Vec<Sized>, bool) {
        let mut topics = self.topics();
        let mut topic = topics.get_mut(&key);
        if let Some(held) = topic.as_ref().and_then(|topic| topic.over_full()) {
            drop(topics);
            self.relieve(key.0, &held);
            topics = self.topics();
            topic = topics.get_mut(&key);
        }
        let mut newest = after_seq.or(topic.as_ref().map(|topic| topic.newest_seq)).unwrap_or_default();
        if let Some(topic) = &topic
            && dropped_previews > 0
        {
            topic
                .subscribers
                .iter()
                .filter(|one| one.previews)
                .for_each(|one| one.queue.note_dropped(dropped_previews));
        }
        let mut passed = Vec::with_capacity(events.len());
        for event in events {
            let event = Sized { bytes: event.encoded_len(), after_seq: newest, event: Arc::new(event.into()) };
            newest = newest.max(event.event.seq);
            passed.push(event);
        }
        if let Some(topic) = &mut topic {
            self.push(topic, &passed);
            topic.newest_seq = topic.newest_seq.max(newest);
        }
        (passed, !topic.is_some_and(|topic| topic.elsewhere.is_nobody()))
    }

    fn push(&self, topic: &Topic, events: &[Sized]) {
        for subscriber in &topic.subscribers {
            let wanted = events.iter().filter(|event| subscriber.previews || !event.is_preview());
            match subscriber.queue.push_all(wanted.cloned()) {
                Pushed::Kept => {}
                Pushed::Dropped(previews) => {
                    self.metrics.previews_dropped.with_label_values(&["subscriber"]).inc_by(previews);
                }
                Pushed::Overflowed => self.metrics.slow_subscribers.inc(),
            }
        }
    }

    fn relieve(&self, tenant: TenantId, held: &Held) {
        let relief = self.crowd.relieve(tenant, held);
        self.metrics.previews_dropped.with_label_values(&["subscriber"]).inc_by(relief.previews);
        self.metrics.slow_subscribers.inc_by(relief.ended);
    }

    /// What came from another replica.
    pub(super) fn receive(&self, key: Key, envelope: Envelope) {
        let Envelope { origin, after_seq, dropped_previews, frame } = envelope;
        if origin == self.origin {
            return;
        }
        match frame {
            Frame::Events(events) => drop(self.deliver(key, events, Some(after_seq), dropped_previews)),
            Frame::Interrupt { .. } | Frame::Terminated | Frame::ApprovalResolved { .. } => {
                self.tell_turn(key, &frame);
            }
            Frame::Listening => {
                if let Some(topic) = self.topics().get_mut(&key) {
                    topic.elsewhere.hear();
                }
            }
        }
    }

    /// The relay was joined, or lost. Whoever runs the turn elsewhere hears of subscribers here.
    pub(super) fn join(&self, key: Key, joined: bool) {
        let mut topics = self.topics();
        let Some(topic) = topics.get_mut(&key) else { return };
        topic.elsewhere.join(joined);
        if joined && topic.wants_previews() {
            self.outbox.push_control(key, Frame::Listening);
        }
    }

    /// Frames may have been lost: every subscriber of the session looks at the log. While the relay is away more will be, and what was seen
    /// of the log is as good as any.
    pub(super) fn resync(&self, key: Key) {
        if self.topics().get_mut(&key).is_some_and(|topic| topic.elsewhere.joined) {
            self.looks.doubt(key);
        }
        self.look_again(key);
    }

    pub(super) fn look_again(&self, key: Key) {
        if let Some(topic) = self.topics().get_mut(&key) {
            topic.subscribers.iter().for_each(|subscriber| subscriber.queue.resync());
        }
    }

    pub(super) fn tell_turn(&self, key: Key, frame: &Frame) -> bool {
        let mut topics = self.topics();
        let Some(topic) = topics.get_mut(&key) else { return false };
        let mut told = false;
        for (_, sender) in &topic.controls {
            match sender.try_send(frame.clone()) {
                Ok(()) => told = true,
                Err(_) => self.metrics.controls_dropped.inc(),
            }
        }
        told
    }

    pub(super) fn set_relay_up(&self, up: bool) {
        set_up(&self.relay_up, &self.metrics, up);
    }

    pub(super) fn topics(&self) -> MutexGuard<'_, Topics> {
        // No code that holds the lock can leave the topics half changed.
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.outbox.close();
    }
}

/// Notes how the last call of the relay went.
pub(super) fn set_up(flag: &AtomicBool, metrics: &Metrics, up: bool) {
    if flag.swap(up, Ordering::Relaxed) != up {
        metrics.relay_up.set(i64::from(up));
        if up {
            tracing::info!("the relay is back");
        } else {
            tracing::warn!("the relay is down: events reach other replicas by the log, with delay");
        }
    }
}
