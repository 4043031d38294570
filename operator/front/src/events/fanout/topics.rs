//! Who listens to which session at this replica.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

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
            Topic { newest_seq: 0, subscribers: Vec::new(), controls: Vec::new(), pump: token, asked }
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
