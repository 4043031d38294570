//! When things were first seen in the cluster.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::ensure;
use croft_serve::Tasks;
use futures::StreamExt as _;
use kube::api::{Api, DynamicObject};
use kube::runtime::{WatchStreamExt as _, watcher};
use tokio::time::Instant;

/// Watches, and what they saw first when. Clones share it.
pub struct Arrivals<K> {
    shared: Arc<Shared<K>>,
}

struct Shared<K> {
    seen: Mutex<HashMap<K, Instant>>,
    watches: AtomicUsize,
    whole: AtomicUsize,
}

impl<K> Clone for Arrivals<K> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<K: Eq + Hash + Clone + Send + 'static> Default for Arrivals<K> {
    fn default() -> Self {
        let shared = Shared { seen: Mutex::default(), watches: AtomicUsize::new(0), whole: AtomicUsize::new(0) };
        Self { shared: Arc::new(shared) }
    }
}

impl<K: Eq + Hash + Clone + Send + 'static> Arrivals<K> {
    /// Notes under `key` when an object is first such that it has a key.
    pub fn follow(
        &self,
        tasks: &Tasks,
        api: Api<DynamicObject>,
        selector: &str,
        key: impl Fn(&DynamicObject) -> Option<K> + Send + 'static,
    ) {
        self.shared.watches.fetch_add(1, Ordering::SeqCst);
        let shared = Arc::clone(&self.shared);
        let events = watcher(api, watcher::Config::default().labels(selector)).default_backoff();
        let stopping = tasks.stopping();
        let follow = async move {
            let mut events = std::pin::pin!(events);
            while let Some(event) = events.next().await {
                match event {
                    Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => {
                        let now = Instant::now();
                        if let Some(key) = key(&object) {
                            shared.seen.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_insert(now);
                        }
                    }
                    Ok(watcher::Event::InitDone) => {
                        shared.whole.fetch_add(1, Ordering::SeqCst);
                    }
                    Ok(watcher::Event::Init | watcher::Event::Delete(_)) | Err(_) => {}
                }
            }
        };
        drop(tasks.spawn("arrivals", async move { stopping.run_until_cancelled(follow).await }));
    }

    /// Waits until every watch knows all there is.
    pub async fn synced(&self) {
        while self.shared.whole.load(Ordering::SeqCst) < self.shared.watches.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// When `key` was first seen, if it was.
    pub fn get(&self, key: &K) -> Option<Instant> {
        self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied()
    }

    /// All that has been seen.
    pub fn keys(&self) -> Vec<K> {
        self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// Waits for all of `keys`, and says when each was seen. Fails when that takes longer than `patience`.
    pub async fn all(&self, keys: &[K], patience: Duration) -> anyhow::Result<Vec<Instant>> {
        let begun = Instant::now();
        loop {
            let seen: Vec<_> = keys.iter().filter_map(|key| self.get(key)).collect();
            if seen.len() == keys.len() {
                return Ok(seen);
            }
            ensure!(
                begun.elapsed() < patience,
                "{} of {} not seen in {patience:?}",
                keys.len() - seen.len(),
                keys.len()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
