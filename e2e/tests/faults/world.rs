//! Two fronts and the workers of two tenants in one process, with all that is between them in the hands of chance.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use croft_front::app::{Parts, assemble};
use croft_front::core::{Core, Options};
use croft_front::counters::memory::Memory;
use croft_front::door::Door;
use croft_front::events::relay::memory::MemoryRelay;
use croft_front::identity::{Identity, Role};
use croft_front::lifecycle::Lifecycle;
use croft_front::store::Stores;
use croft_front::tenants::Tenants;
use croft_llm::{Providers, retry};
use croft_proto::id::TenantId;
use croft_proto::v1::watch_routes_response::Change;
use croft_proto::v1::{RouteSnapshot, TenantAdmission, TenantRoute, WatchRoutesResponse, WorkerRoute};
use croft_serve::Tasks;
use croft_worker::{RuntimeOptions, RuntimeServer};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::chaos::{Chaos, Fault, Plan};
use crate::dice::Dice;
use crate::gate::{Gate, GatedRelay};
use crate::pipe::Network;
use crate::tools::{Counted, Deeds};

const TENANTS: [&str; 2] = ["heron", "plover"];
const FRONTS: usize = 2;

/// A front that runs, or ran.
#[derive(Clone)]
pub(crate) struct Front {
    pub(crate) core: Arc<Core>,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) dead: CancellationToken,
}

struct Worker {
    tenant: usize,
    route: WorkerRoute,
    dead: CancellationToken,
}

pub(crate) struct World {
    /// As they are, behind every gate.
    pub(crate) stores: Stores,
    pub(crate) chaos: Arc<Chaos>,
    pub(crate) deeds: Deeds,
    pub(crate) identities: Vec<Identity>,
    tenants: Tenants,
    relay: MemoryRelay,
    counters: Arc<Memory>,
    network: Network,
    tasks: Tasks,
    fronts: Mutex<Vec<Front>>,
    workers: Mutex<Vec<Worker>>,
    /// Of fronts and workers so far.
    names: Mutex<u64>,
}

impl World {
    pub(crate) async fn start(dice: Dice, plan: Plan) -> Arc<Self> {
        let (chaos, faults) = Chaos::new(dice, plan);
        let stores = Stores::memory();
        let mut identities = Vec::new();
        for name in TENANTS {
            let tenant = TenantId::generate();
            stores.tenants.upsert(tenant, name).await.unwrap();
            identities.push(Identity {
                tenant,
                tenant_name: name.into(),
                actor: "test".into(),
                roles: Role::Admin.into(),
            });
        }
        let world = Arc::new(Self {
            stores,
            chaos,
            deeds: Deeds::default(),
            identities,
            tenants: Tenants::new(),
            relay: MemoryRelay::default(),
            counters: Arc::default(),
            network: Network::default(),
            tasks: Tasks::new(),
            fronts: Mutex::default(),
            workers: Mutex::default(),
            names: Mutex::default(),
        });
        for tenant in [0, 0, 1] {
            let name = world.name("worker");
            world.start_worker(tenant, &name);
        }
        world.tell_routes();
        for _ in 0..FRONTS {
            world.start_front().await;
        }
        drop(world.tasks.spawn("world", Arc::clone(&world).bring_about(faults)));
        world
    }

    fn name(&self, of: &str) -> String {
        let mut names = self.names.lock().unwrap();
        *names += 1;
        format!("{of}-{names}")
    }

    async fn start_front(self: &Arc<Self>) {
        let gate = Gate::new(Arc::clone(&self.chaos));
        let tasks = Tasks::new();
        let parts = Parts {
            replica: self.name("front"),
            stores: gate.stores(&self.stores),
            relay: Arc::new(GatedRelay { gate: gate.clone(), behind: self.relay.clone(), tasks: tasks.clone() }),
            counters: self.counters.clone(),
            tenants: self.tenants.clone(),
            tls: None,
            options: Options { turn_timeout: Duration::from_mins(3), ..Options::default() },
        };
        let core = assemble(parts, &tasks, &prometheus::Registry::new()).await.unwrap();
        core.workers.dial_by(self.network.dial(&gate));
        let lifecycle = Lifecycle::new(Arc::clone(&core), Door::Public);
        let dead = gate.dead.clone();
        self.fronts.lock().unwrap().push(Front { core, lifecycle, dead: dead.clone() });
        drop(self.tasks.spawn("front-replacement", Arc::clone(self).replace_front(dead)));
    }

    /// Whoever kills a front, another takes its place. Boxed, as that one will be replaced in turn.
    fn replace_front(self: Arc<Self>, dead: CancellationToken) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            dead.cancelled().await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            self.start_front().await;
        })
    }

    fn start_worker(&self, tenant: usize, name: &str) {
        let route =
            WorkerRoute { name: name.to_owned(), address: format!("{name}.test:50052"), ready: true, sessions_max: 50 };
        let (tasks, dead) = (Tasks::new(), CancellationToken::new());
        let options = RuntimeOptions {
            require_front_certificate: false,
            retry: retry::Policy { jitter: false, ..retry::Policy::default() },
            ..RuntimeOptions::new(TENANTS[tenant], name, format!("tenant-{}", TENANTS[tenant]))
        };
        let providers = Providers::new().with(Counted(self.deeds.clone()));
        let runtime = RuntimeServer::with_builtins(options, providers, self.deeds.builtins(), tasks.clone());
        let accepted = self.network.listen(&route.address, dead.clone());
        let accepted = UnboundedReceiverStream::new(accepted).map(Ok::<_, std::io::Error>);
        let server = Server::builder().add_service(runtime.service());
        drop(tasks.spawn("worker", server.serve_with_incoming(accepted)));
        self.workers.lock().unwrap().push(Worker { tenant, route, dead });
    }

    fn tell_routes(&self) {
        let workers = self.workers.lock().unwrap();
        let routes = (0..TENANTS.len()).map(|tenant| TenantRoute {
            tenant_id: self.identities[tenant].tenant.to_string(),
            name: TENANTS[tenant].into(),
            namespace: format!("tenant-{}", TENANTS[tenant]),
            admission: TenantAdmission::Open.into(),
            workers: workers
                .iter()
                .filter(|worker| worker.tenant == tenant)
                .map(|worker| worker.route.clone())
                .collect(),
            tier: "standard".into(),
            ..TenantRoute::default()
        });
        let snapshot = RouteSnapshot { tenants: routes.collect() };
        self.tenants.apply(WatchRoutesResponse { version: 1, change: Some(Change::Snapshot(snapshot)) });
    }

    async fn bring_about(self: Arc<Self>, mut faults: mpsc::UnboundedReceiver<Fault>) {
        while let Some(fault) = faults.recv().await {
            match fault {
                Fault::KillWorker { restarts } => self.kill_worker(restarts),
                Fault::CutStream => self.network.cut(),
                // Brought about where they are due.
                Fault::KillFront
                | Fault::PauseFront { .. }
                | Fault::Refuse
                | Fault::NoAnswer
                | Fault::Outage { .. }
                | Fault::CutRelay { .. }
                | Fault::DropReaders => {}
            }
        }
    }

    fn kill_worker(self: &Arc<Self>, restarts: bool) {
        let gone = {
            let mut workers = self.workers.lock().unwrap();
            if workers.is_empty() {
                // The last was killed a moment ago, and none has come in its place.
                return;
            }
            let place = usize::try_from(self.chaos.roll(workers.len() as u64)).expect("a place among few");
            workers.remove(place)
        };
        gone.dead.cancel();
        let world = Arc::clone(self);
        let after = Duration::from_millis(self.chaos.roll(2_500));
        drop(self.tasks.spawn("worker-replacement", async move {
            if restarts {
                // The same pod: fronts hear nothing of it.
                tokio::time::sleep(after).await;
                world.start_worker(gone.tenant, &gone.route.name);
            } else {
                tokio::time::sleep(after / 2).await;
                world.tell_routes();
                tokio::time::sleep(after / 2).await;
                let name = world.name("worker");
                world.start_worker(gone.tenant, &name);
            }
            world.tell_routes();
        }));
    }

    /// Any front that lives, once there is one.
    pub(crate) async fn front(&self) -> Front {
        loop {
            if let Some(front) = self.any_front() {
                return front;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn any_front(&self) -> Option<Front> {
        let mut fronts = self.fronts.lock().unwrap();
        fronts.retain(|front| !front.dead.is_cancelled());
        if fronts.is_empty() {
            return None;
        }
        let place = self.chaos.roll(fronts.len() as u64);
        fronts.get(usize::try_from(place).expect("a place among few")).cloned()
    }

    /// How all stands, for whoever must find out why nothing goes on.
    pub(crate) async fn picture(&self) -> String {
        let mut picture = String::new();
        for identity in &self.identities {
            let filter = croft_front::session::store::Filter::default();
            for session in self.stores.sessions.list(identity.tenant, &filter, None, 10).await.unwrap().sessions {
                let events = self.stores.events.read(identity.tenant, session.id, 0, 10_000).await.unwrap();
                let tail: Vec<_> = events.iter().rev().take(12).map(|event| format!("{:?}", event.kind)).collect();
                let state = (session.state, session.input_seq, session.newest_input_seq, session.turn_id);
                write!(picture, "\n{state:?}\n  {}", tail.join("\n  ")).unwrap();
            }
        }
        picture
    }
}
