//! Serves HTTP without TLS, within the bounds of a port. Calls of gRPC come over HTTP/2 as any other.

mod call;
mod calls;
mod heads;

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::header::RETRY_AFTER;
use axum::http::{Request, Response, StatusCode, Version};
use axum::response::IntoResponse;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

pub use self::call::Call;
use self::call::{Line, Streams};
use self::calls::{Calls, UnderWay};
use self::heads::Heads;
use crate::Tasks;
use crate::connections::{Bounds, Connection, Connections};

/// Of one request, all headers together: over HTTP/1 as they come, over HTTP/2 as RFC 9113 counts them, with 32 bytes more for each
/// (<https://datatracker.ietf.org/doc/html/rfc9113#section-6.5.2>). Beyond, it is answered with 431. What comes of a head before it is whole takes no
/// more than this, once for each connection.
const HEAD_BYTES_MAX: u16 = 16 * 1024;
/// Of one HTTP/2 stream of a connection, which has a MiB for all of them: what has come of a request and is not read yet takes of both. So a few that
/// nobody reads for now leave some for the others; sixteen leave none.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
/// Of one HTTP/2 stream: what has been given away of its answer and is not sent yet.
const STREAM_UNSENT_BYTES: usize = 64 * 1024;
/// Who was refused, since too much of requests' heads is held, may try again then, in seconds.
const ROOM_AFTER: &str = "1";

/// What a port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/2 with prior knowledge, as clients of gRPC have it.
    Http2,
    /// That, and HTTP/1.
    Any,
}

/// Answers requests in a vital task called `name`, until [`Tasks::stopping`]; requests that have begun then go on, but for those of
/// [`Bounds::unread_max`]. Each can be broken off by its [`Call`].
pub fn serve(name: &'static str, mut connections: Connections, speaks: Speaks, routes: Router, tasks: &Tasks) {
    let stopping = tasks.stopping();
    tasks.spawn_vital(name, async move {
        let bounds = connections.bounds();
        let heads = Heads::new(bounds.heads_bytes_max, connections.calls_refused());
        let port = Port { routes, speaks, bounds, calls: Calls::default(), heads };
        let mut open = JoinSet::new();
        loop {
            tokio::select! {
                () = stopping.cancelled() => break,
                connection = connections.accept() => {
                    open.spawn(port.clone().attend(connection, stopping.clone()));
                }
                Some(_) = open.join_next(), if !open.is_empty() => {}
            }
        }
        // The port is free before the last answer is given: who comes now is told at once.
        drop(connections);
        let stuck = async {
            match port.bounds.unread_max {
                Some(unread_max) => port.calls.stuck(unread_max).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = async { while open.join_next().await.is_some() {} } => {}
            () = stuck => tracing::info!(port = name, "the callers that are left take nothing: they are not waited for"),
        }
        Ok(())
    });
}

/// What all connections of a port have in common.
#[derive(Clone)]
struct Port {
    routes: Router,
    speaks: Speaks,
    bounds: Bounds,
    calls: Calls,
    heads: Heads,
}

impl Port {
    async fn attend(self, connection: Connection, stopping: CancellationToken) {
        let line = Arc::new(Line::default());
        let builder = self.builder(&line);
        let Self { routes, bounds, calls, heads, .. } = self;
        let (asked, own) = (Arc::clone(&line), heads::Own::default());
        let service = service_fn(move |request: Request<Incoming>| {
            if request.version() < Version::HTTP_2 {
                asked.speaks_http1();
            }
            let head = heads.hold(&request, &own);
            answer(request, routes.clone(), calls.begin(), head)
        });
        let answering = line.scope(async {
            let answering = builder.serve_connection_with_upgrades(TokioIo::new(connection), service);
            let mut answering = pin!(answering);
            tokio::select! {
                outcome = answering.as_mut() => return outcome,
                () = stopping.cancelled() => {}
                () = idle(&line, bounds.idle_max) => {
                    answering.as_mut().graceful_shutdown();
                    // Who doesn't go, though he has no call, is not waited for.
                    tokio::select! {
                        outcome = answering.as_mut() => return outcome,
                        () = stopping.cancelled() => {}
                        () = idle(&line, bounds.peer_timeout) => return Ok(()),
                    }
                }
            }
            answering.as_mut().graceful_shutdown();
            answering.await
        });
        if let Some(Err(error)) = line.hung_up.run_until_cancelled(answering).await {
            tracing::debug!(%error, "a connection broke off");
        }
    }

    fn builder(&self, line: &Arc<Line>) -> Builder<Streams> {
        let mut builder = Builder::new(Streams(Arc::clone(line)));
        if self.speaks == Speaks::Http2 {
            builder = builder.http2_only();
        }
        let Bounds { head_timeout, peer_timeout, streams_max, .. } = self.bounds;
        builder.http1().timer(TokioTimer::new()).header_read_timeout(head_timeout).max_buf_size(HEAD_BYTES_MAX.into());
        // A connection that has been silent for this long is asked for a sign of life, and hung up on after as long again.
        let silence = peer_timeout * 2 / 3;
        builder
            .http2()
            .timer(TokioTimer::new())
            // By RFC 8441 WebSockets begin so.
            .enable_connect_protocol()
            .max_concurrent_streams(streams_max)
            .max_header_list_size(HEAD_BYTES_MAX.into())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .max_send_buf_size(STREAM_UNSENT_BYTES)
            .keep_alive_interval(silence)
            .keep_alive_timeout(silence);
        builder
    }
}

/// Resolves once a connection of HTTP/2 has had no call for so long, or for up to half as long again.
async fn idle(line: &Line, idle_max: Duration) {
    let (mut before, mut halves) = (line.idle(), 0);
    while halves < 2 {
        sleep(idle_max / 2).await;
        let now = line.idle();
        halves = if now.is_some() && now == before { halves + 1 } else { 0 };
        before = now;
    }
}

async fn answer(
    request: Request<Incoming>,
    routes: Router,
    under_way: UnderWay,
    head: Option<heads::Held>,
) -> Result<Response<Answer>, Infallible> {
    let answer = match head {
        Some(_held) => routes.oneshot(request).await?,
        None => (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, ROOM_AFTER)]).into_response(),
    };
    under_way.answered();
    Ok(answer.map(|inner| Answer { inner, under_way }))
}

/// An answer's body, of which is known how often it was asked for more.
struct Answer {
    inner: Body,
    under_way: UnderWay,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(context);
        self.under_way.polled(frame.is_pending());
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use hyper::rt::Executor;
    use tokio::time::Instant;

    use super::*;

    const IDLE_MAX: Duration = Duration::from_mins(5);

    /// One whose call ended just before a look was taken for idle after half the time.
    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_when_it_had_no_call_for_so_long_and_no_sooner() {
        for last_call in [0, 149_995, 225_000].map(Duration::from_millis) {
            let (line, began) = (Arc::new(Line::default()), Instant::now());
            Streams(Arc::clone(&line)).execute(sleep(last_call));
            idle(&line, IDLE_MAX).await;
            let without = began.elapsed().saturating_sub(last_call);
            assert!((IDLE_MAX..=IDLE_MAX * 3 / 2).contains(&without), "{without:?} after {last_call:?}");
        }
    }
}
