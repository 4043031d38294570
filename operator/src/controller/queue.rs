//! Who waits for a pass, or for whatever else is done for one after another. Tenants have their turns one after another, and each has so many passes at a time at most, however much of theirs
//! is to be looked at; within a tenant it is first come, first served.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;

use tokio::time::Instant;

/// Keys that wait. There are never more of them than there are objects.
pub(crate) struct Queue<T> {
    /// Those who have something that waits or runs.
    tenants: HashMap<String, Tenant<T>>,
    /// Those whose turn it is to have one more pass, in order.
    turns: VecDeque<String>,
    keys: HashSet<T>,
    share: usize,
    tenant: fn(&T) -> &str,
}

struct Tenant<T> {
    /// With when each began to wait.
    waiting: VecDeque<(T, Instant)>,
    running: usize,
    has_turn: bool,
}

impl<T: Clone + Eq + Hash> Queue<T> {
    /// Nothing waits. A tenant has `share` passes at a time at most; `tenant` says whose a key is.
    pub(crate) fn new(share: usize, tenant: fn(&T) -> &str) -> Self {
        Self { tenants: HashMap::new(), turns: VecDeque::new(), keys: HashSet::new(), share, tenant }
    }

    /// One that waits already keeps its place.
    pub(crate) fn push(&mut self, key: T) {
        if !self.keys.insert(key.clone()) {
            return;
        }
        let name = (self.tenant)(&key).to_owned();
        let fresh = || Tenant { waiting: VecDeque::new(), running: 0, has_turn: false };
        self.tenants.entry(name.clone()).or_insert_with(fresh).waiting.push_back((key, Instant::now()));
        self.give_turn(name);
    }

    /// Takes the next one, whose pass begins; [`Queue::ended`] must be told of its end. `None` if nobody waits who may have one more.
    pub(crate) fn take(&mut self) -> Option<T> {
        let name = self.turns.pop_front()?;
        let tenant = self.tenants.get_mut(&name)?;
        tenant.has_turn = false;
        let (key, _) = tenant.waiting.pop_front()?;
        tenant.running += 1;
        self.keys.remove(&key);
        self.give_turn(name);
        Some(key)
    }

    pub(crate) fn ended(&mut self, key: &T) {
        let name = (self.tenant)(key);
        let Some(tenant) = self.tenants.get_mut(name) else { return };
        tenant.running -= 1;
        if tenant.running == 0 && tenant.waiting.is_empty() {
            self.tenants.remove(name);
        } else {
            self.give_turn(name.to_owned());
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Since when the one waits that has waited for longest.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.tenants.values().filter_map(|tenant| tenant.waiting.front().map(|(_, since)| *since)).min()
    }

    fn give_turn(&mut self, name: String) {
        let Some(tenant) = self.tenants.get_mut(&name) else { return };
        if !tenant.has_turn && !tenant.waiting.is_empty() && tenant.running < self.share {
            tenant.has_turn = true;
            self.turns.push_back(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(share: usize) -> Queue<&'static str> {
        Queue::new(share, |key| key.split('/').next().unwrap())
    }

    #[test]
    fn tenants_take_turns_and_keep_within_their_share() {
        let mut queue = queue(2);
        for key in ["heron/1", "heron/2", "heron/3", "heron/1", "egret/1"] {
            queue.push(key);
        }
        assert_eq!(queue.len(), 4);
        assert_eq!([queue.take(), queue.take(), queue.take()], [Some("heron/1"), Some("egret/1"), Some("heron/2")]);
        assert_eq!((queue.take(), queue.len()), (None, 1));
        queue.ended(&"egret/1");
        assert_eq!(queue.take(), None, "what another has left is not heron's");
        queue.ended(&"heron/2");
        assert_eq!(queue.take(), Some("heron/3"));
    }

    #[test]
    fn nothing_is_kept_of_what_is_over() {
        let mut queue = queue(1);
        queue.push("heron/1");
        assert!(queue.oldest().is_some() && queue.len() == 1);
        let key = queue.take().unwrap();
        assert!(queue.oldest().is_none() && queue.len() == 0);
        queue.ended(&key);
        assert!(queue.tenants.is_empty() && queue.turns.is_empty());
    }
}
