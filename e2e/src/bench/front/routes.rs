//! The operator's part: tells every front which tenants and workers there are, once and for all.

use std::pin::Pin;

use croft_proto::v1::route_service_server::{RouteService, RouteServiceServer};
use croft_proto::v1::watch_routes_response::Change;
use croft_proto::v1::{RouteSnapshot, TenantRoute, WatchRoutesRequest, WatchRoutesResponse};
use croft_serve::Tasks;
use croft_serve::tls::{PeerRole, TlsFiles, only};
use futures::{Stream, StreamExt as _};
use tokio::net::TcpListener;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

struct Routes(Vec<TenantRoute>);

#[tonic::async_trait]
impl RouteService for Routes {
    type WatchRoutesStream = Pin<Box<dyn Stream<Item = Result<WatchRoutesResponse, Status>> + Send>>;

    async fn watch_routes(&self, _: Request<WatchRoutesRequest>) -> Result<Response<Self::WatchRoutesStream>, Status> {
        let snapshot = Change::Snapshot(RouteSnapshot { tenants: self.0.clone() });
        let told = WatchRoutesResponse { version: 1, change: Some(snapshot) };
        // Nothing changes any more, and the stream stays open.
        let stream = futures::stream::once(async { Ok(told) }).chain(futures::stream::pending());
        Ok(Response::new(stream.boxed()))
    }
}

/// Serves these routes to fronts on a free port, and says which.
pub async fn serve(tasks: &Tasks, tls: &TlsFiles, tenants: Vec<TenantRoute>) -> anyhow::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let service = InterceptedService::new(RouteServiceServer::new(Routes(tenants)), only(PeerRole::Front));
    let serving = Server::builder().tls_config(tls.server())?.add_service(service);
    let serving = serving.serve_with_incoming(TcpIncoming::from(listener));
    let stopping = tasks.stopping();
    drop(tasks.spawn("routes", async move { stopping.run_until_cancelled(serving).await }));
    Ok(port)
}
