//! What every gRPC server does alike: bind, take calls over TLS or not, see each of them, and stop taking in.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic::transport::{Server, ServerTlsConfig};

use crate::connections::{Bounds, Connections};
use crate::{Metrics, Tasks};

mod calls;
mod rpc;

pub use rpc::{RpcBody, RpcLayer, RpcService, Unremarkable};

/// How long a caller may take to shake hands.
const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// We can't listen where a flag asks us to.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr}, as {flag} asks")]
pub struct BindError {
    addr: SocketAddr,
    flag: &'static str,
    source: io::Error,
}

/// Listens on `addr`. `flag` names the flag and the variable that `addr` came from, such as
/// `--grpc-addr (CROFT_GRPC_ADDR)`, for the error.
pub async fn bind(addr: SocketAddr, flag: &'static str) -> Result<TcpListener, BindError> {
    TcpListener::bind(addr).await.map_err(|source| BindError { addr, flag, source })
}

/// Takes calls to `routes` in a vital task called `name`, each through [`RpcLayer`], until [`Tasks::stopping`]; calls
/// that have begun then go on, but for those of [`Bounds::unread_max`]. Fails when `tls` isn't usable.
pub fn serve(
    name: &'static str,
    listener: TcpListener,
    tls: Option<ServerTlsConfig>,
    routes: Routes,
    methods: &'static [&'static str],
    tasks: &Tasks,
    metrics: &Metrics,
) -> anyhow::Result<()> {
    let connections = Connections::new(listener, name, Bounds::default(), metrics);
    serve_within(connections, name, tls, routes, methods, tasks, metrics)
}

/// As [`serve`], within bounds of the caller's own.
pub fn serve_within(
    connections: Connections,
    name: &'static str,
    tls: Option<ServerTlsConfig>,
    routes: Routes,
    methods: &'static [&'static str],
    tasks: &Tasks,
    metrics: &Metrics,
) -> anyhow::Result<()> {
    // A connection that has been silent for this long is asked for a sign of life, and hung up on after as long again.
    let Bounds { peer_timeout, streams_max, unread_max, .. } = connections.bounds();
    let silence = Some(peer_timeout * 2 / 3);
    let mut server = Server::builder()
        .max_concurrent_streams(streams_max)
        .http2_keepalive_interval(silence)
        .http2_keepalive_timeout(silence);
    if let Some(tls) = tls {
        server = server.tls_config(tls.timeout(TLS_HANDSHAKE_TIMEOUT))?;
    }
    let seen = RpcLayer::new(metrics, methods);
    let calls = seen.calls().clone();
    let server = server.layer(seen).add_routes(routes);
    let stopping = tasks.stopping();
    tasks.spawn_vital(name, async move {
        let all = server.serve_with_incoming_shutdown(connections.into_stream(), stopping.clone().cancelled_owned());
        let stuck = async {
            let Some(unread_max) = unread_max else { return std::future::pending().await };
            stopping.cancelled().await;
            calls.stuck(unread_max).await;
        };
        tokio::select! {
            ended = all => ended?,
            () = stuck => tracing::info!(port = name, "the callers that are left take nothing: they are not waited for"),
        }
        Ok(())
    });
    Ok(())
}
