//! Which objects are to be looked at next, and what is told of those that wait.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::time::Duration;

use tokio_util::time::{DelayQueue, delay_queue};

use super::Action;
use super::queue::Queue;
use crate::metrics::Metrics;

/// The longest that an object waits for its next pass: longer than the queue of delays can bear must not be asked of it.
const PAUSE_MAX: Duration = Duration::from_hours(30 * 24);

/// Which objects are to be looked at, now or later, and which are being looked at: one that is marked meanwhile is looked at once more.
pub(super) struct Wanted<T> {
    pub(super) queue: Queue<T>,
    running: HashSet<T>,
    /// Those that run and are to run again.
    again: HashSet<T>,
    pub(super) later: DelayQueue<T>,
    /// Where an object is in `later`.
    due: HashMap<T, delay_queue::Key>,
}

impl<T: Clone + Eq + Hash> Wanted<T> {
    pub(super) fn new(queue: Queue<T>) -> Self {
        Self { queue, running: HashSet::new(), again: HashSet::new(), later: DelayQueue::new(), due: HashMap::new() }
    }

    /// A pass that is due later is not needed: this one will say when there shall be another.
    pub(super) fn now(&mut self, key: T) {
        if let Some(due) = self.due.remove(&key) {
            self.later.try_remove(&due);
        }
        if self.running.contains(&key) {
            self.again.insert(key);
        } else {
            self.queue.push(key);
        }
    }

    pub(super) fn begin(&mut self) -> Option<T> {
        let key = self.queue.take()?;
        self.running.insert(key.clone());
        Some(key)
    }

    pub(super) fn ended(&mut self, key: &T, action: Action) {
        self.running.remove(key);
        self.queue.ended(key);
        if self.again.remove(key) {
            self.queue.push(key.clone());
        } else if let Some(pause) = action.again_after {
            self.due.insert(key.clone(), self.later.insert(key.clone(), pause.min(PAUSE_MAX)));
        }
    }
}

/// Tells how much waits and for how long; nothing once it is dropped.
pub(super) struct Waiting {
    count: prometheus::IntGauge,
    oldest_seconds: prometheus::Gauge,
}

impl Waiting {
    pub(super) fn new(name: &'static str, metrics: &Metrics) -> Self {
        Self {
            count: metrics.passes_waiting.with_label_values(&[name]),
            oldest_seconds: metrics.passes_oldest_seconds.with_label_values(&[name]),
        }
    }

    pub(super) fn tell<T: Clone + Eq + Hash>(&self, queue: &Queue<T>) {
        self.count.set(i64::try_from(queue.len()).unwrap_or(i64::MAX));
        self.oldest_seconds.set(queue.oldest().map_or(0.0, |since| since.elapsed().as_secs_f64()));
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.count.set(0);
        self.oldest_seconds.set(0.0);
    }
}
