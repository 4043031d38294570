//! What the five steps of `CreateSession` promise over every store: a failure at any of them leaves nothing behind, neither a row
//! nor a key, nor a worker's room, nor a session at the worker.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use croft_front::Error;
use croft_front::app::{Parts, assemble};
use croft_front::core::{Core, Options};
use croft_front::counters::memory::Memory;
use croft_front::events::relay::memory::MemoryRelay;
use croft_front::identity::{Identity, Role};
use croft_front::limits::rates::Rates;
use croft_front::session::Session;
use croft_front::session::manager::Manager;
use croft_front::session::store::{Filter, Page};
use croft_front::store::Stores;
use croft_front::tenants::Tenants;
use croft_proto::id::TenantId;
use croft_proto::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use croft_proto::v1::watch_routes_response::Change;
use croft_proto::v1::{
    AgentSpec, CheckpointRequest, CheckpointResponse, CreateSessionRequest, ExecuteStepRequest, ExecuteStepResponse,
    InitWorkerSessionRequest, InitWorkerSessionResponse, RouteSnapshot, RuntimeServiceTerminateSessionRequest,
    RuntimeServiceTerminateSessionResponse, TenantAdmission, TenantLimits, TenantRoute, WatchRoutesResponse,
    WorkerRoute,
};
use croft_serve::Tasks;
use futures::{Stream, StreamExt};
use tokio::net::TcpListener;
use tokio::sync::Barrier;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use super::doubles::{Call, Outage, hooked};
use super::fixtures::tenant;

/// Longer than anything takes, however busy the machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// How a worker takes a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Mood {
    #[default]
    Willing,
    Refusing,
    /// It takes the session, and never says so.
    Hanging,
    /// It takes the session, and is not heard to.
    Breaking,
}

/// A worker that knows its sessions by name alone.
#[derive(Clone, Default)]
struct Worker {
    mood: Arc<Mutex<Mood>>,
    sessions: Arc<Mutex<BTreeSet<String>>>,
    /// How often it was asked to take one.
    asked: Arc<AtomicU32>,
}

impl Worker {
    fn knows(&self) -> BTreeSet<String> {
        self.sessions.lock().unwrap().clone()
    }
}

#[tonic::async_trait]
impl RuntimeService for Worker {
    async fn init_worker_session(
        &self,
        request: Request<InitWorkerSessionRequest>,
    ) -> Result<Response<InitWorkerSessionResponse>, Status> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let mood = *self.mood.lock().unwrap();
        if mood == Mood::Refusing {
            return Err(Status::failed_precondition("not today"));
        }
        self.sessions.lock().unwrap().insert(request.into_inner().session_id);
        match mood {
            Mood::Hanging => std::future::pending().await,
            Mood::Breaking => return Err(Status::unavailable("the connection broke")),
            Mood::Willing | Mood::Refusing => {}
        }
        Ok(Response::new(InitWorkerSessionResponse::default()))
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
        request: Request<RuntimeServiceTerminateSessionRequest>,
    ) -> Result<Response<RuntimeServiceTerminateSessionResponse>, Status> {
        self.sessions.lock().unwrap().remove(&request.into_inner().session_id);
        Ok(Response::new(RuntimeServiceTerminateSessionResponse::default()))
    }
}

/// A front over these stores, and a worker with room for one session at a time.
struct Scene {
    core: Arc<Core>,
    manager: Manager,
    identity: Identity,
    worker: Worker,
    tenant: TenantId,
    route: TenantRoute,
    tasks: Tasks,
}

impl Scene {
    async fn new(stores: &Stores) -> Self {
        Self::over(stores.clone(), tenant(stores, "ours").await).await
    }

    async fn over(stores: Stores, tenant: TenantId) -> Self {
        Self::with(stores, tenant, Options::default()).await
    }

    async fn with(stores: Stores, tenant: TenantId, options: Options) -> Self {
        let (tasks, worker, tenants) = (Tasks::new(), Worker::default(), Tenants::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = Server::builder().add_service(RuntimeServiceServer::new(worker.clone()));
        let stopping = tasks.stopping().cancelled_owned();
        drop(tasks.spawn("worker", server.serve_with_incoming_shutdown(TcpIncoming::from(listener), stopping)));
        let route = TenantRoute {
            tenant_id: tenant.to_string(),
            name: "ours".to_owned(),
            namespace: "tenant-ours".to_owned(),
            admission: TenantAdmission::Open.into(),
            workers: vec![WorkerRoute { name: "worker-0".to_owned(), address, ready: true, sessions_max: 1 }],
            limits: Some(TenantLimits { sessions_max: 1, ..TenantLimits::default() }),
            ..TenantRoute::default()
        };
        let relay = Arc::new(MemoryRelay::default());
        let replica = "front-0".to_owned();
        let counters = Arc::new(Memory::default());
        let parts = Parts { replica, stores, relay, counters, tenants, tls: None, options };
        let core = assemble(parts, &tasks, &prometheus::Registry::new()).await.unwrap();
        let identity =
            Identity { tenant, tenant_name: "ours".to_owned(), actor: "test".to_owned(), roles: Role::Admin.into() };
        let scene = Self { manager: Manager::new(Arc::clone(&core)), core, identity, worker, tenant, route, tasks };
        scene.reroute(|_| ());
        scene
    }

    /// Tells the front of the tenant's route with this changed.
    fn reroute(&self, change: impl FnOnce(&mut TenantRoute)) {
        let mut route = self.route.clone();
        change(&mut route);
        let change = Some(Change::Snapshot(RouteSnapshot { tenants: vec![route] }));
        self.core.tenants.apply(WatchRoutesResponse { version: 1, change });
    }

    async fn create(&self, model: &str) -> Result<Session, Error> {
        let agent = AgentSpec { name: "helper".into(), model: model.into(), ..AgentSpec::default() };
        let request = CreateSessionRequest {
            agent: Some(agent),
            idempotency_key: "the same each time".into(),
            ..CreateSessionRequest::default()
        };
        self.manager.create(&self.identity, request).await
    }

    /// The same request succeeds: no row, no key, no room is taken. Then the session is ended, for the next try.
    async fn assert_nothing_is_left(&self, what: &str) {
        let sessions = &self.core.stores.sessions;
        let before = sessions.list(self.tenant, &Filter::default(), None, 10).await.unwrap();
        assert_eq!(before, Page::default(), "after {what}");
        assert_eq!(sessions.count_open(self.tenant).await.unwrap(), 0, "after {what}");
        let forgotten = async {
            while !self.worker.knows().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, forgotten).await.expect("the worker still knows it");
        let created = self.create("scripted-1").await.unwrap_or_else(|error| panic!("after {what}: {error}"));
        assert_eq!(self.worker.knows(), BTreeSet::from([created.id.to_string()]), "after {what}");
    }

    async fn end(self) {
        assert_eq!(self.tasks.shutdown(PATIENCE).await, 0);
    }
}

fn mood(mood: Mood) -> impl Fn(&Scene) {
    move |scene| *scene.worker.mood.lock().unwrap() = mood
}

pub(crate) async fn leaves_nothing_behind_when_a_step_fails(stores: &Stores) {
    type Change = Box<dyn Fn(&Scene)>;
    let cordoned: Change = Box::new(|scene| scene.reroute(|route| route.set_admission(TenantAdmission::Cordoned)));
    let homeless: Change = Box::new(|scene| scene.reroute(|route| route.workers.clear()));
    let unreachable: Change = Box::new(|scene| {
        // Nothing listens there.
        scene.reroute(|route| "127.0.0.1:1".clone_into(&mut route.workers[0].address));
    });
    for (step, change, model, reason) in [
        ("authorise", cordoned, "scripted-1", "TENANT_CLOSED"),
        ("resolve", Box::new(|_: &Scene| ()) as Change, "no-such-model", "MODEL_NOT_FOUND"),
        ("place", homeless, "scripted-1", "NO_WORKER"),
        ("initialise, refused", Box::new(mood(Mood::Refusing)), "scripted-1", "WORKER_REFUSED"),
        ("initialise, lost", unreachable, "scripted-1", "WORKER_LOST"),
        ("initialise, broken off", Box::new(mood(Mood::Breaking)), "scripted-1", "WORKER_LOST"),
    ] {
        let scene = Scene::new(stores).await;
        change(&scene);
        let error = scene.create(model).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{step}: {error}");
        mood(Mood::Willing)(&scene);
        scene.reroute(|_| ());
        scene.assert_nothing_is_left(step).await;
        scene.end().await;
    }
}

pub(crate) async fn leaves_nothing_behind_when_the_worker_hangs(stores: &Stores) {
    let scene = Scene::new(stores).await;
    mood(Mood::Hanging)(&scene);
    let error = scene.create("scripted-1").await.unwrap_err();
    assert_eq!(error.reason(), "WORKER_LOST", "{error}");
    mood(Mood::Willing)(&scene);
    scene.assert_nothing_is_left("a worker that hung").await;
    scene.end().await;
}

pub(crate) async fn leaves_nothing_behind_when_it_cannot_be_recorded(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let outage = Outage::of(usize::MAX);
    let sessions = hooked(Arc::clone(&stores.sessions), outage.before(|call| matches!(call, Call::Insert(_))));
    let scene = Scene::over(Stores { sessions, ..stores.clone() }, tenant).await;
    let error = scene.create("scripted-1").await.unwrap_err();
    assert_eq!(error.reason(), "UNAVAILABLE", "{error}");
    outage.end();
    scene.assert_nothing_is_left("a store that was down").await;

    // The tenant is full now, which shows before a worker is asked.
    let request = CreateSessionRequest {
        agent: Some(AgentSpec { name: "helper".into(), model: "scripted-1".into(), ..AgentSpec::default() }),
        ..CreateSessionRequest::default()
    };
    // The worker itself would have room.
    scene.reroute(|route| route.workers[0].sessions_max = 8);
    let asked = scene.worker.asked.load(Ordering::SeqCst);
    let error = scene.manager.create(&scene.identity, request).await.unwrap_err();
    assert_eq!(error.reason(), "SESSION_LIMIT", "{error}");
    assert_eq!(scene.worker.asked.load(Ordering::SeqCst), asked);
    assert_eq!(scene.core.stores.sessions.count_open(tenant).await.unwrap(), 1);
    scene.end().await;
}

pub(crate) async fn tells_a_full_tenant_of_its_sessions_rather_than_of_its_rates(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let rates = Rates { sessions: 1, ..Rates::default() };
    let scene = Scene::with(stores.clone(), tenant, Options { rates, ..Options::default() }).await;
    let agent = AgentSpec { name: "helper".into(), model: "scripted-1".into(), ..AgentSpec::default() };
    let request = CreateSessionRequest { agent: Some(agent), ..CreateSessionRequest::default() };
    let create = async |sessions_max| {
        scene.reroute(|route| {
            route.workers[0].sessions_max = 8;
            route.limits = Some(TenantLimits { sessions_max, ..TenantLimits::default() });
        });
        scene.manager.create(&scene.identity, request.clone()).await
    };
    let refused = loop {
        if let Err(error) = create(8).await {
            break error;
        }
    };
    assert_eq!(refused.reason(), "RATE_LIMITED", "{refused}");
    let refused = create(1).await.unwrap_err();
    assert_eq!(refused.reason(), "SESSION_LIMIT", "{refused}");
    scene.end().await;
}

pub(crate) async fn tells_a_worker_to_forget_what_came_twice(stores: &Stores) {
    let scene = Scene::new(stores).await;
    scene.reroute(|route| {
        route.workers[0].sessions_max = 8;
        route.limits = None;
    });
    let start = Barrier::new(8);
    let creating = (0..8).map(|_| async {
        start.wait().await;
        scene.create("scripted-1").await.unwrap().id
    });
    let ids: BTreeSet<_> = futures::future::join_all(creating).await.into_iter().map(|id| id.to_string()).collect();
    assert_eq!(ids.len(), 1, "one key is one session");
    assert_eq!(scene.worker.knows(), ids, "the worker knows the one that there is");
    scene.end().await;
}
