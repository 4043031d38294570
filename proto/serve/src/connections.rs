//! The connections that a port takes in: so many at a time, each of which says soon what it wants, and whose peer is there.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, stream};
use prometheus::{IntCounter, IntGauge};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tonic::transport::server::Connected;

use crate::Metrics;
use crate::metrics::ConnectionMetrics;

/// What a client says of itself at least: the preface of HTTP/2 is so long, and no request of HTTP/1.1 is shorter.
const FIRST_BYTES: usize = 24;
/// After an error of accepting, such as no free file descriptor, which would only come again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Bounds of one port.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// At the bound a new connection is closed as soon as it is made, so that its owner goes elsewhere.
    pub connections_max: usize,
    /// Calls of one HTTP/2 connection at a time. At the bound its owner waits with the next:
    /// <https://datatracker.ietf.org/doc/html/rfc9113#section-5.1.2>.
    pub streams_max: u32,
    /// Of the heads of all requests that have no answer yet, at a port of [`http`](crate::http): each with 192 bytes a header. A connection holds a
    /// quarter of it at most. Beyond, a call is refused with 503, but for one, or 16 KiB of them, a connection.
    pub heads_bytes_max: usize,
    /// One that has not begun to say what it wants is hung up on.
    pub first_bytes_timeout: Duration,
    /// From the end of one HTTP/1 request to the whole head of the next. Proxies keep idle connections for a minute; where we
    /// kept them for less, they would send requests into connections that we are closing.
    pub head_timeout: Duration,
    /// A connection of HTTP/2 that has had no call for so long, or for half as long again, is told to go, after which its owner makes another when he
    /// needs one: <https://datatracker.ietf.org/doc/html/rfc9113#section-6.8>.
    pub idle_max: Duration,
    /// A peer whose machine acknowledges nothing for so long is gone, though it never said so; one that has nothing to
    /// acknowledge is asked. At least a second.
    pub peer_timeout: Duration,
    /// At a shutdown a port of [`http`](crate::http) is closed once all calls that are left have answers whose callers have taken nothing of them
    /// for so long. `None` waits for them.
    pub unread_max: Option<Duration>,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections_max: 16_384,
            streams_max: 4_096,
            heads_bytes_max: 64 * 1024 * 1024,
            first_bytes_timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(75),
            idle_max: Duration::from_mins(5),
            peer_timeout: Duration::from_secs(30),
            unread_max: None,
        }
    }
}

/// A listening port within its bounds.
pub struct Connections {
    listener: TcpListener,
    bounds: Bounds,
    free: Arc<Semaphore>,
    port: &'static str,
    metrics: ConnectionMetrics,
}

impl Connections {
    /// `port` labels the metrics, so it is a fixed word.
    pub fn new(listener: TcpListener, port: &'static str, bounds: Bounds, metrics: &Metrics) -> Self {
        let free = Arc::new(Semaphore::new(bounds.connections_max));
        Self { listener, bounds, free, port, metrics: metrics.connections().clone() }
    }

    /// What holds for each of them.
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Counts calls that the port has no room for.
    pub(crate) fn calls_refused(&self) -> IntCounter {
        self.metrics.calls_refused.with_label_values(&[self.port])
    }

    /// The next connection that there is room for.
    pub async fn accept(&mut self) -> Connection {
        loop {
            let (stream, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Most are of a peer that has gone already: https://man7.org/linux/man-pages/man2/accept.2.html
                    if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
                        tracing::warn!(port = self.port, %error, "cannot take a connection, trying again");
                        sleep(ACCEPT_PAUSE).await;
                    }
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() else {
                self.metrics.refused.with_label_values(&[self.port]).inc();
                tracing::debug!(port = self.port, %peer, "a connection too many");
                continue;
            };
            if let Err(error) = prepare(&stream, self.bounds.peer_timeout) {
                tracing::debug!(port = self.port, %peer, %error, "a connection without its options");
            }
            let open = self.metrics.open.with_label_values(&[self.port]);
            open.inc();
            let first = Some((Box::pin(sleep(self.bounds.first_bytes_timeout)), FIRST_BYTES));
            return Connection { stream, first, open, _permit: permit };
        }
    }

    /// All of them, one after the other.
    pub fn into_stream(self) -> impl Stream<Item = io::Result<Connection>> + Send {
        stream::unfold(self, |mut connections| async move { Some((Ok(connections.accept().await), connections)) })
    }
}

fn prepare(stream: &TcpStream, peer_timeout: Duration) -> io::Result<()> {
    // A token is a small frame: it must not wait for the next one.
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    // The kernel counts in whole seconds.
    let every = (peer_timeout / 3).max(Duration::from_secs(1));
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(every).with_interval(every))?;
    // Holds for what was sent and for the questions alike: https://datatracker.ietf.org/doc/html/rfc5482
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(peer_timeout))?;
    Ok(())
}

/// A connection that counts for as long as it is open.
pub struct Connection {
    stream: TcpStream,
    /// Until when it has to have said so many bytes more.
    first: Option<(Pin<Box<Sleep>>, usize)>,
    open: IntGauge,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.open.dec();
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, first, .. } = &mut *self;
        let before = buffer.filled().len();
        let read = Pin::new(stream).poll_read(context, buffer);
        let Some((deadline, missing)) = first else { return read };
        match read {
            Poll::Ready(Ok(())) => {
                *missing = missing.saturating_sub(buffer.filled().len() - before);
                if *missing == 0 {
                    *first = None;
                }
                read
            }
            Poll::Ready(Err(_)) => read,
            Poll::Pending => deadline.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into())),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Connected for Connection {
    type ConnectInfo = <TcpStream as Connected>::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}
