//! An operator without tenants, that can be stopped.

use std::pin::Pin;

use croft_proto::v1::route_service_server::{RouteService, RouteServiceServer};
use croft_proto::v1::watch_routes_response::Change;
use croft_proto::v1::{RouteSnapshot, WatchRoutesRequest, WatchRoutesResponse};
use croft_serve::Tasks;
use croft_serve::tls::TlsFiles;
use futures::{Stream, StreamExt, stream};
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::port::Port;

struct Routes(Tasks);

#[tonic::async_trait]
impl RouteService for Routes {
    type WatchRoutesStream = Pin<Box<dyn Stream<Item = Result<WatchRoutesResponse, Status>> + Send>>;

    async fn watch_routes(&self, _: Request<WatchRoutesRequest>) -> Result<Response<Self::WatchRoutesStream>, Status> {
        let change = Some(Change::Snapshot(RouteSnapshot::default()));
        let snapshot = WatchRoutesResponse { version: 1, change };
        let answers = stream::iter([Ok(snapshot)]).chain(stream::pending());
        Ok(Response::new(answers.take_until(self.0.stopping().cancelled_owned()).boxed()))
    }
}

pub(crate) struct Operator {
    port: Port,
    tls: TlsFiles,
    tasks: Tasks,
}

impl Operator {
    /// At a port of its own, which it keeps while it is stopped too.
    pub(crate) async fn start(tls: TlsFiles) -> Self {
        let mut operator = Self { port: Port::free(), tls, tasks: Tasks::new() };
        operator.start_again().await;
        operator
    }

    pub(crate) fn port(&self) -> u16 {
        self.port.number()
    }

    pub(crate) async fn start_again(&mut self) {
        self.tasks = Tasks::new();
        let listener = TcpListener::bind(("127.0.0.1", self.port())).await.unwrap();
        let mut server = Server::builder().tls_config(self.tls.server()).unwrap();
        let routes = server.add_service(RouteServiceServer::new(Routes(self.tasks.clone())));
        let stopping = self.tasks.stopping().cancelled_owned();
        drop(self.tasks.spawn("operator", routes.serve_with_incoming_shutdown(TcpIncoming::from(listener), stopping)));
    }

    pub(crate) async fn stop(&mut self) {
        assert_eq!(self.tasks.shutdown(crate::PATIENCE).await, 0);
    }
}
