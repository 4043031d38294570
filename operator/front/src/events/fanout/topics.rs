//! Who listens to which session at this replica.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::crowd::Held;
use super::outbox::Key;
use super::queue::Queue;
use crate::events::relay::Frame;

/// A listener's number, unique in this replica.
pub(super) type ListenerId = u64;

/// Sessions that someone listens to. The others have no entry, and cost nothing.
#[derive(Default)]
pub(super) struct Topics {
    topics: HashMap<Key, Topic>,
    next_id: ListenerId,
}

/// One session.
pub(super) struct Topic {
    /// The newest durable event that passed here, from whichever replica.
    pub(super) newest_seq: u64,
    pub(super) subscribers: Vec<Subscriber>,
    pub(super) controls: Vec<(ListenerId, mpsc::Sender<Frame>)>,
    /// Ends the task that listens to the relay.
    pump: CancellationToken,
    /// The relay has been asked, with whatever outcome.
    asked: watch::Receiver<bool>,
    /// What we know of listeners elsewhere.
    pub(super) elsewhere: Elsewhere,
}

/// Whether another replica wants the previews of a session: while none does, they are not sent to the relay.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Elsewhere {
    /// This replica listens at the relay, and so is one of those that the relay counts.
    pub(super) joined: bool,
    /// Times that another replica has said that it listens.
    pub(super) heard: u64,
    nobody: bool,
}

impl Elsewhere {
    pub(super) fn is_nobody(self) -> bool {
        self.nobody
    }

    /// The relay is joined, or lost: what was known is out of date.
    pub(super) fn join(&mut self, joined: bool) {
        *self = Self { joined, nobody: false, ..*self };
    }

    pub(super) fn hear(&mut self) {
        *self = Self { heard: self.heard + 1, nobody: false, ..*self };
    }

    /// So many got a frame that was sent when we knew as much as `before`. Somebody who has spoken up since was not counted.
    pub(super) fn count(&mut self, before: Self, listeners: u64) {
        if self.heard == before.heard {
            self.nobody = before.joined && self.joined && listeners <= 1;
        }
    }
}

pub(super) struct Subscriber {
    id: ListenerId,
    pub(super) previews: bool,
    pub(super) queue: Arc<Queue>,
}

/// What a new listener needs to know.
pub(super) struct Joined {
    pub(super) id: ListenerId,
    pub(super) asked: watch::Receiver<bool>,
    /// The first of its session: the caller starts the pump with these.
    pub(super) pump: Option<(CancellationToken, watch::Sender<bool>)>,
}

impl Topic {
    /// What subscribers here hold with all others, where it is too much.
    pub(super) fn over_full(&self) -> Option<Held> {
        self.subscribers.first().map(|subscriber| subscriber.queue.held()).filter(|held| held.wants_relief()).cloned()
    }

    /// Somebody here wants to see previews.
    pub(super) fn wants_previews(&self) -> bool {
        self.subscribers.iter().any(|subscriber| subscriber.previews)
    }
}

impl Topics {
    pub(super) fn get_mut(&mut self, key: &Key) -> Option<&mut Topic> {
        self.topics.get_mut(key)
    }

    pub(super) fn len(&self) -> usize {
        self.topics.len()
    }

    pub(super) fn add_subscriber(&mut self, key: Key, queue: Arc<Queue>, previews: bool) -> Joined {
        self.add(key, |topic, id| topic.subscribers.push(Subscriber { id, previews, queue }))
    }

    pub(super) fn add_controls(&mut self, key: Key, sender: mpsc::Sender<Frame>) -> Joined {
        self.add(key, |topic, id| topic.controls.push((id, sender)))
    }

    fn add(&mut self, key: Key, listen: impl FnOnce(&mut Topic, ListenerId)) -> Joined {
        let id = self.next_id;
        self.next_id += 1;
        let mut pump = None;
        let topic = self.topics.entry(key).or_insert_with(|| {
            let (asking, asked) = watch::channel(false);
            let token = CancellationToken::new();
            pump = Some((token.clone(), asking));
            let elsewhere = Elsewhere::default();
            Topic { newest_seq: 0, subscribers: Vec::new(), controls: Vec::new(), pump: token, asked, elsewhere }
        });
        listen(topic, id);
        Joined { id, asked: topic.asked.clone(), pump }
    }

    /// Strikes a listener out. With the last one the session's entry goes, and its pump.
    pub(super) fn remove(&mut self, key: &Key, id: ListenerId) {
        let Some(topic) = self.topics.get_mut(key) else { return };
        topic.subscribers.retain(|subscriber| subscriber.id != id);
        topic.controls.retain(|(listener, _)| *listener != id);
        if topic.subscribers.is_empty() && topic.controls.is_empty() {
            topic.pump.cancel();
            self.topics.remove(key);
        }
    }
}
