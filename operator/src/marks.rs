//! What has changed since someone last looked: a set, so that a thousand changes of one tenant are one.

use std::collections::{HashSet, VecDeque};
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Keys that wait to be looked at. There are never more of them than there are objects. Clones share them.
pub struct Marks<T> {
    shared: Arc<Shared<T>>,
}

struct Shared<T> {
    waiting: Mutex<Waiting<T>>,
    changed: Notify,
    /// Whether anyone will ever take a key. A standby that gathered them would grow for months.
    is_open: AtomicBool,
}

/// First come, first served, so that nobody waits for ever behind the busy.
struct Waiting<T> {
    order: VecDeque<T>,
    keys: HashSet<T>,
}

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Self { order: VecDeque::new(), keys: HashSet::new() }
    }
}

impl<T> Clone for Marks<T> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<T: Eq + Hash + Clone> Default for Marks<T> {
    fn default() -> Self {
        Self::with(true)
    }
}

impl<T: Eq + Hash + Clone> Marks<T> {
    /// No marks.
    pub fn new() -> Self {
        Self::default()
    }

    /// No marks, and none are kept until [`Marks::open`].
    pub fn shut() -> Self {
        Self::with(false)
    }

    fn with(is_open: bool) -> Self {
        let is_open = AtomicBool::new(is_open);
        Self { shared: Arc::new(Shared { waiting: Mutex::default(), changed: Notify::new(), is_open }) }
    }

    /// Keeps marks from now on. Whoever opens then marks all that there is, so that nothing is missed.
    pub fn open(&self) {
        self.shared.is_open.store(true, Ordering::SeqCst);
    }

    /// Asks for `key` to be looked at.
    pub fn mark(&self, key: T) {
        if !self.shared.is_open.load(Ordering::SeqCst) {
            return;
        }
        let mut waiting = self.waiting();
        if waiting.keys.insert(key.clone()) {
            waiting.order.push_back(key);
            self.shared.changed.notify_one();
        }
    }

    /// Takes one key, when there is one. Safe to drop at any moment. Meant for one taker at a time.
    pub async fn next(&self) -> T {
        loop {
            let changed = self.shared.changed.notified();
            if let Some(key) = self.take() {
                return key;
            }
            changed.await;
        }
    }

    fn take(&self) -> Option<T> {
        let mut waiting = self.waiting();
        let key = waiting.order.pop_front()?;
        waiting.keys.remove(&key);
        Some(key)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting<T>> {
        // No code that holds the lock can leave the set half changed.
        self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn many_changes_of_one_key_are_one() {
        let marks = Marks::new();
        for key in ["heron", "heron", "egret", "heron"] {
            marks.mark(key);
        }
        assert_eq!([marks.next().await, marks.next().await], ["heron", "egret"]);
        assert_eq!(marks.take(), None);
        marks.mark("heron");
        assert_eq!(marks.next().await, "heron");
    }

    #[tokio::test]
    async fn nothing_is_gathered_for_nobody() {
        let marks = Marks::shut();
        marks.mark("heron");
        assert_eq!(marks.take(), None);
        marks.open();
        marks.mark("egret");
        assert_eq!(marks.take(), Some("egret"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_taker_that_waits_is_woken() {
        let marks = Marks::new();
        let later = marks.clone();
        let (taken, ()) = tokio::join!(marks.next(), async move {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            later.mark(7);
        });
        assert_eq!(taken, 7);
    }
}
