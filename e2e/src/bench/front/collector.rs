//! Where the programs send their traces: all are taken and none is kept.

use std::net::SocketAddr;

use croft_serve::Tasks;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

struct Collector;

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        _: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// Serves on a free port, and says where.
pub(super) async fn serve(tasks: &Tasks) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let serving = Server::builder().add_service(TraceServiceServer::new(Collector));
    let serving = serving.serve_with_incoming(TcpIncoming::from(listener));
    let stopping = tasks.stopping();
    drop(tasks.spawn("collector", async move { stopping.run_until_cancelled(serving).await }));
    Ok(address)
}
