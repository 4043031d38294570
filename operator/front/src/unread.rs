//! Answers that their callers have not taken yet: how much of them is held, and for how long.
//!
//! HTTP/2 asks for the next part of an answer as soon as the caller has room for a byte of the one before, and keeps it whole until there is
//! room for all of it, which may be never: its peer's kernel acknowledges everything, and its own window is what stays shut
//! (<https://datatracker.ietf.org/doc/html/rfc9113#section-5.2>). So what has been given away counts until it is sent, an answer goes in pieces, so
//! that a slow caller is told from one that takes nothing, and who takes nothing is cut off.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
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
use tokio::time::{Instant, sleep};
use tower::util::MapResponseLayer;

/// So much of an answer is given away at a time: a frame of HTTP/2, where nobody has asked for larger ones.
const PIECE_BYTES: usize = 16 * 1024;
/// What a frame takes besides what it says, roughly.
const FRAME_BYTES: usize = 512;
/// Those that wait for room are told this often that there is some.
const TELL_EVERY: Duration = Duration::from_millis(250);
/// All answers are looked at each time that those were told so often.
const LOOK_EVERY: u32 = 4;

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

/// In the extensions of an answer: the tenant that it is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asker(pub(crate) TenantId);

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
            metrics: Metrics::register(registry)?,
        });
        let (weak, ending) = (Arc::downgrade(&shared), tasks.ending());
        let looks = async move {
            for round in 1_u32.. {
                sleep(TELL_EVERY).await;
                let Some(shared) = weak.upgrade() else { return };
                if round.is_multiple_of(LOOK_EVERY) {
                    shared.look();
                }
                shared.tell();
            }
        };
        tasks.spawn_last("unread", async move {
            ending.run_until_cancelled(looks).await;
        });
        Ok(Self { shared })
    }

    /// The same answers, each watched until its caller has all of it.
    pub(crate) fn layered(&self, routes: Router) -> Router {
        let unread = self.clone();
        routes.layer(MapResponseLayer::new(move |answer| unread.watch(answer)))
    }

    fn watch(&self, answer: Response) -> Response {
        let tenant = answer.extensions().get::<Asker>().map(|asker| asker.0);
        let shared = Arc::clone(&self.shared);
        answer.map(|inner| {
            let mut state = shared.lock();
            let own = state.account(tenant);
            let answer = Arc::new(Answer {
                shared: Arc::clone(&shared),
                own,
                call: Call::current(),
                bytes: AtomicUsize::new(0),
                asked_at: AtomicU64::new(shared.now()),
                is_given: AtomicBool::new(false),
                is_cut: AtomicBool::new(false),
                waker: AtomicWaker::new(),
            });
            state.answers.push(Arc::downgrade(&answer));
            drop(state);
            Body::new(Watched { inner, rest: Bytes::new(), answer })
        })
    }
}

impl State {
    fn account(&mut self, tenant: Option<TenantId>) -> Arc<AtomicUsize> {
        if let Some(there) = self.tenants.get(&tenant).and_then(Weak::upgrade) {
            return there;
        }
        self.tenants.retain(|_, there| there.strong_count() > 0);
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
        let answers: Vec<_> = {
            let mut state = self.lock();
            state.answers.retain(|answer| answer.strong_count() > 0);
            state.answers.iter().filter_map(Weak::upgrade).filter(|answer| answer.holds()).collect()
        };
        let now = self.now();
        let mut stuck: Vec<_> = answers.iter().map(|answer| (answer.unread(now), answer)).collect();
        stuck.retain(|(unread, _)| *unread >= self.options.pressed_max);
        stuck.sort_by_key(|(unread, _)| std::cmp::Reverse(*unread));
        // What is cut off lets go of its bytes a moment later.
        let (mut freed, mut freed_of_own) = (0, HashMap::<*const AtomicUsize, usize>::new());
        for (unread, answer) in stuck {
            let of_own = freed_of_own.entry(Arc::as_ptr(&answer.own)).or_default();
            let is_needed = self.is_over(freed) || answer.is_over(*of_own);
            if unread < self.options.unread_max && !is_needed {
                continue;
            }
            let bytes = answer.bytes.load(Ordering::Relaxed);
            if answer.cut(is_needed && unread >= self.options.unread_max) {
                freed += bytes;
                *of_own += bytes;
            }
        }
    }

    /// Those that wait ask again.
    fn tell(&self) {
        let waiting = std::mem::take(&mut self.lock().waiting);
        waiting.iter().filter_map(Weak::upgrade).for_each(|answer| answer.waker.wake());
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
    call: Option<Call>,
    bytes: AtomicUsize,
    /// When it was asked for more.
    asked_at: AtomicU64,
    /// All of it has been given away. What is left to be taken is in nobody's hands: only the connection can be cut off.
    is_given: AtomicBool,
    is_cut: AtomicBool,
    waker: AtomicWaker,
}

impl Answer {
    fn holds(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) > 0
    }

    fn unread(&self, now: u64) -> Duration {
        Duration::from_millis(now.saturating_sub(self.asked_at.load(Ordering::Relaxed)))
    }

    fn is_over(&self, freed: usize) -> bool {
        self.own.load(Ordering::Relaxed).saturating_sub(freed) > self.shared.options.tenant_bytes_max
    }

    /// More would be too much.
    fn has_to_wait(&self) -> bool {
        self.is_over(0) || (self.shared.is_over(0) && self.own.load(Ordering::Relaxed) > 0)
    }

    /// Breaks its call off; where there is none any more, and only if `hangs_up`, the connection. False where nothing comes of it.
    fn cut(&self, hangs_up: bool) -> bool {
        let Some(call) = &self.call else { return false };
        let is_given = self.is_given.load(Ordering::Relaxed);
        if (is_given && !hangs_up) || self.is_cut.swap(true, Ordering::Relaxed) {
            return false;
        }
        self.shared.metrics.cut.inc();
        if is_given {
            call.hang_up();
        } else {
            call.reset();
        }
        true
    }
}

/// A frame's bytes, which are held until the last piece of them is sent, or thrown away.
struct Held {
    bytes: Bytes,
    answer: Arc<Answer>,
}

impl Held {
    fn of(bytes: Bytes, answer: &Arc<Answer>) -> Bytes {
        let held = Self { bytes, answer: Arc::clone(answer) };
        let size = held.size();
        for account in [&answer.bytes, &*answer.own, &answer.shared.all] {
            account.fetch_add(size, Ordering::Relaxed);
        }
        answer.shared.metrics.held.add(gauged(size));
        Bytes::from_owner(held)
    }

    fn size(&self) -> usize {
        self.bytes.len() + FRAME_BYTES
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let (size, answer) = (self.size(), &self.answer);
        for account in [&answer.bytes, &*answer.own, &answer.shared.all] {
            account.fetch_sub(size, Ordering::Relaxed);
        }
        answer.shared.metrics.held.sub(gauged(size));
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
    answer: Arc<Answer>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Self { inner, rest, answer } = &mut *self;
        answer.asked_at.store(answer.shared.now(), Ordering::Relaxed);
        if rest.is_empty() {
            if answer.has_to_wait() {
                answer.waker.register(context.waker());
                answer.shared.lock().waiting.push(Arc::downgrade(answer));
                return Poll::Pending;
            }
            match ready!(Pin::new(inner).poll_frame(context)).transpose()?.map(Frame::into_data) {
                Some(Ok(data)) => *rest = Held::of(data, answer),
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
        self.answer.is_given.store(true, Ordering::Relaxed);
    }
}
