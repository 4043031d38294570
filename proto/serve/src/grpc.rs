//! What every gRPC server does alike: bind, take calls over TLS or not, see each of them, and stop taking in.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic::transport::{Server, ServerTlsConfig};

use crate::connections::{Bounds, Connections};
use crate::{Metrics, Tasks};

mod rpc;

pub use rpc::{RpcBody, RpcLayer, RpcService, Unremarkable, UnremarkableOnce};

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
/// that have begun then go on. Fails when `tls` isn't usable. For callers whom nobody knows there is [`http::serve`](crate::http::serve).
pub fn serve(
    name: &'static str,
    listener: TcpListener,
    tls: Option<ServerTlsConfig>,
    routes: Routes,
    methods: &'static [&'static str],
    tasks: &Tasks,
    metrics: &Metrics,
) -> anyhow::Result<()> {
    serve_within(
        Connections::new(listener, name, Bounds::default(), metrics),
        name,
        tls,
        routes,
        methods,
        tasks,
        metrics,
    )
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
    let Bounds { peer_timeout, streams_max, .. } = connections.bounds();
    let silence = Some(peer_timeout * 2 / 3);
    let mut server = Server::builder()
        .max_concurrent_streams(streams_max)
        .http2_keepalive_interval(silence)
        .http2_keepalive_timeout(silence);
    if let Some(tls) = tls {
        server = server.tls_config(tls.timeout(TLS_HANDSHAKE_TIMEOUT))?;
    }
    let (server, stopping) = (server.layer(RpcLayer::new(metrics, methods)).add_routes(routes), tasks.stopping());
    tasks.spawn_vital(name, async move {
        Ok(server.serve_with_incoming_shutdown(connections.into_stream(), stopping.cancelled_owned()).await?)
    });
    Ok(())
}
