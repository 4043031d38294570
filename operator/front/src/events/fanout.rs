//! Hands events to whoever listens at this replica at once, and to the other replicas by the relay.
//!
//! Nothing here waits for a reader and nothing grows without a bound, so a turn that publishes is never held up. What is
//! lost here is lost to speed alone: [`follow`](super::replay::follow) finds durable events in the log.

mod crowd;
mod listener;
mod metrics;
#[cfg(test)]
mod model;
mod outbox;
mod pump;
mod queue;
#[cfg(test)]
mod readers;
mod sender;
mod shared;
#[cfg(test)]
mod tests;
mod topics;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::SessionEvent;
use croft_serve::Tasks;
use prometheus::Registry;
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use self::crowd::Crowd;
use self::listener::Listener;
pub use self::listener::{Controls, Subscription};
pub use self::metrics::Metrics;
use self::metrics::count;
use self::outbox::{Key, Outbox};
use self::queue::Sized;
use self::sender::Sender;
use self::shared::Shared;
use self::topics::Joined;
use crate::events::relay::{Frame, Relay};
use crate::events::replay::{Looks, Room};

/// Of one turn; at the bound the newest is dropped. A turn that doesn't read its controls has been told enough.
const CONTROLS_MAX: usize = 64;

/// Bounds of the fan-out.
#[derive(Debug, Clone)]
pub struct Options {
    /// Of one subscriber. At either bound the oldest previews go; without any left, the subscription ends. Of bytes count those
    /// that a publish finds there, without the oldest event: a large one ends nobody's subscription by itself.
    pub subscriber_events_max: usize,
    pub subscriber_bytes_max: usize,
    /// Of all subscribers together, and of one tenant's. An event that waits for several is counted once. Beyond it previews go, and then
    /// those subscriptions end that hold most.
    pub held_bytes_max: usize,
    pub tenant_bytes_max: usize,
    /// A subscription ends in which something durable waits and of which nothing was taken for so long, in whole seconds: its reader is
    /// stuck. Well above what a slow connection takes for a round of all its subscriptions, whose readers are not.
    pub unread_max: Duration,
    /// How long a new listener waits for the relay, so that it misses nothing. Past it, the log must do.
    pub subscribe_timeout: Duration,
    /// How long a frame may take to the relay. Past it, it is lost.
    pub publish_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            subscriber_events_max: 1024,
            subscriber_bytes_max: 4 * 1024 * 1024,
            held_bytes_max: 64 * 1024 * 1024,
            tenant_bytes_max: 16 * 1024 * 1024,
            unread_max: Duration::from_mins(2),
            subscribe_timeout: Duration::from_millis(500),
            publish_timeout: Duration::from_secs(1),
        }
    }
}

/// The fan-out of one replica. Clones share it.
#[derive(Clone)]
pub struct Hub {
    shared: Arc<Shared>,
}

/// What a subscription yields. Durable events may be missing, doubled or out of order, as the relay has it;
/// [`follow`](super::replay::follow) puts them right.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    Durable(SessionEvent),
    /// `after_seq` is the newest durable number that the sender knew of when the preview happened.
    Preview {
        event: SessionEvent,
        after_seq: u64,
    },
    /// So many previews were dropped since the last event.
    Gap {
        dropped_previews: u64,
    },
    /// Frames may have been lost: the log knows.
    Resync,
    /// The subscriber was too slow, and the subscription has ended: `last_seq` is the last number it was sent, 0 for none.
    Lagged {
        last_seq: u64,
    },
}

/// What a subscriber wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubscribeOptions {
    pub previews: bool,
}

impl Hub {
    /// A hub with the default bounds, that counts in `registry`. Fails when it counts there already.
    ///
    /// Also starts the tasks that send to the relay; they end with `tasks`, once no turn listens for controls any more
    /// and all is sent.
    pub fn new(relay: Arc<dyn Relay>, tasks: &Tasks, registry: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self::with_options(relay, tasks, Options::default(), Metrics::register(registry)?))
    }

    /// A hub with bounds of the caller's own.
    pub fn with_options(relay: Arc<dyn Relay>, tasks: &Tasks, options: Options, metrics: Metrics) -> Self {
        let origin = Uuid::now_v7();
        let outbox = Arc::new(Outbox::new(origin));
        let relay_up = Arc::new(AtomicBool::new(true));
        metrics.relay_up.set(1);
        let turns = watch::Sender::new(0);
        let sender = Sender {
            relay: Arc::clone(&relay),
            outbox: Arc::clone(&outbox),
            publish_timeout: options.publish_timeout,
            metrics: metrics.clone(),
            relay_up: Arc::clone(&relay_up),
            topics: Arc::default(),
        };
        sender::spawn(tasks, &sender, turns.subscribe());
        let topics = sender.topics;
        let crowd = Crowd::new(&options);
        let shared = Arc::new(Shared {
            origin,
            relay,
            tasks: tasks.clone(),
            options,
            metrics,
            outbox,
            topics,
            crowd,
            relay_up,
            relay_failures: AtomicU64::new(0),
            turns,
            replays: Room::default(),
            looks: Looks::default(),
        });
        crowd::spawn(&shared.tasks, &shared);
        Self { shared }
    }

    /// Tells subscribers of this replica at once and those of others soon. Durable events must be stored already; previews
    /// have number 0. Never waits.
    ///
    /// Previews are not sent while the relay has told, with the frame before, that nobody else listens: another replica says so
    /// itself when somebody comes. Without that, every token of every answer would go through the relay, mostly to nobody.
    ///
    /// Previews are placed after the newest durable event that passed this hub, so their publisher holds
    /// [`Hub::controls`] of the session (which keeps count).
    pub fn publish(&self, tenant: TenantId, session: SessionId, events: Vec<SessionEvent>) {
        if events.is_empty() {
            return;
        }
        let key = (tenant, session);
        let (sized, is_wanted_elsewhere) = self.shared.deliver(key, events, None, 0);
        if !is_wanted_elsewhere && sized.iter().all(Sized::is_preview) {
            return;
        }
        let shed = self.shared.outbox.push(key, sized);
        let metrics = &self.shared.metrics;
        metrics.relay_shed.with_label_values(&["preview"]).inc_by(shed.previews);
        metrics.relay_shed.with_label_values(&["durable"]).inc_by(shed.durables);
        metrics.relay_waiting.set(count(self.shared.outbox.len()));
    }

    /// Tells the session's turn something, wherever it runs. True when it runs here.
    pub fn control(&self, tenant: TenantId, session: SessionId, frame: Frame) -> bool {
        if let Frame::Events(events) = frame {
            self.publish(tenant, session, events);
            return false;
        }
        let key = (tenant, session);
        let told = self.shared.tell_turn(key, &frame);
        self.shared.outbox.push_control(key, frame);
        told
    }

    /// The controls for the session's turn from now on. The turn holds them while it runs.
    pub async fn controls(&self, tenant: TenantId, session: SessionId) -> Controls {
        let key = (tenant, session);
        let (sender, receiver) = mpsc::channel(CONTROLS_MAX);
        self.shared.turns.send_modify(|turns| *turns += 1);
        let joined = self.shared.topics().add_controls(key, sender);
        let listener = self.listen(key, joined, true).await;
        Controls::new(receiver, listener)
    }

    /// What happens in the session from now on.
    pub async fn subscribe(&self, tenant: TenantId, session: SessionId, options: SubscribeOptions) -> Subscription {
        let key = (tenant, session);
        let queue = self.shared.crowd.join(tenant, &self.shared.options);
        self.shared.metrics.subscribers.inc();
        let joined = self.shared.topics().add_subscriber(key, Arc::clone(&queue), options.previews);
        // Where the relay is only now being joined, the pump says it.
        if options.previews && joined.pump.is_none() {
            self.shared.outbox.push_control(key, Frame::Listening);
        }
        let listener = self.listen(key, joined, false).await;
        Subscription::new(queue, listener)
    }

    /// The last call of the relay went well.
    pub fn relay_is_up(&self) -> bool {
        self.shared.relay_up.load(Ordering::Relaxed)
    }

    /// The relay has answered a question that carries nothing: it is up, unless calls have failed since it last did so. Where nobody
    /// publishes or listens, nothing else says that it is back.
    pub fn relay_answered(&self) {
        let count = |operation| self.shared.metrics.relay_failures.with_label_values(&[operation]).get();
        let failures = count("publish") + count("subscribe");
        if self.shared.relay_failures.swap(failures, Ordering::Relaxed) == failures {
            self.shared.set_relay_up(true);
        }
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    pub(crate) fn replays(&self) -> &Room {
        &self.shared.replays
    }

    pub(crate) fn looks(&self) -> &Looks {
        &self.shared.looks
    }

    /// Something is in the session's log that those who follow it here may not have been told.
    pub(crate) fn look_again(&self, tenant: TenantId, session: SessionId) {
        self.shared.look_again((tenant, session));
    }

    /// For what is done on behalf of those who watch.
    pub(crate) fn tasks(&self) -> &Tasks {
        &self.shared.tasks
    }

    /// Starts the pump if there is none, and waits for it to have asked the relay.
    async fn listen(&self, key: Key, joined: Joined, is_turn: bool) -> Listener {
        let Joined { id, mut asked, pump } = joined;
        // From here on a caller that goes away leaves no trace.
        let listener = Listener { shared: Arc::clone(&self.shared), key, id, is_turn };
        if let Some((token, asking)) = pump {
            pump::spawn(&self.shared, key, token, asking);
            self.shared.metrics.sessions_watched.set(count(self.shared.topics().len()));
        }
        // An error says that the pump is gone, which is as good as an answer.
        let _ = tokio::time::timeout(self.shared.options.subscribe_timeout, asked.wait_for(|asked| *asked)).await;
        listener
    }
}
