//! An OTLP collector that keeps what it is sent. It is the collector of the traces, and the service that all the other
//! tests call as well.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use croft_serve::connections::{Bounds, Connections};
use croft_serve::grpc::RpcLayer;
use croft_serve::http::{self, Speaks};
use croft_serve::tls::{PeerRole, peer_role};
use croft_serve::{Metrics, Tasks, grpc};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use tokio::sync::Semaphore;
use tonic::service::{Routes, RoutesBuilder};
use tonic::transport::{Channel, Endpoint, ServerTlsConfig};
use tonic::{Request, Response, Status};

/// What the collector can be asked.
const METHODS: &[&str] = &["opentelemetry.proto.collector.trace.v1.TraceService/Export"];

#[derive(Clone)]
pub(crate) struct Collector {
    pub(crate) callers: Arc<Mutex<Vec<Option<PeerRole>>>>,
    pub(crate) received: Arc<Mutex<Vec<ResourceSpans>>>,
    /// How many calls have arrived.
    pub(crate) arrived: Arc<Semaphore>,
    /// Each call takes one of these before it answers.
    pub(crate) answers: Arc<Semaphore>,
}

impl Collector {
    /// One that answers at once.
    pub(crate) fn new() -> Self {
        Self::with_answers(1000)
    }

    /// One that answers so many calls, and holds the others until `answers` gets more.
    pub(crate) fn with_answers(answers: usize) -> Self {
        Self {
            callers: Arc::default(),
            received: Arc::default(),
            arrived: Arc::new(Semaphore::new(0)),
            answers: Arc::new(Semaphore::new(answers)),
        }
    }

    pub(crate) fn routes(&self) -> Routes {
        Routes::new(TraceServiceServer::new(self.clone()))
    }

    /// The spans received so far, whoever sent them.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let received = self.received.lock().unwrap();
        received.iter().flat_map(|own| &own.scope_spans).flat_map(|own| own.spans.clone()).collect()
    }
}

/// A span of nobody's interest, for a call that should succeed.
pub(crate) fn something() -> ExportTraceServiceRequest {
    ExportTraceServiceRequest { resource_spans: vec![ResourceSpans::default()] }
}

/// A call that is refused as invalid.
pub(crate) fn nothing() -> ExportTraceServiceRequest {
    ExportTraceServiceRequest::default()
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.arrived.add_permits(1);
        self.answers.acquire().await.unwrap().forget();
        self.callers.lock().unwrap().push(peer_role(&request));
        let spans = request.into_inner().resource_spans;
        if spans.is_empty() {
            return Err(Status::invalid_argument("nothing to export"));
        }
        self.received.lock().unwrap().extend(spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A server on a free port of this machine.
pub(crate) struct Running {
    pub(crate) addr: SocketAddr,
    pub(crate) tasks: Tasks,
    pub(crate) metrics: Metrics,
}

impl Running {
    pub(crate) async fn start(routes: Routes, tls: Option<ServerTlsConfig>) -> Self {
        Self::owned_by(Tasks::new(), Bounds::default(), routes, tls).await
    }

    pub(crate) async fn within(bounds: Bounds, routes: Routes, tls: Option<ServerTlsConfig>) -> Self {
        Self::owned_by(Tasks::new(), bounds, routes, tls).await
    }

    pub(crate) async fn owned_by(tasks: Tasks, bounds: Bounds, routes: Routes, tls: Option<ServerTlsConfig>) -> Self {
        let (metrics, connections, addr) = Self::bound(bounds).await;
        grpc::serve_within(connections, "test-grpc", tls, routes, METHODS, &tasks, &metrics).unwrap();
        Self { addr, tasks, metrics }
    }

    /// At a port for callers whom nobody knows.
    pub(crate) async fn in_public(bounds: Bounds, routes: Routes) -> Self {
        let (tasks, (metrics, connections, addr)) = (Tasks::new(), Self::bound(bounds).await);
        let routes = routes.into_axum_router().layer(RpcLayer::new(&metrics, METHODS));
        http::serve("test-grpc", connections, Speaks::Http2, routes, &tasks);
        Self { addr, tasks, metrics }
    }

    async fn bound(bounds: Bounds) -> (Metrics, Connections, SocketAddr) {
        let metrics = Metrics::new("croft-test").unwrap();
        let listener = grpc::bind("127.0.0.1:0".parse().unwrap(), "the test").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let connections = Connections::new(listener, "test-grpc", bounds, &metrics);
        (metrics, connections, addr)
    }

    pub(crate) async fn channel(&self) -> Channel {
        Endpoint::from_shared(self.url()).unwrap().connect().await.unwrap()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }
}

/// The routes of several services.
pub(crate) fn with_health<S>(collector: &Collector, health: S) -> Routes
where
    S: tonic::codegen::Service<
            axum::http::Request<tonic::body::Body>,
            Response = axum::http::Response<tonic::body::Body>,
            Error = std::convert::Infallible,
        > + tonic::server::NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    let mut routes = RoutesBuilder::default();
    routes.add_service(TraceServiceServer::new(collector.clone())).add_service(health);
    routes.routes()
}
