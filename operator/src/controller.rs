//! Runs passes over the objects of one kind: so many at a time, none for too long, and after an error later and later.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use kube::Resource;
use kube::runtime::controller::{self, Action};
use kube::runtime::reflector::{ObjectRef, Store};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

const RETRY_FIRST: Duration = Duration::from_millis(500);
/// When an object whose pass failed is looked at again, if nothing happens to it before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Soon at first, then later and later.
    Backoff,
    /// The same, but up to this long: each try costs others something, and what would mend it wakes us.
    BackoffTo(Duration),
    /// After this long: nothing will tell us.
    After(Duration),
}

/// Why a pass failed, in the words that metrics and conditions use.
pub trait PassError: std::error::Error + Send + Sync + 'static {
    /// A fixed word.
    fn reason(&self) -> &'static str;
    /// What to do next.
    fn retry(&self) -> Retry;
}

/// How passes are run.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Passes at a time; what is more waits. Each keeps a connection to the API server busy.
    pub concurrency: u16,
    /// A pass that takes longer is given up and tried again.
    pub deadline: Duration,
    /// The longest pause between two tries of an object whose passes fail.
    pub retry_max: Duration,
}

/// Looks at every object that `wanted` names, with `pass`, until `stopping`; passes that have begun then end.
pub async fn run<K, E, Fut>(
    store: Store<K>,
    wanted: impl Stream<Item = ObjectRef<K>> + Send,
    pass: impl Fn(Arc<K>) -> Fut + Send + Sync + 'static,
    limits: Limits,
    metrics: Metrics,
    stopping: CancellationToken,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
    E: PassError,
    Fut: Future<Output = Result<Action, E>> + Send + 'static,
{
    let runner = Arc::new(Runner { backoff: Backoff::new(limits.retry_max), metrics, deadline: limits.deadline });
    let pass = Arc::new(pass);
    let passes = controller::applier(
        move |object: Arc<K>, runner: Arc<Runner<K>>| {
            let pass = Arc::clone(&pass);
            Box::pin(async move { Ok::<_, Infallible>(runner.run(object, &*pass).await) })
        },
        |_, never, _| match *never {},
        runner,
        store,
        wanted.map(Ok::<_, Infallible>).take_until(stopping.cancelled_owned()),
        controller::Config::default().concurrency(limits.concurrency),
    );
    // An error here is an object that has gone since it was named.
    passes.for_each(|_| std::future::ready(())).await;
}

struct Runner<K: Resource> {
    backoff: Backoff<ObjectRef<K>>,
    metrics: Metrics,
    deadline: Duration,
}

impl<K> Runner<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
{
    async fn run<E, Fut>(&self, object: Arc<K>, pass: &impl Fn(Arc<K>) -> Fut) -> Action
    where
        E: PassError,
        Fut: Future<Output = Result<Action, E>> + Send,
    {
        let kind = K::kind(&());
        let reference = ObjectRef::from_obj(&*object);
        let begun = Instant::now();
        let outcome = tokio::time::timeout(self.deadline, pass(object)).await;
        self.metrics.reconcile_seconds.with_label_values(&[&*kind]).observe(begun.elapsed().as_secs_f64());
        let count = |outcome| self.metrics.reconciles.with_label_values(&[&*kind, outcome]).inc();
        match outcome {
            Ok(Ok(action)) => {
                count("ok");
                self.backoff.succeeded(&reference);
                action
            }
            Ok(Err(error)) => {
                count(error.reason());
                let chain = chain(&error);
                let (reason, retry) = (error.reason(), error.retry());
                // What trying again soon won't mend stands in the object's conditions, for the one who can.
                if retry == Retry::Backoff {
                    tracing::warn!(%kind, object = %reference, reason, error = chain, "pass failed");
                } else {
                    tracing::debug!(%kind, object = %reference, reason, error = chain, "pass can't go on");
                }
                match retry {
                    Retry::Backoff => Action::requeue(self.backoff.failed(reference)),
                    Retry::BackoffTo(longest) => Action::requeue(self.backoff.failed_to(longest, reference)),
                    Retry::After(pause) => Action::requeue(pause),
                }
            }
            Err(_) => {
                count("DeadlineExceeded");
                tracing::warn!(%kind, object = %reference, deadline_ms = self.deadline.as_millis(), "pass took too long");
                Action::requeue(self.backoff.failed(reference))
            }
        }
    }
}

/// An error with what led to it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

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
    fn failed_to(&self, longest: Duration, key: K) -> Duration {
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
