//! Serves HTTP/1 and HTTP/2 without TLS, within the bounds of a port.

use std::pin::pin;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Tasks;
use crate::connections::{Bounds, Connection, Connections};

/// Of one request, all headers together. Beyond, it is answered with 431.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Answers requests in a vital task called `name`, until [`Tasks::stopping`]; requests that have begun then go on.
pub fn serve(name: &'static str, mut connections: Connections, routes: Router, tasks: &Tasks) {
    let stopping = tasks.stopping();
    tasks.spawn_vital(name, async move {
        let bounds = connections.bounds();
        let mut open = JoinSet::new();
        loop {
            tokio::select! {
                () = stopping.cancelled() => break,
                connection = connections.accept() => {
                    open.spawn(attend(connection, routes.clone(), bounds, stopping.clone()));
                }
                Some(_) = open.join_next(), if !open.is_empty() => {}
            }
        }
        // The port is free before the last answer is given: who comes now is told at once.
        drop(connections);
        while open.join_next().await.is_some() {}
        Ok(())
    });
}

async fn attend(connection: Connection, routes: Router, bounds: Bounds, stopping: CancellationToken) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(bounds.head_timeout).max_buf_size(HEAD_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        // By RFC 8441 WebSockets begin so.
        .enable_connect_protocol()
        .max_concurrent_streams(bounds.streams_max)
        .keep_alive_interval(bounds.peer_timeout)
        .keep_alive_timeout(bounds.peer_timeout);
    let answering = builder.serve_connection_with_upgrades(TokioIo::new(connection), TowerToHyperService::new(routes));
    let mut answering = pin!(answering);
    let outcome = tokio::select! {
        outcome = answering.as_mut() => outcome,
        () = stopping.cancelled() => {
            answering.as_mut().graceful_shutdown();
            answering.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a connection broke off");
    }
}
