//! How long a pause an object gets whose passes fail: longer each time.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

const RETRY_FIRST: Duration = Duration::from_millis(500);

/// How often each object has failed in a row. One that is gone and never looked at again is forgotten when it would
/// have been due long since.
pub(crate) struct Backoff<K> {
    longest: Duration,
    /// With when the next try is due.
    failures: Mutex<HashMap<K, (u32, Instant)>>,
}

impl<K: Eq + Hash> Backoff<K> {
    pub(crate) fn new(longest: Duration) -> Self {
        Self { longest, failures: Mutex::default() }
    }

    /// How long to wait now.
    pub(crate) fn failed(&self, key: K) -> Duration {
        self.failed_to(self.longest, key)
    }

    /// How long to wait now, when for this failure another pause is the longest.
    pub(super) fn failed_to(&self, longest: Duration, key: K) -> Duration {
        let now = Instant::now();
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() == failures.capacity() {
            failures.retain(|_, (_, due)| now.saturating_duration_since(*due) < self.longest);
        }
        let (count, due) = failures.entry(key).or_insert((0, now));
        // Half of it is chance, so that what failed together is not tried together.
        let pause = pause(*count).min(longest).mul_f64(0.5 + chance() / 2.0);
        *count = count.saturating_add(1);
        *due = now + pause;
        pause
    }

    pub(crate) fn succeeded(&self, key: &K) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

/// From 0 to 1.
#[expect(clippy::cast_precision_loss, reason = "chance needs no precision")]
pub(crate) fn chance() -> f64 {
    uuid::Uuid::new_v4().as_u64_pair().0 as f64 / u64::MAX as f64
}

fn pause(failures: u32) -> Duration {
    RETRY_FIRST.saturating_mul(2_u32.saturating_pow(failures))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_to_a_bound_and_begin_anew_after_success() {
        const LONGEST: Duration = Duration::from_mins(5);
        let backoff = Backoff::new(LONGEST);
        for failures in 0..40 {
            let pause = backoff.failed("heron");
            let expected = super::pause(failures).min(LONGEST);
            assert!(pause >= expected / 2 && pause <= expected);
        }
        backoff.succeeded(&"heron");
        assert!(backoff.failed("heron") <= RETRY_FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_that_may_wait_longer_than_others_is_not_forgotten_meanwhile() {
        let (usual, longest) = (Duration::from_secs(20), Duration::from_mins(10));
        let backoff = Backoff::new(usual);
        for round in 0..12 {
            tokio::time::advance(backoff.failed_to(longest, "heron".to_owned())).await;
            for other in 0..100 {
                backoff.failed(format!("egret-{round}-{other}"));
            }
        }
        assert!(backoff.failed_to(longest, "heron".to_owned()) >= longest / 2);
        assert!(backoff.failed("heron".to_owned()) <= usual, "what fails in another way is tried as others are");
    }

    #[tokio::test(start_paused = true)]
    async fn one_objects_failures_are_not_anothers() {
        let backoff = Backoff::new(Duration::from_mins(5));
        for _ in 0..9 {
            backoff.failed("heron");
        }
        assert!(backoff.failed("egret") <= RETRY_FIRST);
    }
}
