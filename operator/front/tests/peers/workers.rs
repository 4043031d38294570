//! Workers: by address, under their tenant's name.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use croft_front::routing::Router;
use croft_front::tenants::{Tenant, Tenants};
use croft_front::worker_client::{WorkerClient, WorkerPool};
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use croft_proto::v1::watch_routes_response::Change;
use croft_proto::v1::{
    CheckpointRequest, CheckpointResponse, ExecuteStepRequest, ExecuteStepResponse, InitWorkerSessionRequest,
    InitWorkerSessionResponse, RouteSnapshot, RuntimeServiceTerminateSessionRequest,
    RuntimeServiceTerminateSessionResponse, TenantRoute, WatchRoutesResponse, WorkerRoute,
};
use croft_serve::Tasks;
use croft_serve::tls::{PeerRole, TlsFiles, peer_role};
use futures::{Stream, StreamExt};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::authority::Authority;

/// A worker that greets, and then has nothing to say.
struct Worker;

#[tonic::async_trait]
impl RuntimeService for Worker {
    async fn init_worker_session(
        &self,
        request: Request<InitWorkerSessionRequest>,
    ) -> Result<Response<InitWorkerSessionResponse>, Status> {
        let worker = match peer_role(&request) {
            Some(PeerRole::Front) => "met the front",
            _ => "met nobody",
        };
        Ok(Response::new(InitWorkerSessionResponse { worker: worker.to_owned(), namespace: String::new() }))
    }

    type ExecuteStepStream = Pin<Box<dyn Stream<Item = Result<ExecuteStepResponse, Status>> + Send>>;

    async fn execute_step(
        &self,
        _: Request<Streaming<ExecuteStepRequest>>,
    ) -> Result<Response<Self::ExecuteStepStream>, Status> {
        Ok(Response::new(futures::stream::pending().boxed()))
    }

    async fn checkpoint(&self, _: Request<CheckpointRequest>) -> Result<Response<CheckpointResponse>, Status> {
        Ok(Response::new(CheckpointResponse::default()))
    }

    async fn terminate_session(
        &self,
        _: Request<RuntimeServiceTerminateSessionRequest>,
    ) -> Result<Response<RuntimeServiceTerminateSessionResponse>, Status> {
        Ok(Response::new(RuntimeServiceTerminateSessionResponse::default()))
    }
}

/// Runs a worker until the guard is dropped.
async fn run_worker(tasks: &Tasks, address: &str, tls: Option<TlsFiles>) -> (SocketAddr, DropGuard) {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let closing = CancellationToken::new();
    let closed = closing.clone().cancelled_owned();
    let mut server = Server::builder();
    if let Some(tls) = tls {
        server = server.tls_config(tls.server()).unwrap();
    }
    let router = server.add_service(RuntimeServiceServer::new(Worker));
    let serve = router.serve_with_incoming_shutdown(TcpIncoming::from(listener), closed);
    drop(tasks.spawn("worker", serve));
    (address, closing.drop_guard())
}

/// The front's part, with one worker at this address in its routes.
struct Front {
    pool: WorkerPool,
    router: Router,
    tenant: Arc<Tenant>,
}

impl Front {
    fn new(tasks: &Tasks, worker: SocketAddr, tls: Option<TlsFiles>) -> Self {
        let (tenants, id) = (Tenants::new(), TenantId::generate());
        let worker =
            WorkerRoute { name: "worker-0".to_owned(), address: worker.to_string(), ready: true, sessions_max: 8 };
        let route = TenantRoute {
            tenant_id: id.to_string(),
            name: "heron".to_owned(),
            namespace: "tenant-heron".to_owned(),
            workers: vec![worker],
            ..Default::default()
        };
        let change = Some(Change::Snapshot(RouteSnapshot { tenants: vec![route] }));
        tenants.apply(WatchRoutesResponse { version: 1, change });
        let tenant = tenants.get(id).unwrap();
        Self { pool: WorkerPool::new(tenants.clone(), tls, tasks), router: Router::new(tenants), tenant }
    }

    fn client(&self) -> WorkerClient {
        let placement = self.router.place(self.tenant.id, SessionId::generate(), None).unwrap();
        self.pool.client(&self.tenant, &placement).unwrap()
    }

    async fn greet(&self) -> Result<String, Status> {
        let greeting = self.client().init_worker_session(InitWorkerSessionRequest::default()).await?;
        Ok(greeting.into_inner().worker)
    }
}

#[tokio::test]
async fn a_worker_is_met_under_its_tenants_name_and_meets_the_front() {
    let (tasks, authority) = (Tasks::new(), Authority::new());
    let (address, _worker) = run_worker(&tasks, "127.0.0.1:0", Some(authority.worker("heron"))).await;
    assert_eq!(Front::new(&tasks, address, Some(authority.front())).greet().await.unwrap(), "met the front");
}

#[tokio::test]
async fn a_worker_of_another_tenant_at_the_same_address_is_not_spoken_to() {
    let (tasks, authority) = (Tasks::new(), Authority::new());
    let (address, _worker) = run_worker(&tasks, "127.0.0.1:0", Some(authority.worker("plover"))).await;
    let refused = Front::new(&tasks, address, Some(authority.front())).greet().await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
}

#[tokio::test]
async fn a_worker_that_comes_back_at_its_address_is_called_again() {
    let tasks = Tasks::new();
    let (address, worker) = run_worker(&tasks, "127.0.0.1:0", None).await;
    let front = Front::new(&tasks, address, None);
    front.greet().await.unwrap();
    drop(worker);
    let gone = async {
        while front.greet().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(10), gone).await.expect("the worker has gone, and answers");
    let (_, _worker) = run_worker(&tasks, &address.to_string(), None).await;
    let again = async {
        while front.greet().await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(10), again).await.expect("the worker is back, and nobody calls");
}

/// Between front and worker: counts connections, and can turn into a black hole, as a node that loses its network.
struct Wire {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    is_cut: Arc<AtomicBool>,
}

async fn wire(tasks: &Tasks, worker: SocketAddr) -> Wire {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (connections, is_cut) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let wire = Wire { address, connections: Arc::clone(&connections), is_cut: Arc::clone(&is_cut) };
    let carriers = tasks.clone();
    let accept = async move {
        while let Ok((front, _)) = listener.accept().await {
            connections.fetch_add(1, Ordering::Relaxed);
            let worker = TcpStream::connect(worker).await.unwrap();
            let ((front_reads, front_writes), (worker_reads, worker_writes)) =
                (front.into_split(), worker.into_split());
            for (mut from, mut to) in [(front_reads, worker_writes), (worker_reads, front_writes)] {
                let is_cut = Arc::clone(&is_cut);
                drop(carriers.spawn("wire", async move {
                    let mut bytes = vec![0; 16 * 1024];
                    while let Ok(count @ 1..) = tokio::io::AsyncReadExt::read(&mut from, &mut bytes).await {
                        if !is_cut.load(Ordering::Relaxed) && to.write_all(&bytes[..count]).await.is_err() {
                            return;
                        }
                    }
                }));
            }
        }
    };
    let stopping = tasks.stopping();
    drop(tasks.spawn("wires", async move { stopping.run_until_cancelled(accept).await }));
    wire
}

#[tokio::test]
async fn a_worker_that_falls_silent_in_mid_step_is_noticed_within_five_seconds() {
    let tasks = Tasks::new();
    let (address, _worker) = run_worker(&tasks, "127.0.0.1:0", None).await;
    let wire = wire(&tasks, address).await;
    let front = Front::new(&tasks, wire.address, None);
    let mut step = front.client().execute_step(futures::stream::pending()).await.unwrap().into_inner();
    wire.is_cut.store(true, Ordering::Relaxed);
    let cut_at = Instant::now();
    let lost = timeout(Duration::from_secs(20), step.message()).await.expect("nobody noticed");
    assert!(lost.is_err());
    assert!(cut_at.elapsed() < Duration::from_secs(6), "{:?}", cut_at.elapsed());
}

#[tokio::test]
async fn all_calls_to_a_worker_share_one_connection() {
    let tasks = Tasks::new();
    let (address, _worker) = run_worker(&tasks, "127.0.0.1:0", None).await;
    let wire = wire(&tasks, address).await;
    let front = Front::new(&tasks, wire.address, None);
    for _ in 0..5 {
        front.greet().await.unwrap();
    }
    assert_eq!(wire.connections.load(Ordering::Relaxed), 1);
}
