//! Answers that their callers have not taken yet: how much of them is held, and for how long.
//!
//! HTTP/2 asks for the next part of an answer as soon as the caller has room for a byte of the one before, and keeps it whole until there is
//! room for all of it, which may be never: its peer's kernel acknowledges everything, and its own window is what stays shut
//! (<https://datatracker.ietf.org/doc/html/rfc9113#section-5.2>). So what has been given away counts until it is sent, an answer goes in pieces, so
//! that a slow caller is told from one that takes nothing, and who takes nothing is cut off.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::response::Response;
use croft_proto::id::TenantId;
use croft_serve::Tasks;
use croft_serve::http::Call;
use futures::task::AtomicWaker;
use http_body::{Frame, SizeHint};
use prometheus::{IntCounter, IntGauge, Registry};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tower::util::MapResponseLayer;

/// So much of an answer is given away at a time: a frame of HTTP/2, where nobody has asked for larger ones.
const PIECE_BYTES: usize = 16 * 1024;
/// What a frame takes besides what it says, roughly.
const FRAME_BYTES: usize = 512;
/// All answers are looked at so often.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Those that wait for room are told at once that there is some, but not more often than that: they may be thousands.
const TELL_EVERY: Duration = Duration::from_millis(20);
/// And so many, those that wait for longest first: most would find that others were quicker.
const TOLD_AT_A_TIME: usize = 64;

/// What may be held, of bytes that callers have not taken.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Of all tenants. Beyond, only those that have nothing here get something.
    pub held_bytes_max: usize,
    /// Of one tenant. Beyond, what it is told next waits.
    pub tenant_bytes_max: usize,
    /// An answer of which nothing is taken for so long is cut off.
    pub unread_max: Duration,
    /// As that, where a bound on bytes is reached: the longest first, and none that is not needed.
    pub pressed_max: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            held_bytes_max: 64 * 1024 * 1024,
            tenant_bytes_max: 16 * 1024 * 1024,
            unread_max: Duration::from_mins(2),
            pressed_max: Duration::from_secs(5),
        }
    }
}

/// In the extensions of an answer: whom it is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asker {
    pub(crate) tenant: TenantId,
    /// It goes on: each of its frames waits for room, and not only the first.
    pub(crate) is_stream: bool,
}

/// The answers of a replica. Clones share them.
#[derive(Clone)]
pub struct Unread {
    shared: Arc<Shared>,
}

struct Shared {
    options: Options,
    all: AtomicUsize,
    since: Instant,
    state: Mutex<State>,
    /// Whether somebody does.
    waits: AtomicBool,
    /// Something was taken while somebody waited.
    freed: Notify,
    /// Then nobody waits: what is told is a farewell.
    stopping: CancellationToken,
    metrics: Metrics,
}

#[derive(Default)]
struct State {
    answers: Vec<Weak<Answer>>,
    /// `None` is nobody: who has shown no credential.
    tenants: HashMap<Option<TenantId>, Weak<AtomicUsize>>,
    waiting: Vec<Weak<Answer>>,
}

#[derive(Clone)]
struct Metrics {
    held: IntGauge,
    cut: IntCounter,
}

impl Metrics {
    fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let held = IntGauge::new("croft_unread_bytes", "Of answers that their callers have not taken yet")?;
        let cut = IntCounter::new("croft_unread_cut_total", "Answers cut off, as their callers took nothing of them")?;
        registry.register(Box::new(held.clone()))?;
        registry.register(Box::new(cut.clone()))?;
        Ok(Self { held, cut })
    }
}

impl Unread {
    /// Starts the task that looks at all answers.
    pub fn start(options: Options, tasks: &Tasks, registry: &Registry) -> Result<Self, prometheus::Error> {
        let shared = Arc::new(Shared {
            options,
            all: AtomicUsize::new(0),
            since: Instant::now(),
            state: Mutex::default(),
            waits: AtomicBool::new(false),
            freed: Notify::new(),
            stopping: tasks.stopping(),
            metrics: Metrics::register(registry)?,
        });
        let (looked_at, ending) = (Arc::clone(&shared), tasks.ending());
        let looks = async move {
            let mut looks = interval(LOOK_EVERY);
            looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = looks.tick() => looked_at.look(),
                    () = looked_at.freed.notified() => {}
                    // Some were told, and there may be room for more.
                    () = sleep(TELL_EVERY), if looked_at.waits.load(Ordering::Relaxed) => {}
                }
                looked_at.tell();
                sleep(TELL_EVERY).await;
            }
        };
        tasks.spawn_last("unread", async move {
            ending.run_until_cancelled(looks).await;
        });
        Ok(Self { shared })
    }

    /// Whether what a tenant is told next would have to wait.
    pub(crate) fn is_full(&self, tenant: TenantId) -> bool {
        let own = self.shared.lock().tenants.get(&Some(tenant)).and_then(Weak::upgrade);
        own.is_some_and(|own| self.shared.has_no_room_for(&own))
    }

    /// Room for what is written to a tenant beside any answer, until it is dropped. `None` while there is none.
    pub(crate) fn hold(&self, tenant: TenantId, bytes: usize) -> Option<Kept> {
        let own = self.shared.lock().account(Some(tenant));
        if self.shared.has_no_room_for(&own) {
            return None;
        }
        Some(Kept::of(bytes, own, Arc::clone(&self.shared)))
    }

    /// The same answers, each watched until its caller has all of it.
    pub(crate) fn layered(&self, routes: Router) -> Router {
        let unread = self.clone();
        routes.layer(MapResponseLayer::new(move |answer| unread.watch(answer)))
    }

    fn watch(&self, answer: Response) -> Response {
        let asker = answer.extensions().get::<Asker>().copied();
        let shared = Arc::clone(&self.shared);
        answer.map(|inner| {
            let mut state = shared.lock();
            let answer = Arc::new(Answer {
                shared: Arc::clone(&shared),
                own: state.account(asker.map(|asker| asker.tenant)),
                asker,
                call: Call::current(),
                bytes: AtomicUsize::new(0),
                taken_at: AtomicU64::new(shared.now()),
                is_given: AtomicBool::new(false),
                cuts: AtomicU8::new(0),
                waker: AtomicWaker::new(),
                waits: AtomicBool::new(false),
            });
            state.answers.push(Arc::downgrade(&answer));
            drop(state);
            Body::new(Watched { inner, rest: Bytes::new(), has_begun: false, answer })
        })
    }
}

impl State {
    fn account(&mut self, tenant: Option<TenantId>) -> Arc<AtomicUsize> {
        if let Some(there) = self.tenants.get(&tenant).and_then(Weak::upgrade) {
            return there;
        }
        let made = Arc::default();
        self.tenants.insert(tenant, Arc::downgrade(&made));
        made
    }
}

impl Shared {
    /// Milliseconds since the start.
    fn now(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Cuts off what was not taken for too long.
    fn look(&self) {
        let mut all = {
            let mut state = self.lock();
            state.tenants.retain(|_, there| there.strong_count() > 0);
            std::mem::take(&mut state.answers)
        };
        all.retain(|answer| answer.strong_count() > 0);
        let (answers, now): (Vec<_>, _) = (all.iter().filter_map(Weak::upgrade).collect(), self.now());
        let mut stuck: Vec<_> = answers
            .iter()
            .filter(|answer| answer.holds() || answer.holds_up_its_making())
            .map(|it| (it.unread(now), it))
            .collect();
        stuck.sort_by_key(|(unread, _)| Reverse(*unread));
        // What is cut off lets go of its bytes a moment later.
        let (mut freed, mut freed_of_own) = (0, HashMap::<*const AtomicUsize, usize>::new());
        for (unread, answer) in stuck {
            let of_own = freed_of_own.entry(Arc::as_ptr(&answer.own)).or_default();
            if answer.cut(unread, self.is_over(freed) || answer.is_over(*of_own)) {
                let bytes = answer.bytes.load(Ordering::Relaxed);
                (freed, *of_own) = (freed + bytes, *of_own + bytes);
            }
        }
        self.lock().answers.append(&mut all);
    }

    /// Those that wait and would find room ask again.
    fn tell(&self) {
        let mut state = self.lock();
        let waiting = std::mem::take(&mut state.waiting);
        let mut left = TOLD_AT_A_TIME;
        state.waiting = waiting
            .into_iter()
            .filter(|answer| {
                let Some(answer) = answer.upgrade() else { return false };
                let is_told = left > 0 && answer.told();
                left -= usize::from(is_told);
                !is_told
            })
            .collect();
        self.waits.store(!state.waiting.is_empty(), Ordering::Relaxed);
    }

    /// More for this account would be too much. Who has nothing here yet gets something whatever all others have.
    fn has_no_room_for(&self, own: &AtomicUsize) -> bool {
        let held = own.load(Ordering::Relaxed);
        let is_over = held > self.options.tenant_bytes_max || (held > 0 && self.is_over(0));
        is_over && !self.stopping.is_cancelled()
    }

    /// More is held of all than may be, when so much has gone.
    fn is_over(&self, freed: usize) -> bool {
        self.all.load(Ordering::Relaxed).saturating_sub(freed) > self.options.held_bytes_max
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An answer of which something is left to be made, or to be taken.
struct Answer {
    shared: Arc<Shared>,
    /// Bytes of its tenant's answers.
    own: Arc<AtomicUsize>,
    asker: Option<Asker>,
    call: Option<Call>,
    bytes: AtomicUsize,
    /// When something of it was taken, or asked for.
    taken_at: AtomicU64,
    /// All of it has been given away. What is left to be taken is in nobody's hands: only the connection can be cut off.
    is_given: AtomicBool,
    /// [`NOT_CUT`], [`RESET`] or [`HUNG_UP`].
    cuts: AtomicU8,
    waker: AtomicWaker,
    waits: AtomicBool,
}

const NOT_CUT: u8 = 0;
const RESET: u8 = 1;
const HUNG_UP: u8 = 2;

impl Answer {
    fn holds(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) > 0
    }

    /// An answer of one message waits for room with all of it made already, which nothing counts.
    fn holds_up_its_making(&self) -> bool {
        self.waits.load(Ordering::Relaxed) && self.asker.is_some_and(|asker| !asker.is_stream)
    }

    fn unread(&self, now: u64) -> Duration {
        Duration::from_millis(now.saturating_sub(self.taken_at.load(Ordering::Relaxed)))
    }

    fn was_taken(&self) {
        self.taken_at.store(self.shared.now(), Ordering::Relaxed);
    }

    fn is_over(&self, freed: usize) -> bool {
        self.own.load(Ordering::Relaxed).saturating_sub(freed) > self.shared.options.tenant_bytes_max
    }

    /// Nobody waits for nobody: who shows no credential must not keep others from theirs, or from the probes.
    fn has_to_wait(&self, has_begun: bool) -> bool {
        self.asker.is_some_and(|asker| asker.is_stream || !has_begun) && self.shared.has_no_room_for(&self.own)
    }

    /// Has it ask again once there is room.
    fn wait(self: &Arc<Self>, context: &Context<'_>) {
        self.waker.register(context.waker());
        if !self.waits.swap(true, Ordering::Relaxed) {
            self.shared.lock().waiting.push(Arc::downgrade(self));
            self.shared.waits.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it was told to ask again.
    fn told(&self) -> bool {
        if self.shared.has_no_room_for(&self.own) {
            return false;
        }
        self.waits.store(false, Ordering::Relaxed);
        self.waker.wake();
        true
    }

    /// Breaks its call off, if nothing of it was taken for too long; then the connection, where that freed nothing and the room `is_needed`.
    /// False where it is left alone.
    fn cut(&self, unread: Duration, is_needed: bool) -> bool {
        let Options { unread_max, pressed_max, .. } = self.shared.options;
        let Some(call) = &self.call else { return false };
        let (was, is_given) = (self.cuts.load(Ordering::Relaxed), self.is_given.load(Ordering::Acquire));
        let is_due = unread >= unread_max || (is_needed && unread >= pressed_max);
        // Of nobody's calls none goes on, and none is worth a connection.
        let is_last = was == RESET || (is_given && (unread >= unread_max || self.asker.is_none()));
        let cut = match was {
            NOT_CUT if is_due && !is_given => RESET,
            NOT_CUT | RESET if is_due && is_needed && is_last => HUNG_UP,
            _ => return false,
        };
        self.cuts.store(cut, Ordering::Relaxed);
        if cut == RESET {
            call.reset();
        } else {
            call.hang_up();
        }
        self.shared.metrics.cut.inc_by(u64::from(was == NOT_CUT));
        true
    }
}

/// Bytes that count in a tenant's account, and in that of all, until it is dropped.
pub(crate) struct Kept {
    bytes: usize,
    own: Arc<AtomicUsize>,
    shared: Arc<Shared>,
}

impl Kept {
    fn of(bytes: usize, own: Arc<AtomicUsize>, shared: Arc<Shared>) -> Self {
        own.fetch_add(bytes, Ordering::Relaxed);
        shared.all.fetch_add(bytes, Ordering::Relaxed);
        shared.metrics.held.add(gauged(bytes));
        Self { bytes, own, shared }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.own.fetch_sub(self.bytes, Ordering::Relaxed);
        self.shared.all.fetch_sub(self.bytes, Ordering::Relaxed);
        self.shared.metrics.held.sub(gauged(self.bytes));
        if self.shared.waits.load(Ordering::Relaxed) {
            self.shared.freed.notify_one();
        }
    }
}

/// A frame's bytes, which are held until the last piece of them is sent, or thrown away.
struct Held {
    bytes: Bytes,
    answer: Arc<Answer>,
    kept: Kept,
}

impl Held {
    fn of(bytes: Bytes, answer: &Arc<Answer>) -> Bytes {
        let size = bytes.len() + FRAME_BYTES;
        answer.bytes.fetch_add(size, Ordering::Relaxed);
        let kept = Kept::of(size, Arc::clone(&answer.own), Arc::clone(&answer.shared));
        Bytes::from_owner(Self { bytes, answer: Arc::clone(answer), kept })
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.answer.bytes.fetch_sub(self.kept.bytes, Ordering::Relaxed);
        self.answer.was_taken();
    }
}

fn gauged(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// The body of an answer, by the piece.
struct Watched {
    inner: Body,
    /// Of the frame of which some was given away.
    rest: Bytes,
    has_begun: bool,
    answer: Arc<Answer>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Self { inner, rest, has_begun, answer } = &mut *self;
        if rest.is_empty() && answer.has_to_wait(*has_begun) {
            // To wait for room is to take nothing.
            answer.wait(context);
            return Poll::Pending;
        }
        answer.was_taken();
        if rest.is_empty() {
            match ready!(Pin::new(inner).poll_frame(context)).transpose()?.map(Frame::into_data) {
                Some(Ok(data)) => (*rest, *has_begun) = (Held::of(data, answer), true),
                Some(Err(trailers)) => return Poll::Ready(Some(Ok(trailers))),
                None => return Poll::Ready(None),
            }
        }
        let piece = rest.split_to(rest.len().min(PIECE_BYTES));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, rest) = (self.inner.size_hint(), self.rest.len() as u64);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint.set_lower(hint.lower().saturating_add(rest));
        hint
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.answer.is_given.store(true, Ordering::Release);
    }
}
