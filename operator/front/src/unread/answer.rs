//! An answer on its way, by the piece, and when something of it was taken.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use croft_serve::http::Call;
use futures::task::AtomicWaker;
use http_body::{Frame, SizeHint};

use super::account::{Account, Kept};
use super::{Asker, Options, Shared};

/// So much of an answer is given away at a time: a frame of HTTP/2, where nobody has asked for larger ones.
const PIECE_BYTES: usize = 16 * 1024;
/// What a frame takes besides what it says, roughly.
const FRAME_BYTES: usize = 512;

/// An answer of which something is left to be made, or to be taken.
pub(super) struct Answer {
    shared: Arc<Shared>,
    own: Arc<Account>,
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
    /// The same body, which is among those that are looked at until its caller has all of it.
    pub(super) fn watched(inner: Body, asker: Option<Asker>, shared: &Arc<Shared>) -> Body {
        let answer = Arc::new(Self {
            shared: Arc::clone(shared),
            own: shared.accounts.of(asker.map(|asker| asker.tenant)),
            asker,
            call: Call::current(),
            bytes: AtomicUsize::new(0),
            taken_at: AtomicU64::new(shared.now()),
            is_given: AtomicBool::new(false),
            cuts: AtomicU8::new(0),
            waker: AtomicWaker::new(),
            waits: AtomicBool::new(false),
        });
        shared.lock().answers.push(Arc::downgrade(&answer));
        Body::new(Watched { inner, rest: Bytes::new(), has_begun: false, answer })
    }

    pub(super) fn own(&self) -> &Arc<Account> {
        &self.own
    }

    /// Given away, and not taken yet.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn holds(&self) -> bool {
        self.bytes() > 0
    }

    /// An answer of one message waits for room with all of it made already, which nothing counts.
    pub(super) fn holds_up_its_making(&self) -> bool {
        self.waits.load(Ordering::Relaxed) && self.asker.is_some_and(|asker| !asker.is_stream)
    }

    pub(super) fn unread(&self, now: u64) -> Duration {
        Duration::from_millis(now.saturating_sub(self.taken_at.load(Ordering::Relaxed)))
    }

    fn was_taken(&self) {
        self.taken_at.store(self.shared.now(), Ordering::Relaxed);
    }

    /// Nobody waits for nobody: who shows no credential must not keep others from theirs, or from the probes.
    fn has_to_wait(&self, has_begun: bool) -> bool {
        self.asker.is_some_and(|asker| asker.is_stream || !has_begun) && self.own.has_no_room()
    }

    /// Has it ask again once there is room.
    fn wait(self: &Arc<Self>, context: &Context<'_>) {
        self.waker.register(context.waker());
        if !self.waits.swap(true, Ordering::Relaxed) {
            self.shared.wait(self);
        }
    }

    /// Whether it was told to ask again.
    pub(super) fn told(&self) -> bool {
        if self.own.has_no_room() {
            return false;
        }
        self.waits.store(false, Ordering::Relaxed);
        self.waker.wake();
        true
    }

    /// Breaks its call off, if nothing of it was taken for too long; then the connection, where that freed nothing and the room `is_needed`.
    /// False where it is left alone.
    pub(super) fn cut(&self, unread: Duration, is_needed: bool) -> bool {
        let Options { unread_max, pressed_max, .. } = self.shared.accounts.options;
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
        self.shared.cut.inc_by(u64::from(was == NOT_CUT));
        true
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
        let kept = Kept::of(size, Arc::clone(&answer.own));
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
        self.answer.bytes.fetch_sub(self.kept.bytes(), Ordering::Relaxed);
        self.answer.was_taken();
    }
}

/// The body of an answer, by the piece. That its port wraps it once more, to tell at a shutdown who takes nothing, is no double: a port knows of no
/// tenants and serves routes that nobody watches, and here nothing is asked of a body that waits for room.
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
