//! Fronts and a worker in this process, and clients of two tenants.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use croft_e2e::client::Client;
use croft_front::app::{Parts, assemble, public_routes, seen, serve_public};
use croft_front::core::{Core, Options};
use croft_front::counters::{self, Counters};
use croft_front::events::relay::Relay;
use croft_front::events::relay::memory::MemoryRelay;
use croft_front::gateway;
use croft_front::identity::api_key;
use croft_front::session::Session;
use croft_front::store::Stores;
use croft_front::tenants::Tenants;
use croft_llm::Providers;
use croft_proto::id::TenantId;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::watch_routes_response::Change;
use croft_proto::v1::{
    RouteDelta, RouteSnapshot, SendMessageResponse, SessionEvent, StopReason, TenantAdmission, TenantLimits,
    TenantRoute, WatchRoutesResponse, WorkerRoute,
};
use croft_serve::connections::{Bounds, Connections};
use croft_serve::{Metrics, Readiness, Tasks};
use croft_worker::tools::Builtins;
use croft_worker::{McpServer, RuntimeOptions, RuntimeServer};
use secrecy::ExposeSecret;
use tokio::net::TcpListener;
use tonic::Streaming;
use tonic::service::Routes;

use crate::liar::Liar;
use crate::nap::Nap;
use crate::trace::Trace;

/// A bound of a second is missed, and rightly, by a process that stands still for longer.
pub(crate) const STALL: Duration = Duration::from_millis(200);
/// Longer than anything here takes, and than a busy machine stands still; what it bounds has failed.
pub(crate) const PATIENCE: Duration = Duration::from_mins(2);

/// What a world is made from.
pub(crate) struct Ground {
    pub(crate) stores: Stores,
    pub(crate) relay: Arc<dyn Relay>,
    pub(crate) counters: Arc<dyn Counters>,
    pub(crate) limits: TenantLimits,
    pub(crate) options: Options,
    pub(crate) mcp_servers: Vec<McpServer>,
    /// Tools that agents may have beside those that every world has.
    pub(crate) builtins: Builtins,
}

impl Default for Ground {
    fn default() -> Self {
        let (stores, relay) = (Stores::memory(), Arc::new(MemoryRelay::default()));
        let counters = Arc::new(counters::memory::Memory::default());
        let (limits, options) = (TenantLimits::default(), Options::default());
        Self { stores, relay, counters, limits, options, mcp_servers: Vec::new(), builtins: Builtins::default() }
    }
}

/// A front and a worker, and a key for a tenant.
pub(crate) struct World {
    pub(crate) core: Arc<Core>,
    /// Its ports.
    pub(crate) grpc: SocketAddr,
    pub(crate) http: SocketAddr,
    /// Of the front.
    pub(crate) metrics: Metrics,
    relay: Arc<dyn Relay>,
    counters: Arc<dyn Counters>,
    pub(crate) api_key: String,
    pub(crate) stranger_key: String,
    pub(crate) tasks: Tasks,
    /// The route of the tenant `acme`, as it was told last.
    route: Mutex<TenantRoute>,
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::with_limits(TenantLimits::default()).await
    }

    pub(crate) async fn with_limits(limits: TenantLimits) -> Self {
        Self::over(Stores::memory(), limits).await
    }

    pub(crate) async fn over(stores: Stores, limits: TenantLimits) -> Self {
        Self::on(Ground { stores, limits, ..Ground::default() }).await
    }

    pub(crate) async fn on(ground: Ground) -> Self {
        let Ground { stores, relay, counters, limits, options: front_options, mcp_servers, builtins } = ground;
        let tasks = Tasks::new();
        let worker = worker(RuntimeOptions { mcp_servers, ..of_acme("worker-0") }, builtins, &tasks).await;

        let tenants = Tenants::new();
        let mut routes = Vec::new();
        let mut api_keys = Vec::new();
        for name in ["acme", "stranger"] {
            let tenant = TenantId::generate();
            stores.tenants.upsert(tenant, name).await.unwrap();
            let (record, key) = api_key::generate(tenant, name).unwrap();
            stores.keys.insert(&record, None).await.unwrap();
            api_keys.push(key.expose_secret().to_owned());
            routes.push(TenantRoute {
                tenant_id: tenant.to_string(),
                name: name.into(),
                namespace: format!("tenant-{name}"),
                admission: TenantAdmission::Open.into(),
                workers: (name == "acme").then(|| worker.clone()).into_iter().collect(),
                limits: Some(limits),
                tier: "standard".into(),
                ..TenantRoute::default()
            });
        }
        let route = Mutex::new(routes[0].clone());
        let snapshot = Change::Snapshot(RouteSnapshot { tenants: routes });
        tenants.apply(WatchRoutesResponse { version: 1, change: Some(snapshot) });

        let parts = Parts {
            replica: "front-0".into(),
            stores,
            relay: Arc::clone(&relay),
            counters: Arc::clone(&counters),
            tenants,
            tls: None,
            options: front_options,
        };
        let (core, grpc, http, metrics) = serve(parts, &tasks).await;
        let stranger_key = api_keys.pop().unwrap();
        Self {
            core,
            grpc,
            http,
            metrics,
            relay,
            counters,
            api_key: api_keys.pop().unwrap(),
            stranger_key,
            tasks,
            route,
        }
    }

    /// A client of another replica, which shares all but its process.
    pub(crate) async fn client_of_another_front(&self) -> Client {
        self.client_of_a_front_with(&self.tasks).await
    }

    /// The same, of one that can be shut down by itself.
    pub(crate) async fn client_of_a_front_with(&self, tasks: &Tasks) -> Client {
        let (grpc, _) = self.front_with(tasks).await;
        Client::new(&grpc.to_string(), &self.api_key).unwrap()
    }

    /// The ports of such a one.
    pub(crate) async fn front_with(&self, tasks: &Tasks) -> (SocketAddr, SocketAddr) {
        let parts = Parts {
            replica: "front-1".into(),
            stores: self.core.stores.clone(),
            relay: Arc::clone(&self.relay),
            counters: Arc::clone(&self.counters),
            tenants: self.core.tenants.clone(),
            tls: None,
            options: self.core.options.clone(),
        };
        let (_, grpc, http, _) = serve(parts, tasks).await;
        (grpc, http)
    }

    /// Another replica, which knows these tenants.
    pub(crate) async fn another_front(&self, tenants: Tenants) {
        let parts = Parts {
            replica: "front-2".into(),
            stores: self.core.stores.clone(),
            relay: Arc::clone(&self.relay),
            counters: Arc::clone(&self.counters),
            tenants,
            tls: None,
            options: self.core.options.clone(),
        };
        serve(parts, &self.tasks).await;
    }

    /// The tenant `acme`.
    pub(crate) fn tenant(&self) -> TenantId {
        self.core.tenants.by_name("acme").unwrap().id
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(&self.grpc.to_string(), &self.api_key).unwrap()
    }

    pub(crate) fn stranger(&self) -> Client {
        Client::new(&self.grpc.to_string(), &self.stranger_key).unwrap()
    }

    /// The address of its worker.
    pub(crate) fn worker(&self) -> String {
        self.route.lock().unwrap().workers[0].address.clone()
    }

    /// Changes the route of the tenant `acme`, as the operator does.
    pub(crate) fn reroute(&self, change: impl FnOnce(&mut TenantRoute)) {
        let mut route = self.route.lock().unwrap();
        change(&mut route);
        let delta = Change::Delta(RouteDelta { upserts: vec![route.clone()], removed_tenant_ids: Vec::new() });
        self.core.tenants.apply(WatchRoutesResponse { version: 2, change: Some(delta) });
    }

    /// Gives the tenant `stranger` a worker.
    pub(crate) fn route_stranger_to(&self, address: &str) {
        let stranger = self.core.tenants.by_name("stranger").unwrap();
        let worker = WorkerRoute { name: "worker-0".into(), address: address.into(), ready: true, sessions_max: 50 };
        let route = TenantRoute {
            tenant_id: stranger.id.to_string(),
            name: "stranger".into(),
            namespace: "tenant-stranger".into(),
            admission: TenantAdmission::Open.into(),
            workers: vec![worker],
            limits: Some(TenantLimits::default()),
            tier: "standard".into(),
            ..TenantRoute::default()
        };
        let delta = Change::Delta(RouteDelta { upserts: vec![route], removed_tenant_ids: Vec::new() });
        self.core.tenants.apply(WatchRoutesResponse { version: 2, change: Some(delta) });
    }

    /// The session as it is stored.
    pub(crate) async fn stored(&self, session_id: &str) -> Session {
        self.core.stores.sessions.get(self.tenant(), session_id.parse().unwrap()).await.unwrap().unwrap()
    }

    /// The first hundred events of the stored session behind this number.
    pub(crate) async fn log(&self, session_id: &str, after_seq: u64) -> Vec<SessionEvent> {
        self.core.stores.events.read(self.tenant(), session_id.parse().unwrap(), after_seq, 100).await.unwrap()
    }

    /// Waits until the stored session is as it should be.
    pub(crate) async fn wait_for(&self, session_id: &str, holds: impl Fn(&Session) -> bool) -> Session {
        let reached = async {
            loop {
                let session = self.stored(session_id).await;
                if holds(&session) {
                    return session;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let Ok(session) = tokio::time::timeout(PATIENCE, reached).await else {
            panic!("not reached: {:?}", self.stored(session_id).await);
        };
        session
    }
}

/// What a worker of the tenant `acme` is.
pub(crate) fn of_acme(name: &str) -> RuntimeOptions {
    RuntimeOptions { require_front_certificate: false, ..RuntimeOptions::new("acme", name, "tenant-acme") }
}

/// Serves a worker, for as long as these tasks run. The way to it, with room for fifty sessions whatever it says itself.
pub(crate) async fn worker(options: RuntimeOptions, builtins: Builtins, tasks: &Tasks) -> WorkerRoute {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (name, address) = (options.worker.clone(), listener.local_addr().unwrap().to_string());
    let providers = Providers::default().with(croft_llm::scripted::Scripted::new()).with(Liar);
    let builtins = builtins.with("nap", Nap).with("trace", Trace);
    let runtime = RuntimeServer::with_builtins(options, providers, builtins, tasks.clone());
    let (routes, metrics) = (Routes::new(runtime.service()), Metrics::new("croft-worker").unwrap());
    croft_serve::grpc::serve("worker", listener, None, routes, croft_proto::METHODS, tasks, &metrics).unwrap();
    WorkerRoute { name, address, ready: true, sessions_max: 50 }
}

/// Serves a front on ports of its own, as its program does.
async fn serve(parts: Parts, tasks: &Tasks) -> (Arc<Core>, SocketAddr, SocketAddr, Metrics) {
    let (metrics, readiness) = (Metrics::new("croft-front").unwrap(), Readiness::new());
    let core = assemble(parts, tasks, metrics.registry()).await.unwrap();
    let public = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let web = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (grpc, http) = (public.local_addr().unwrap(), web.local_addr().unwrap());
    let calls = seen(public_routes(&core, &readiness, true).await.unwrap(), &metrics);
    serve_public(Connections::new(public, "grpc", Bounds::default(), &metrics), &core, calls.clone());
    let web = Connections::new(web, "http", Bounds::default(), &metrics);
    gateway::serve(web, &core, calls, Vec::new(), &readiness, metrics.registry()).unwrap();
    (core, grpc, http, metrics)
}

pub(crate) async fn read_all(mut events: Streaming<SendMessageResponse>) -> Vec<SessionEvent> {
    let mut seen = Vec::new();
    while let Some(response) = events.message().await.unwrap() {
        seen.push(response.event.unwrap());
    }
    seen
}

pub(crate) fn stop_reason(events: &[SessionEvent]) -> Option<StopReason> {
    match events.last()?.kind.as_ref()? {
        Kind::SessionIdle(idle) => Some(idle.stop_reason()),
        _ => None,
    }
}

pub(crate) fn names(events: &[SessionEvent]) -> Vec<&'static str> {
    events
        .iter()
        .filter(|event| event.seq > 0)
        .map(|event| match event.kind.as_ref().unwrap() {
            Kind::SessionCreated(_) => "created",
            Kind::SessionReady(_) => "ready",
            Kind::SessionRunning(_) => "running",
            Kind::SessionIdle(_) => "idle",
            Kind::SessionTerminated(_) => "terminated",
            Kind::UserMessage(_) => "user",
            Kind::AgentMessage(_) => "agent",
            Kind::ModelAttempt(_) => "attempt",
            Kind::CheckpointTaken(_) => "checkpoint",
            Kind::StepStarted(_) => "step",
            Kind::StepCompleted(_) => "stepped",
            Kind::ToolCall(_) => "call",
            Kind::ToolResult(_) => "result",
            _ => "other",
        })
        .collect()
}
