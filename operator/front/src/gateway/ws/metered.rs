//! The stream under a WebSocket, of which is known how much has come of a message that is not whole, and since when.
//!
//! The library keeps such a part until the rest comes, and says nothing of it: it would lie there, counted by nobody, for as long as its client
//! answers pings.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use croft_proto::id::TenantId;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::buffers::Buffer;
use crate::error::Error;
use crate::intake::{Room, Rooms};

/// Of a client's control frame, besides what it says: <https://datatracker.ietf.org/doc/html/rfc6455#section-5.2>.
const CONTROL_HEAD_BYTES: usize = 6;

/// So much is written at a time.
const PIECE_BYTES: usize = 16 * 1024;

/// What has come of a message, which takes of the same room as requests do.
pub(super) struct Meter {
    tenant: TenantId,
    requests: Rooms,
    part: Mutex<Part>,
    buffer: Buffer,
}

#[derive(Default)]
struct Part {
    bytes: usize,
    since: Option<Instant>,
    room: Room,
}

impl Meter {
    pub(super) fn new(tenant: TenantId, requests: Rooms, buffer: Buffer) -> Arc<Self> {
        Arc::new(Self { tenant, requests, part: Mutex::default(), buffer })
    }

    /// All that has come was a message. What has come of the next with it is no more than is read at a time.
    pub(super) fn message_came(&self) {
        let part = std::mem::take(&mut *self.lock());
        self.buffer.took(part.bytes);
    }

    /// Cancelled once the socket keeps room that others need.
    pub(super) fn goes(&self) -> CancellationToken {
        self.buffer.goes()
    }

    /// A control frame that said so many bytes has come, which may stand within a message.
    pub(super) fn passed(&self, bytes: usize) {
        let mut part = self.lock();
        part.bytes = part.bytes.saturating_sub(bytes + CONTROL_HEAD_BYTES);
        if part.bytes == 0 {
            *part = Part::default();
        }
    }

    /// A message began longer ago than that, and is not whole.
    pub(super) fn is_late(&self, within: Duration) -> bool {
        self.lock().since.is_some_and(|since| since.elapsed() > within)
    }

    fn came(&self, bytes: usize) -> Result<(), Error> {
        let mut part = self.lock();
        let Part { bytes: all, since, room } = &mut *part;
        *all += bytes;
        since.get_or_insert_with(Instant::now);
        self.requests.reckon(self.tenant, *all, room)
    }

    fn lock(&self) -> MutexGuard<'_, Part> {
        // No code that holds the lock can leave the part half changed.
        self.part.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells its meter what is read. Fails with an [`Error`] within where there is no room for more.
pub(super) struct Metered<S> {
    pub(super) stream: S,
    pub(super) meter: Arc<Meter>,
}

/// Whether such a stream failed since there was no room for more.
pub(super) fn found_no_room(error: &io::Error) -> bool {
    let Some(source) = error.get_ref() else { return false };
    source.is::<Error>()
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        let bytes = buffer.filled().len() - before;
        if bytes > 0 {
            self.meter.came(bytes).map_err(io::Error::other)?;
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        // Whatever is written at once over HTTP/2 is copied, and held until it is sent.
        let piece = bytes.get(..PIECE_BYTES).unwrap_or(bytes);
        Pin::new(&mut self.stream).poll_write(context, piece)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
