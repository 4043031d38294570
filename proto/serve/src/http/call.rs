//! A call that is being answered, in the hands of whoever answers it: to be broken off, since its caller may never take what is there for him.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hyper::rt::Executor;
use hyper_util::rt::TokioExecutor;
use tokio::task_local;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

task_local! {
    static CURRENT: Call;
}

/// A call of this port's. Clones are the same call, which keeps its connection in use until the last is dropped.
#[derive(Debug, Clone)]
pub struct Call {
    line: Arc<Line>,
    /// `None` over HTTP/1, where a connection has one call at a time.
    stream: Option<Arc<Stream>>,
}

impl Call {
    /// The one that is being answered here. `None` where none came by a port of [`serve`](super::serve).
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Self::clone).ok()
    }

    /// Breaks it off, whatever its caller does: HTTP/2 resets its stream with `CANCEL`, HTTP/1 hangs up. Too late for the last piece
    /// of an answer, which may be on its way, and wait there for the caller: see [`Self::hang_up`].
    pub fn reset(&self) {
        match &self.stream {
            Some(stream) => stream.reset.cancel(),
            None => self.hang_up(),
        }
    }

    /// Waits until what is there for the caller of an upgraded call, whose stream is dropped, is on its way; and [resets](Self::reset) it where that
    /// takes longer. Over HTTP/1 an upgraded stream is the connection, and is gone when it is dropped.
    pub async fn end_within(&self, within: Duration) {
        let Some(stream) = &self.stream else { return };
        stream.tasks.close();
        if timeout(within, stream.tasks.wait()).await.is_err() {
            self.reset();
        }
    }

    /// Hangs up on the caller: all calls of the connection break off, and whatever waits for him is gone.
    pub fn hang_up(&self) {
        self.line.hung_up.cancel();
    }
}

/// A connection, and the calls on it.
#[derive(Debug, Default)]
pub(super) struct Line {
    pub(super) hung_up: CancellationToken,
    is_http1: AtomicBool,
    /// Calls over HTTP/2: those that are under way, and those that ever were.
    now: AtomicUsize,
    ever: AtomicUsize,
}

impl Line {
    /// Its calls of HTTP/1 are of this one, while `attended` is polled.
    pub(super) fn scope<F: Future>(self: &Arc<Self>, attended: F) -> impl Future<Output = F::Output> + use<F> {
        CURRENT.scope(Call { line: Arc::clone(self), stream: None }, attended)
    }

    pub(super) fn speaks_http1(&self) {
        self.is_http1.store(true, Ordering::Relaxed);
    }

    /// Calls that ever were; `None` while one is under way. Nobody knows of HTTP/1, whose connections hyper sees to by itself.
    pub(super) fn idle(&self) -> Option<usize> {
        let is_idle = !self.is_http1.load(Ordering::Relaxed) && self.now.load(Ordering::Relaxed) == 0;
        is_idle.then(|| self.ever.load(Ordering::Relaxed))
    }
}

/// A call over HTTP/2, counted until it is dropped.
#[derive(Debug)]
struct Stream {
    line: Arc<Line>,
    reset: CancellationToken,
    /// Makes and sends the answer; then, if the call is upgraded, another sends what is written to it.
    tasks: TaskTracker,
}

impl Stream {
    fn of(line: &Arc<Line>) -> Arc<Self> {
        line.now.fetch_add(1, Ordering::Relaxed);
        line.ever.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self { line: Arc::clone(line), reset: CancellationToken::new(), tasks: TaskTracker::new() })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.line.now.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Runs each call of an HTTP/2 connection as a [`Call`].
#[derive(Clone)]
pub(super) struct Streams(pub(super) Arc<Line>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, task: F) {
        // What is executed within a call is its upgrade, which goes on where the call's own task ends.
        let stream = Call::current().and_then(|call| call.stream).unwrap_or_else(|| Stream::of(&self.0));
        let (reset, tracked) = (stream.reset.clone(), stream.tasks.track_future(task));
        let call = Call { line: Arc::clone(&self.0), stream: Some(stream) };
        TokioExecutor::new().execute(CURRENT.scope(call, async move {
            tokio::select! {
                // First, since one that is dropped as it is resets its stream, and one that learns that nothing more comes ends it in order, behind
                // what its caller does not take.
                biased;
                () = reset.cancelled() => {}
                () = tracked => {}
            }
        }));
    }
}
