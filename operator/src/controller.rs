//! Runs passes over the objects of one queue: so many at a time, none for too long, first come, first served, and after an error later and
//! later. What one tenant has to be looked at keeps no other's waiting; see [`queue`].

mod backoff;
mod queue;
mod wanted;

use std::fmt::{Debug, Display};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use croft_serve::Tasks;
use croft_serve::log::chain;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

pub(crate) use backoff::{Backoff, chance};
pub(crate) use queue::Queue;
use wanted::{Waiting, Wanted};

use crate::marks::Marks;
use crate::metrics::Metrics;

/// How often the age of what waits is told.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// The passes of one tenant have one of so many parts of all at a time, at most.
const SHARES: u16 = 4;

/// When an object is looked at again after a pass that went well, if nothing happens to it before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Action {
    again_after: Option<Duration>,
}

impl Action {
    /// After this long.
    pub const fn requeue(again_after: Duration) -> Self {
        Self { again_after: Some(again_after) }
    }

    /// When something happens to it.
    pub const fn await_change() -> Self {
        Self { again_after: None }
    }
}

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
    /// Passes at a time, a quarter of them of one tenant; what is more waits. Each keeps a connection to the API server busy.
    pub concurrency: u16,
    /// A pass that takes longer is given up and tried again.
    pub deadline: Duration,
    /// The longest pause between two tries of an object whose passes fail.
    pub retry_max: Duration,
}

/// Finds the object that a key means.
pub type Find<T, K> = Box<dyn Fn(&T) -> Option<Arc<K>> + Send + Sync>;

/// The objects of which passes are made, by keys that say which one is meant.
pub struct Source<T, K> {
    /// A fixed word, which labels metrics.
    pub name: &'static str,
    /// Those that are to be looked at.
    pub marks: Marks<T>,
    /// The object, if it is there and needs a pass.
    pub find: Find<T, K>,
    /// The tenant it belongs to, by its name or its namespace's.
    pub tenant: fn(&T) -> &str,
}

/// Looks at every object that `source` marks, with `pass`, until `stopping`; passes that have begun then end. Each is a task of its own, and
/// broken off when this future is dropped. One that panics has failed.
pub async fn run<T, K, E, Fut>(
    source: Source<T, K>,
    pass: impl Fn(Arc<K>) -> Fut + Send + Sync + 'static,
    limits: Limits,
    metrics: Metrics,
    tasks: Tasks,
    stopping: CancellationToken,
) where
    T: Clone + Eq + Hash + Debug + Display + Send + Sync + 'static,
    K: kube::Resource<DynamicType = ()> + Send + Sync + 'static,
    E: PassError,
    Fut: Future<Output = Result<Action, E>> + Send + 'static,
{
    let Source { name, marks, find, tenant } = source;
    let kind = K::kind(&()).into_owned();
    let runner = Arc::new(Runner {
        kind,
        backoff: Backoff::new(limits.retry_max),
        metrics: metrics.clone(),
        deadline: limits.deadline,
    });
    let mut wanted = Wanted::new(Queue::new(limits.concurrency.div_ceil(SHARES).into(), tenant));
    let mut passes = FuturesUnordered::new();
    let waiting = Waiting::new(name, &metrics);
    let mut tells = tokio::time::interval(TELL_EVERY);
    tells.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        while passes.len() < limits.concurrency.into()
            && let Some(key) = wanted.begin()
        {
            let Some(object) = find(&key) else {
                wanted.ended(&key, Action::await_change());
                continue;
            };
            let (runner, pass) = (Arc::clone(&runner), pass(object));
            let running = {
                let (runner, key) = (Arc::clone(&runner), key.clone());
                tasks.spawn("pass", async move { runner.run(key, pass).await })
            };
            let running = AbortOnDropHandle::new(running);
            passes.push(async move {
                let action = running.await.unwrap_or_else(|_| runner.panicked(&key));
                (key, action)
            });
        }
        // Marks come one by one, and very many at a start.
        tokio::task::coop::consume_budget().await;
        tokio::select! {
            () = stopping.cancelled() => break,
            key = marks.next() => wanted.now(key),
            Some(due) = wanted.later.next(), if !wanted.later.is_empty() => wanted.now(due.into_inner()),
            Some((key, action)) = passes.next(), if !passes.is_empty() => wanted.ended(&key, action),
            _ = tells.tick() => waiting.tell(&wanted.queue),
        }
    }
    while passes.next().await.is_some() {}
}

struct Runner<T> {
    kind: String,
    backoff: Backoff<T>,
    metrics: Metrics,
    deadline: Duration,
}

impl<T: Clone + Eq + Hash + Display> Runner<T> {
    async fn run<E: PassError>(&self, object: T, pass: impl Future<Output = Result<Action, E>>) -> Action {
        let kind = &*self.kind;
        let begun = Instant::now();
        let outcome = tokio::time::timeout(self.deadline, pass).await;
        self.metrics.reconcile_seconds.with_label_values(&[kind]).observe(begun.elapsed().as_secs_f64());
        match outcome {
            Ok(Ok(action)) => {
                self.count("ok");
                self.backoff.succeeded(&object);
                action
            }
            Ok(Err(error)) => {
                self.count(error.reason());
                let chain = chain(&error);
                let (reason, retry) = (error.reason(), error.retry());
                // What trying again soon won't mend stands in the object's conditions, for the one who can.
                if retry == Retry::Backoff {
                    tracing::warn!(kind, %object, reason, error = chain, "pass failed");
                } else {
                    tracing::debug!(kind, %object, reason, error = chain, "pass can't go on");
                }
                match retry {
                    Retry::Backoff => Action::requeue(self.backoff.failed(object)),
                    Retry::BackoffTo(longest) => Action::requeue(self.backoff.failed_to(longest, object)),
                    Retry::After(pause) => Action::requeue(pause),
                }
            }
            Err(_) => {
                self.count("DeadlineExceeded");
                tracing::warn!(kind, %object, deadline_ms = self.deadline.as_millis(), "pass took too long");
                Action::requeue(self.backoff.failed(object))
            }
        }
    }

    fn panicked(&self, object: &T) -> Action {
        self.count("Panicked");
        tracing::error!(kind = self.kind, %object, "pass panicked");
        Action::requeue(self.backoff.failed(object.clone()))
    }

    fn count(&self, outcome: &str) {
        self.metrics.reconciles.with_label_values(&[&self.kind, outcome]).inc();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, Mutex};

    use croft_crds::AgentSession;
    use kube::runtime::reflector::ObjectRef;
    use tokio::sync::mpsc;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("it fails")]
    struct Fails;

    impl PassError for Fails {
        fn reason(&self) -> &'static str {
            "Fails"
        }

        fn retry(&self) -> Retry {
            Retry::Backoff
        }
    }

    const LIMITS: Limits =
        Limits { concurrency: 2, deadline: Duration::from_secs(30), retry_max: Duration::from_secs(20) };

    /// Runs `pass` over whatever is marked, by `namespace/name`.
    struct Running {
        marks: Marks<ObjectRef<AgentSession>>,
        metrics: Metrics,
        stopping: CancellationToken,
        run: AbortOnDropHandle<()>,
    }

    impl Running {
        fn start<Fut>(limits: Limits, pass: impl Fn(Arc<AgentSession>) -> Fut + Send + Sync + 'static) -> Self
        where
            Fut: Future<Output = Result<Action, Fails>> + Send + 'static,
        {
            let (marks, stopping) = (Marks::new(), CancellationToken::new());
            let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
            let source = Source {
                name: "sessions",
                marks: marks.clone(),
                find: Box::new(|key: &ObjectRef<AgentSession>| {
                    let mut object = AgentSession::new(&key.name, serde_json::from_str(SPEC).unwrap());
                    object.metadata.namespace.clone_from(&key.namespace);
                    Some(Arc::new(object))
                }),
                tenant: |key| key.namespace.as_deref().unwrap_or_default(),
            };
            let tasks = Tasks::new();
            let run = run(source, pass, limits, metrics.clone(), tasks.clone(), stopping.clone());
            let run = AbortOnDropHandle::new(tasks.spawn("controller", run));
            Self { marks, metrics, stopping, run }
        }

        fn mark(&self, namespace: &str, name: &str) {
            self.marks.mark(ObjectRef::new(name).within(namespace));
        }
    }

    const SPEC: &str = r#"{ "agent": { "model": "scripted-1" } }"#;

    fn name(object: &AgentSession) -> String {
        object.metadata.name.clone().unwrap()
    }

    /// Once, passes began in the order of a hash, and some objects were never looked at.
    #[tokio::test(start_paused = true)]
    async fn under_more_failing_passes_than_there_are_slots_everyone_has_a_turn() {
        const FAILING: u32 = 60;
        const TAKES: Duration = Duration::from_secs(10);
        let (seen, mut passes) = mpsc::unbounded_channel();
        let running = Running::start(LIMITS, move |object| {
            let seen = seen.clone();
            async move {
                let is_healthy = name(&object) == "healthy";
                seen.send((name(&object), Instant::now())).unwrap();
                if is_healthy {
                    return Ok(Action::await_change());
                }
                tokio::time::sleep(TAKES).await;
                Err(Fails)
            }
        });
        for failing in 0..FAILING {
            running.mark(&format!("tenant-{failing}"), "failing");
        }
        for _ in 0..3 * FAILING {
            passes.recv().await.unwrap();
        }
        let marked = Instant::now();
        running.mark("tenant-heron", "healthy");
        let begun = loop {
            let (object, begun) = passes.recv().await.unwrap();
            if object == "healthy" {
                break begun;
            }
            assert!(marked.elapsed() < 10 * FAILING * TAKES, "the healthy one is never looked at");
        };
        assert!(begun - marked <= (FAILING / 2 + 1) * TAKES, "{:?}", begun - marked);
        assert!(running.metrics.passes_waiting.with_label_values(&["sessions"]).get() > 40);
        let oldest = running.metrics.passes_oldest_seconds.with_label_values(&["sessions"]).get();
        assert!(oldest > 100.0, "{oldest}");
    }

    /// Once, all passes ran in one task, on one core.
    #[tokio::test(flavor = "multi_thread", worker_threads = 3)]
    async fn passes_run_beside_each_other() {
        let limits = Limits { concurrency: 8, ..LIMITS };
        let (done, mut met) = mpsc::unbounded_channel();
        let there = Arc::new((Mutex::new(0), Condvar::new()));
        let running = Running::start(limits, move |_| {
            let (there, done) = (Arc::clone(&there), done.clone());
            async move {
                let (count, changed) = &*there;
                let mut count = count.lock().unwrap();
                *count += 1;
                changed.notify_all();
                // Blocks the thread: only another one can bring the second pass.
                let (count, _) = changed.wait_timeout_while(count, LIMITS.deadline, |count| *count < 2).unwrap();
                done.send(*count).unwrap();
                Ok(Action::await_change())
            }
        });
        running.mark("tenant-heron", "first");
        running.mark("tenant-egret", "second");
        assert_eq!([met.recv().await, met.recv().await], [Some(2), Some(2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_tenants_many_objects_keep_no_other_tenants_waiting() {
        let (seen, mut passes) = mpsc::unbounded_channel();
        let running = Running::start(Limits { concurrency: 8, ..LIMITS }, move |object| {
            seen.send((name(&object), Instant::now())).unwrap();
            async {
                tokio::time::sleep(Duration::from_secs(10)).await;
                Ok(Action::await_change())
            }
        });
        for one in 0..300 {
            running.mark("tenant-heron", &format!("talk-{one}"));
        }
        for _ in 0..2 {
            passes.recv().await.unwrap();
        }
        let marked = Instant::now();
        running.mark("tenant-egret", "talk");
        let (object, begun) = passes.recv().await.unwrap();
        assert_eq!((object.as_str(), begun), ("talk", marked));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_marked_while_its_pass_runs_is_looked_at_once_more() {
        let (seen, mut passes) = mpsc::unbounded_channel();
        let running = Running::start(LIMITS, move |_| {
            seen.send(Instant::now()).unwrap();
            async {
                tokio::time::sleep(Duration::from_secs(3)).await;
                Ok(Action::requeue(Duration::from_mins(5)))
            }
        });
        running.mark("tenant-heron", "talk");
        let first = passes.recv().await.unwrap();
        for _ in 0..3 {
            running.mark("tenant-heron", "talk");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!((passes.recv().await.unwrap() - first).as_secs(), 3);
        let third = passes.recv().await.unwrap() - first;
        assert_eq!(third.as_secs(), 3 + 3 + 300, "its own word holds when nothing happens to it");
        // A mark takes the place of what was due later.
        tokio::time::sleep(Duration::from_mins(1)).await;
        running.mark("tenant-heron", "talk");
        let fourth = passes.recv().await.unwrap();
        assert_eq!((passes.recv().await.unwrap() - fourth).as_secs(), 3 + 300);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_panics_has_failed_and_is_tried_again() {
        let (seen, mut passes) = mpsc::unbounded_channel();
        let running = Running::start(LIMITS, move |_| {
            seen.send(()).unwrap();
            async { panic!("on purpose") }
        });
        running.mark("tenant-heron", "talk");
        for _ in 0..3 {
            passes.recv().await.unwrap();
        }
        let panicked = running.metrics.reconciles.with_label_values(&["AgentSession", "Panicked"]).get();
        assert!(panicked >= 2, "{panicked}");
    }

    #[tokio::test(start_paused = true)]
    async fn passes_that_have_begun_end_at_a_stop_and_are_broken_off_with_the_controller() {
        for is_dropped in [false, true] {
            let (ended, mut passes) = mpsc::unbounded_channel();
            let (begun, mut begins) = mpsc::unbounded_channel();
            let running = Running::start(LIMITS, move |_| {
                let ended = ended.clone();
                begun.send(()).unwrap();
                async move {
                    tokio::time::sleep(Duration::from_secs(3)).await;
                    ended.send(()).unwrap();
                    Ok(Action::await_change())
                }
            });
            for one in ["heron", "egret", "stork"] {
                running.mark(one, "talk");
            }
            for _ in 0..2 {
                begins.recv().await.unwrap();
            }
            if is_dropped {
                drop(running);
                assert_eq!(passes.recv().await, None);
            } else {
                running.stopping.cancel();
                running.run.await.unwrap();
                assert_eq!(passes.len(), 2, "and the third has not begun");
            }
        }
    }
}
