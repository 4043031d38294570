//! `RouteService` as gRPC.

use std::pin::Pin;
use std::sync::Arc;

use croft_proto::v1::route_service_server::{RouteService, RouteServiceServer};
use croft_proto::v1::{WatchRoutesRequest, WatchRoutesResponse};
use croft_serve::tls::{PeerRole, peer_role};
use futures::{Stream, StreamExt as _, stream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::RouteTable;
use crate::freshness::Freshness;

/// Serves a [`RouteTable`] to fronts, and to nobody else.
pub struct Routes {
    table: Arc<RouteTable>,
    freshness: Freshness,
    stopping: CancellationToken,
}

impl Routes {
    /// Streams end when `stopping` is cancelled, so that shutdown does not wait for fronts, and when by `freshness` nothing can be told
    /// on them.
    pub fn server(
        table: Arc<RouteTable>,
        freshness: Freshness,
        stopping: CancellationToken,
    ) -> RouteServiceServer<Self> {
        RouteServiceServer::new(Self { table, freshness, stopping })
    }
}

#[tonic::async_trait]
impl RouteService for Routes {
    type WatchRoutesStream = Pin<Box<dyn Stream<Item = Result<WatchRoutesResponse, Status>> + Send>>;

    async fn watch_routes(
        &self,
        request: Request<WatchRoutesRequest>,
    ) -> Result<Response<Self::WatchRoutesStream>, Status> {
        if peer_role(&request) != Some(PeerRole::Front) {
            return Err(Status::permission_denied("only a front's certificate may watch routes"));
        }
        let (snapshot, changes) =
            self.table.watch().ok_or_else(|| Status::unavailable("the operator does not know all tenants yet"))?;
        let front = request.into_inner().front;
        tracing::info!(front, version = snapshot.version, "a front watches the routes");
        let told = stream::iter([snapshot]).chain(ReceiverStream::new(changes)).map(Ok);
        let told = told.take_until(self.freshness.stream().cancelled_owned());
        Ok(Response::new(Box::pin(told.take_until(self.stopping.clone().cancelled_owned()))))
    }
}
