//! The owner of every spawned task: it tells them when to stop taking in work, waits for them at shutdown, and logs and
//! counts the ones that panic.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::{IntCounterVec, IntGaugeVec, Opts};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Metrics;

/// What the last tasks have for themselves once all others are done, or were given up.
const LAST_GRACE: Duration = Duration::from_secs(2);

/// The tasks of one program, or of one part of it. Clones share them.
#[derive(Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stopping: CancellationToken,
    /// Those that clear up behind the others, and when they may.
    last: TaskTracker,
    ending: CancellationToken,
    failed: CancellationToken,
    ledger: Arc<Ledger>,
}

impl Tasks {
    /// An owner of no tasks yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `future` as a task of its own, which [`Tasks::shutdown`] waits for. A task that never ends by itself must
    /// watch [`Tasks::stopping`].
    ///
    /// `name` labels logs and metrics, so it is a fixed word. The task starts outside the caller's span, as it may
    /// outlive it by hours: `.instrument(…)` the future to keep it in a trace.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.spawn_into(&self.tracker, name, None, future)
    }

    /// Like [`Tasks::spawn`], for a task that runs until shutdown and that nobody starts anew: when it panics, [`Tasks::failed`]
    /// resolves and the program shuts down. It may end in order before, with the part that it belongs to.
    pub fn spawn_endless<F>(&self, name: &'static str, future: F)
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        drop(self.spawn_into(&self.tracker, name, Some(self.failed.clone()), future));
    }

    /// Like [`Tasks::spawn_endless`], for a task that others need until they end: it watches [`Tasks::ending`] rather than
    /// [`Tasks::stopping`].
    pub fn spawn_last<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        drop(self.spawn_into(&self.last, name, Some(self.failed.clone()), future));
    }

    /// A panic cancels `alarm`.
    fn spawn_into<F>(
        &self,
        tracker: &TaskTracker,
        name: &'static str,
        alarm: Option<CancellationToken>,
        future: F,
    ) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let entry = Entry::new(name, Arc::clone(&self.ledger), alarm);
        // A block has room for what it captures and once more for what it awaits.
        let future = Box::pin(future);
        let owned = tracker.track_future(async move {
            let _entry = entry;
            future.await
        });
        #[expect(clippy::disallowed_methods, reason = "the tracker waits for it")]
        tokio::spawn(owned)
    }

    /// Like [`Tasks::spawn`], for a task that the program can't be without: when it fails, panics, or ends before
    /// [`Tasks::stopping`], [`Tasks::failed`] resolves and the program shuts down.
    pub fn spawn_vital<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let alarm = Alarm { name, failed: self.failed.clone(), stopping: self.stopping.clone() };
        drop(self.spawn(name, async move {
            let _alarm = alarm;
            if let Err(error) = future.await {
                tracing::error!(task = name, error = format!("{error:#}"), "task failed");
            }
        }));
    }

    /// Cancelled when intake must stop: no new connection, session or turn; what has begun may end.
    pub fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }

    /// Cancelled at a shutdown when all but the last tasks have ended or were given up: what is left is to clear up behind them.
    pub fn ending(&self) -> CancellationToken {
        self.ending.clone()
    }

    /// Resolves when a vital task has ended too early, or an endless or last one has panicked.
    pub async fn failed(&self) {
        self.failed.cancelled().await;
    }

    /// Stops intake and waits for all tasks, `grace` at most, and then for the last ones, two seconds at most. Returns how many are left
    /// running then, after a log line that names them.
    pub async fn shutdown(&self, grace: Duration) -> usize {
        self.stopping.cancel();
        self.tracker.close();
        let drained = tokio::time::timeout(grace, self.tracker.wait()).await.is_ok();
        self.ending.cancel();
        self.last.close();
        let cleared = tokio::time::timeout(LAST_GRACE, self.last.wait()).await.is_ok();
        if drained && cleared {
            return 0;
        }
        let left = self.ledger.running().clone();
        let count = left.values().sum();
        tracing::warn!(tasks = ?left, count, "tasks left at the end of the shutdown grace");
        count
    }

    /// Shows `croft_tasks_running` and `croft_task_panics_total` among `metrics`.
    pub fn register(&self, metrics: &Metrics) -> prometheus::Result<()> {
        metrics.registry().register(Box::new(self.ledger.gauge.clone()))?;
        metrics.registry().register(Box::new(self.ledger.panics.clone()))
    }
}

/// Which tasks run, by name.
struct Ledger {
    running: Mutex<BTreeMap<&'static str, usize>>,
    gauge: IntGaugeVec,
    panics: IntCounterVec,
}

impl Ledger {
    fn running(&self) -> MutexGuard<'_, BTreeMap<&'static str, usize>> {
        // No code that holds the lock can leave the map half changed.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Ledger {
    fn default() -> Self {
        let gauge = Opts::new("croft_tasks_running", "Tasks that are running, by name.");
        let panics = Opts::new("croft_task_panics_total", "Tasks that ended in a panic, by name.");
        Self {
            running: Mutex::default(),
            gauge: IntGaugeVec::new(gauge, &["task"]).expect("a fixed name and label are valid"),
            panics: IntCounterVec::new(panics, &["task"]).expect("a fixed name and label are valid"),
        }
    }
}

/// A task's line in the ledger, struck out however the task ends: done, aborted or panicked.
struct Entry {
    name: &'static str,
    ledger: Arc<Ledger>,
    alarm: Option<CancellationToken>,
}

impl Entry {
    fn new(name: &'static str, ledger: Arc<Ledger>, alarm: Option<CancellationToken>) -> Self {
        *ledger.running().entry(name).or_default() += 1;
        ledger.gauge.with_label_values(&[name]).inc();
        Self { name, ledger, alarm }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut running = self.ledger.running();
        if let Some(count) = running.get_mut(self.name) {
            *count -= 1;
            if *count == 0 {
                running.remove(self.name);
            }
        }
        drop(running);
        self.ledger.gauge.with_label_values(&[self.name]).dec();
        // Only a panic of this very task unwinds through its own future.
        if std::thread::panicking() {
            self.ledger.panics.with_label_values(&[self.name]).inc();
            tracing::error!(task = self.name, "task panicked");
            if let Some(alarm) = &self.alarm {
                alarm.cancel();
            }
        }
    }
}

/// Raises [`Tasks::failed`] when a vital task is gone before its time, also by a panic.
struct Alarm {
    name: &'static str,
    failed: CancellationToken,
    stopping: CancellationToken,
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if !self.stopping.is_cancelled() {
            tracing::error!(task = self.name, "a task that the program can't be without has ended");
            self.failed.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_mins(1);

    /// Also behind one that never ends.
    #[tokio::test(start_paused = true)]
    async fn the_last_tasks_end_behind_all_others() {
        for endless in [false, true] {
            let tasks = Tasks::new();
            let (stopping, ending) = (tasks.stopping(), tasks.ending());
            let order = Arc::new(Mutex::new(Vec::new()));
            let (first, second) = (Arc::clone(&order), Arc::clone(&order));
            drop(tasks.spawn("work", async move {
                stopping.cancelled().await;
                tokio::time::sleep(LONG).await;
                first.lock().unwrap().push("work");
                if endless {
                    std::future::pending::<()>().await;
                }
            }));
            tasks.spawn_last("clearing", async move {
                ending.cancelled().await;
                second.lock().unwrap().push("clearing");
            });
            assert_eq!(tasks.shutdown(2 * LONG).await, usize::from(endless));
            assert_eq!(*order.lock().unwrap(), ["work", "clearing"]);
        }
    }

    #[tokio::test]
    async fn a_task_that_ends_when_intake_stops_is_waited_for() {
        let tasks = Tasks::new();
        let stopping = tasks.stopping();
        let work = tasks.spawn("work", async move {
            stopping.cancelled().await;
            "done"
        });
        assert_eq!(tasks.shutdown(LONG).await, 0);
        assert_eq!(work.await.unwrap(), "done");
    }

    #[tokio::test]
    async fn tasks_left_at_the_end_of_the_grace_are_counted() {
        let tasks = Tasks::new();
        for name in ["stuck", "stuck", "stuck too"] {
            drop(tasks.spawn(name, std::future::pending::<()>()));
        }
        drop(tasks.spawn("quick", async {}));
        assert_eq!(tasks.shutdown(Duration::from_millis(20)).await, 3);
    }

    #[tokio::test]
    async fn a_panicking_task_is_counted_and_the_others_go_on() {
        let (tasks, metrics) = (Tasks::new(), Metrics::new("test").unwrap());
        tasks.register(&metrics).unwrap();
        let quick = tasks.spawn("quick", async { 7 });
        let clumsy = tasks.spawn("clumsy", async { panic!("on purpose") });
        assert!(clumsy.await.unwrap_err().is_panic());
        assert_eq!(quick.await.unwrap(), 7);
        assert_eq!(tasks.shutdown(LONG).await, 0);
        let text = metrics.text().unwrap();
        assert!(text.contains("croft_task_panics_total{task=\"clumsy\"} 1"), "{text}");
        assert!(text.contains("croft_tasks_running{task=\"clumsy\"} 0"), "{text}");
        assert!(!text.contains("croft_task_panics_total{task=\"quick\"}"), "{text}");
    }

    /// One that aborts would take all other turns and streams along, and count nothing.
    #[test]
    fn a_panic_unwinds_in_what_is_released_too() {
        let workspace = include_str!("../../../Cargo.toml");
        let (_, release) = workspace.split_once("[profile.release]\n").unwrap();
        let release = release.split("\n[").next().unwrap();
        let settings: Vec<_> = release.lines().filter(|line| line.starts_with("panic")).collect();
        assert_eq!(settings, ["panic = \"unwind\""]);
    }

    #[tokio::test]
    async fn an_aborted_task_is_no_panic_and_not_left() {
        let tasks = Tasks::new();
        tasks.spawn("aborted", std::future::pending::<()>()).abort();
        assert_eq!(tasks.shutdown(LONG).await, 0);
        assert_eq!(tasks.ledger.panics.with_label_values(&["aborted"]).get(), 0);
    }

    #[tokio::test]
    async fn a_vital_task_raises_the_alarm_however_it_ends() {
        let fails = Tasks::new();
        fails.spawn_vital("server", async { anyhow::bail!("on purpose") });
        fails.failed().await;
        let ends = Tasks::new();
        ends.spawn_vital("server", async { Ok(()) });
        ends.failed().await;
        let panics = Tasks::new();
        panics.spawn_vital("server", async { panic!("on purpose") });
        panics.failed().await;
    }

    #[tokio::test]
    async fn the_panic_of_a_task_that_nobody_starts_anew_raises_the_alarm() {
        let endless = Tasks::new();
        endless.spawn_endless("watch", async { panic!("on purpose") });
        tokio::time::timeout(LONG, endless.failed()).await.unwrap();
        let last = Tasks::new();
        last.spawn_last("heartbeat", async { panic!("on purpose") });
        tokio::time::timeout(LONG, last.failed()).await.unwrap();
    }

    /// One ends with its part, one is dropped with all others, and the panic of a turn is that turn's alone.
    #[tokio::test]
    async fn an_endless_task_that_ends_in_order_raises_no_alarm() {
        let tasks = Tasks::new();
        tasks.spawn_endless("of a part that is gone", async {});
        tasks.spawn_last("of a part that is gone", async {});
        drop(tasks.spawn("turn", async { panic!("on purpose") }));
        let stopping = tasks.stopping();
        tasks.spawn_endless("watch", async move { stopping.cancelled().await });
        assert_eq!(tasks.shutdown(LONG).await, 0);
        assert!(!tasks.failed.is_cancelled());
    }

    #[tokio::test]
    async fn a_vital_task_may_end_once_intake_has_stopped() {
        let tasks = Tasks::new();
        let stopping = tasks.stopping();
        tasks.spawn_vital("server", async move {
            stopping.cancelled().await;
            Ok(())
        });
        assert_eq!(tasks.shutdown(LONG).await, 0);
        assert!(!tasks.failed.is_cancelled());
    }
}
