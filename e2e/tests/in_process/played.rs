//! A worker that a test plays: what becomes of a step is the test's to say, and all else is answered.

use std::pin::Pin;

use croft_proto::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use croft_proto::v1::{
    CheckpointRequest, CheckpointResponse, ExecuteStepRequest, ExecuteStepResponse, InitWorkerSessionRequest,
    InitWorkerSessionResponse, RuntimeServiceTerminateSessionRequest, RuntimeServiceTerminateSessionResponse,
};
use futures::Stream;
use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use crate::world::World;

/// What a worker says in a step.
pub(crate) type Said = Pin<Box<dyn Stream<Item = Result<ExecuteStepResponse, Status>> + Send>>;

/// How a worker plays its steps.
#[tonic::async_trait]
pub(crate) trait Steps: Send + Sync + 'static {
    async fn step(&self, request: Request<Streaming<ExecuteStepRequest>>) -> Result<Said, Status>;

    /// What it answers as it is to forget a session.
    async fn forget(&self, _: RuntimeServiceTerminateSessionRequest) -> RuntimeServiceTerminateSessionResponse {
        RuntimeServiceTerminateSessionResponse::default()
    }
}

/// A worker with these steps.
pub(crate) struct Played<S>(pub(crate) S);

impl<S: Steps> Played<S> {
    /// Serves it as workers are served, for as long as the world is there. Its address.
    pub(crate) async fn serve(self, world: &World, name: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let metrics = croft_serve::Metrics::new(name).unwrap();
        let routes = Routes::new(RuntimeServiceServer::new(self));
        croft_serve::grpc::serve(name, listener, None, routes, croft_proto::METHODS, &world.tasks, &metrics).unwrap();
        address
    }
}

#[tonic::async_trait]
impl<S: Steps> RuntimeService for Played<S> {
    async fn init_worker_session(
        &self,
        _: Request<InitWorkerSessionRequest>,
    ) -> Result<Response<InitWorkerSessionResponse>, Status> {
        Ok(Response::new(InitWorkerSessionResponse::default()))
    }

    type ExecuteStepStream = Said;

    async fn execute_step(
        &self,
        request: Request<Streaming<ExecuteStepRequest>>,
    ) -> Result<Response<Self::ExecuteStepStream>, Status> {
        self.0.step(request).await.map(Response::new)
    }

    async fn checkpoint(&self, _: Request<CheckpointRequest>) -> Result<Response<CheckpointResponse>, Status> {
        Ok(Response::new(CheckpointResponse::default()))
    }

    async fn terminate_session(
        &self,
        request: Request<RuntimeServiceTerminateSessionRequest>,
    ) -> Result<Response<RuntimeServiceTerminateSessionResponse>, Status> {
        Ok(Response::new(self.0.forget(request.into_inner()).await))
    }
}
