//! What has changed since someone last looked: a set, so that a thousand changes of one tenant are one.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::{Stream, stream};
use tokio::sync::Notify;

/// Keys that wait to be looked at. There are never more of them than there are objects. Clones share them.
pub struct Marks<T> {
    shared: Arc<Shared<T>>,
}

struct Shared<T> {
    waiting: Mutex<HashSet<T>>,
    changed: Notify,
}

impl<T> Clone for Marks<T> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<T: Eq + Hash + Clone> Default for Marks<T> {
    fn default() -> Self {
        Self { shared: Arc::new(Shared { waiting: Mutex::default(), changed: Notify::new() }) }
    }
}

impl<T: Eq + Hash + Clone> Marks<T> {
    /// No marks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for `key` to be looked at.
    pub fn mark(&self, key: T) {
        if self.waiting().insert(key) {
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

    /// [`Marks::next`], again and again, without an end.
    pub fn stream(&self) -> impl Stream<Item = T> + use<T> {
        stream::unfold(self.clone(), |marks| async move {
            let key = marks.next().await;
            Some((key, marks))
        })
    }

    fn take(&self) -> Option<T> {
        let mut waiting = self.waiting();
        let key = waiting.iter().next().cloned()?;
        waiting.take(&key)
    }

    fn waiting(&self) -> MutexGuard<'_, HashSet<T>> {
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
        let mut taken = [marks.next().await, marks.next().await];
        taken.sort_unstable();
        assert_eq!(taken, ["egret", "heron"]);
        assert_eq!(marks.take(), None);
        marks.mark("heron");
        assert_eq!(marks.next().await, "heron");
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
