//! Who listens at a session's topic: a turn to its controls, a subscriber to all that happens.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use tokio::sync::mpsc;

use super::Item;
use super::metrics::count;
use super::outbox::Key;
use super::queue::Queue;
use super::shared::Shared;
use super::topics::ListenerId;
use crate::events::relay::Frame;

/// A seat at a session's topic, given up when dropped.
pub(super) struct Listener {
    pub(super) shared: Arc<Shared>,
    pub(super) key: Key,
    pub(super) id: ListenerId,
    pub(super) is_turn: bool,
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut topics = self.shared.topics();
        topics.remove(&self.key, self.id);
        self.shared.metrics.sessions_watched.set(count(topics.len()));
        drop(topics);
        if self.is_turn {
            self.shared.turns.send_modify(|turns| *turns -= 1);
        } else {
            self.shared.metrics.subscribers.dec();
        }
    }
}

/// The controls of a running turn; dropping them ends the listening.
pub struct Controls {
    receiver: mpsc::Receiver<Frame>,
    _listener: Listener,
}

impl Controls {
    pub(super) fn new(receiver: mpsc::Receiver<Frame>, listener: Listener) -> Self {
        Self { receiver, _listener: listener }
    }

    /// The next control; never [`Frame::Events`]. Safe to cancel.
    pub async fn recv(&mut self) -> Option<Frame> {
        self.receiver.recv().await
    }
}

/// What happens in a session, until [`Item::Lagged`]; dropping it ends the subscription.
pub struct Subscription {
    queue: Arc<Queue>,
    _listener: Listener,
}

impl Subscription {
    pub(super) fn new(queue: Arc<Queue>, listener: Listener) -> Self {
        Self { queue, _listener: listener }
    }

    #[cfg(test)]
    pub(super) fn has_lagged(&self) -> bool {
        self.lagged().is_some()
    }

    /// If it has ended, or will with the next item, since the subscriber was too slow: how many previews it has not been told of.
    pub fn lagged(&self) -> Option<u64> {
        self.queue.lagged()
    }
}

impl Stream for Subscription {
    type Item = Item;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Item>> {
        self.queue.poll_pop(context).map(Some)
    }
}
