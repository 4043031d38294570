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
use croft_proto::v1::execute_step_response::Message as Said;
use croft_proto::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::watch_routes_response::Change;
use croft_proto::v1::{
    AgentMessage, CheckpointRequest, CheckpointResponse, ContentBlock, ExecuteStepRequest, ExecuteStepResponse,
    InitWorkerSessionRequest, InitWorkerSessionResponse, ModelAttempt, RouteSnapshot,
    RuntimeServiceTerminateSessionRequest, RuntimeServiceTerminateSessionResponse, SessionEvent, StepEvent,
    TenantRoute, WatchRoutesResponse, WorkerRoute,
};
use croft_serve::Tasks;
use croft_serve::tls::{PeerRole, TlsFiles, peer_role};
use futures::{Stream, StreamExt};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::authority::Authority;
use crate::port::Port;

/// Longer than anything here takes; what it bounds has failed.
const PATIENCE: Duration = Duration::from_secs(90);

/// Parts that say nothing: two bytes each on the wire, and some hundreds as values.
const MANY: usize = 500_000;

/// A worker that greets, and then has nothing to say.
#[derive(Default)]
struct Worker {
    /// It says a great deal of nothing, once it is asked.
    is_hostile: bool,
}

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
        let said = self.is_hostile.then(|| {
            let message = AgentMessage { content: vec![ContentBlock::default(); MANY], ..AgentMessage::default() };
            let event = SessionEvent { kind: Some(Kind::AgentMessage(message)), ..SessionEvent::default() };
            let event = StepEvent { event_index: 1, event: Some(event) };
            Ok(ExecuteStepResponse { message: Some(Said::Event(event)) })
        });
        Ok(Response::new(futures::stream::iter(said).chain(futures::stream::pending()).boxed()))
    }

    async fn checkpoint(&self, _: Request<CheckpointRequest>) -> Result<Response<CheckpointResponse>, Status> {
        Ok(Response::new(CheckpointResponse::default()))
    }

    async fn terminate_session(
        &self,
        _: Request<RuntimeServiceTerminateSessionRequest>,
    ) -> Result<Response<RuntimeServiceTerminateSessionResponse>, Status> {
        let attempts = if self.is_hostile { MANY } else { 0 };
        Ok(Response::new(RuntimeServiceTerminateSessionResponse {
            untold_attempts: vec![ModelAttempt::default(); attempts],
            ..RuntimeServiceTerminateSessionResponse::default()
        }))
    }
}

/// Runs a worker until the guard is dropped.
async fn run_worker(tasks: &Tasks, address: &str, tls: Option<TlsFiles>) -> (SocketAddr, DropGuard) {
    run(tasks, address, tls, Worker::default()).await
}

async fn run(tasks: &Tasks, address: &str, tls: Option<TlsFiles>, worker: Worker) -> (SocketAddr, DropGuard) {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let closing = CancellationToken::new();
    let closed = closing.clone().cancelled_owned();
    let mut server = Server::builder();
    if let Some(tls) = tls {
        server = server.tls_config(tls.server()).unwrap();
    }
    let router = server.add_service(RuntimeServiceServer::new(worker));
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
    let port = Port::free();
    let (address, worker) = run_worker(&tasks, &format!("127.0.0.1:{}", port.number()), None).await;
    let front = Front::new(&tasks, address, None);
    front.greet().await.unwrap();
    drop(worker);
    let gone = async {
        while front.greet().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("the worker has gone, and answers");
    let (_, _worker) = run_worker(&tasks, &address.to_string(), None).await;
    let again = async {
        while front.greet().await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, again).await.expect("the worker is back, and nobody calls");
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
    // The time that this runtime had: while the machine stalls nobody has any.
    let tenths = AtomicUsize::new(0);
    let clock = async {
        loop {
            sleep(Duration::from_millis(100)).await;
            tenths.fetch_add(1, Ordering::Relaxed);
        }
    };
    let lost = tokio::select! {
        lost = timeout(PATIENCE, step.message()) => lost.expect("nobody noticed"),
        () = clock => unreachable!("it does not end"),
    };
    assert!(lost.is_err());
    let tenths = tenths.into_inner();
    assert!(tenths <= 60, "it took {tenths} tenths of a second");
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

/// Such a message was decoded, and took hundreds of megabytes: one for each front was the end of them all.
#[tokio::test]
async fn a_worker_that_says_a_great_deal_of_nothing_is_not_listened_to() {
    let tasks = Tasks::new();
    let (address, _worker) = run(&tasks, "127.0.0.1:0", None, Worker { is_hostile: true }).await;
    let front = Front::new(&tasks, address, None);
    let mut step = front.client().execute_step(futures::stream::pending()).await.unwrap().into_inner();
    for _ in 0..2 {
        let broken = step.message().await.unwrap_err();
        assert_eq!((broken.code(), broken.message()), (Code::Internal, "what the worker said has too many parts"));
    }
    let request = RuntimeServiceTerminateSessionRequest::default();
    let broken = front.client().terminate_session(request).await.unwrap_err();
    assert_eq!(broken.message(), "what the worker said has too many parts", "{broken:?}");
    front.greet().await.unwrap();
}
