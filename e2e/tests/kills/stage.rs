//! Two fronts and two workers of one tenant as processes, on PostgreSQL and Redis; each can be killed, and comes back as a pod
//! does.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use croft_e2e::bench::front::authority::Authority;
use croft_e2e::bench::front::routes;
use croft_e2e::bench::launch::{Ports, command, loopback, tls_flags};
use croft_e2e::bench::process::Program;
use croft_e2e::bench::scrape::Scrape;
use croft_e2e::client::Client;
use croft_e2e::programs::beside_tests;
use croft_proto::id::TenantId;
use croft_proto::v1::{TenantAdmission, TenantRoute, WorkerRoute};
use croft_serve::Tasks;
use croft_serve::tls::PeerRole;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::sync::{Mutex, MutexGuard};
use uuid::Uuid;

use crate::relay::Proxy;

const TENANT: &str = "heron";
const PASSWORD: &str = "croft-test";
const FRONT_ROLE: &str = "croft_test_front";

/// A program that is started again under the same name and addresses.
struct Pod {
    name: String,
    arguments: Vec<String>,
    environment: Vec<(&'static str, String)>,
    ops: SocketAddr,
    grpc: SocketAddr,
    http: Option<SocketAddr>,
    program: Program,
}

pub(crate) struct Stage {
    pub(crate) api_key: String,
    fronts: Vec<Pod>,
    workers: Vec<Pod>,
    relay: Proxy,
    /// By a superuser's URL.
    postgres: String,
    /// The same for the stage's own database.
    owner_url: String,
    database: String,
    scratch: PathBuf,
    tasks: Tasks,
    _alone: MutexGuard<'static, ()>,
}

/// Two stages at a time would wait for each other's processors, and take that for a fault.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

fn service(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!("{variable} is not set: `make test-services` starts PostgreSQL and Redis and tells their URLs")
    })
}

fn programs() -> PathBuf {
    beside_tests(&["croft-front", "croft-worker"]).unwrap()
}

fn start(
    name: &str,
    program: &str,
    environment: &[(&'static str, String)],
    arguments: &[String],
    ops: SocketAddr,
    log: &Path,
) -> Program {
    let mut command = command(&programs(), program);
    command.envs(environment.iter().cloned()).args(arguments);
    Program::start(name, command, ops, log).unwrap()
}

/// A database of its own, with all migrations.
struct Migrated {
    database: String,
    owner_url: String,
    /// With the port.
    host: String,
}

async fn migrated(admin: &str) -> Migrated {
    let (server, _) = admin.rsplit_once('/').expect("a URL with a database");
    let (_, host) = server.rsplit_once('@').expect("a URL with a user");
    let database = format!("croft_kills_{}", Uuid::new_v4().simple());
    let role = format!(
        "do $$ begin
            if not exists (select 1 from pg_roles where rolname = '{FRONT_ROLE}') then
                create role {FRONT_ROLE} login password '{PASSWORD}';
            end if;
        exception when duplicate_object or unique_violation then null; end $$"
    );
    execute(admin, &role).await;
    execute(admin, &format!("create database {database}")).await;
    let owner_url = format!("{server}/{database}");
    run("croft-front", &owner_url, &["migrate", &format!("--front-role={FRONT_ROLE}")]).await;
    Migrated { database, owner_url, host: host.to_owned() }
}

/// What programs are told beside what they need.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flags {
    pub(crate) fronts: Vec<String>,
    pub(crate) workers: Vec<String>,
}

/// What programs are made of.
struct Workshop {
    ports: Ports,
    authority: Authority,
    scratch: PathBuf,
}

impl Workshop {
    fn open() -> Self {
        // Of its own, also beside another stage of this process: a front's audit folder belongs to it alone.
        let scratch = std::env::temp_dir().join(format!("croft-kills-{}", Uuid::now_v7()));
        std::fs::create_dir_all(&scratch).unwrap();
        Self { ports: Ports::default(), authority: Authority::new().unwrap(), scratch }
    }

    fn address(&mut self) -> SocketAddr {
        loopback(self.ports.take().unwrap())
    }

    fn workers(&mut self, flags: &[String]) -> Vec<Pod> {
        // Asked to end, the first finishes the supersteps at hand. Of the other's grace nothing is left for them.
        [(0, 25_000), (1, 5_000)].map(|(number, grace_ms)| self.worker(number, grace_ms, flags)).into()
    }

    fn worker(&mut self, number: usize, grace_ms: u32, flags: &[String]) -> Pod {
        let name = format!("worker-{number}");
        let hosts = [format!("workers.tenant-{TENANT}.svc")];
        let role = PeerRole::Worker { tenant: TENANT.to_owned() };
        let tls = self.authority.issue_to(&self.scratch.join(&name), &role, &hosts).unwrap();
        let (grpc, ops) = (self.address(), self.address());
        let own = [
            format!("--tenant={TENANT}"),
            format!("--worker-name={name}"),
            format!("--shutdown-grace-ms={grace_ms}"),
            format!("--metrics-addr={ops}"),
            format!("--grpc-addr={grpc}"),
        ];
        let arguments = [&tls_flags(&tls)[..], &own, flags].concat();
        let log = self.scratch.join(format!("{name}.log"));
        let program = start(&name, "croft-worker", &[], &arguments, ops, &log);
        Pod { name, arguments, environment: Vec::new(), ops, grpc, http: None, program }
    }

    /// Tells fronts of the workers, as the operator does, at the port that it returns.
    async fn routes(&self, workers: &[Pod], tasks: &Tasks) -> u16 {
        let worker = |worker: &Pod| WorkerRoute {
            name: worker.name.clone(),
            address: worker.grpc.to_string(),
            ready: true,
            sessions_max: 50,
        };
        let route = TenantRoute {
            tenant_id: TenantId::generate().to_string(),
            name: TENANT.to_owned(),
            namespace: format!("tenant-{TENANT}"),
            admission: TenantAdmission::Open.into(),
            workers: workers.iter().map(worker).collect(),
            tier: "standard".to_owned(),
            ..TenantRoute::default()
        };
        let operator = self.authority.issue(&PeerRole::Operator, &["localhost".to_owned()]).unwrap();
        routes::serve(tasks, &operator, vec![route]).await.unwrap()
    }

    fn fronts(&mut self, environment: &[(&'static str, String)], routes_port: u16, flags: &[String]) -> Vec<Pod> {
        let hosts = ["localhost".to_owned()];
        let tls = self.authority.issue_to(&self.scratch.join("front"), &PeerRole::Front, &hosts).unwrap();
        let common = [
            &["serve".to_owned()][..],
            &tls_flags(&tls)[..],
            &[format!("--operator-url=https://localhost:{routes_port}"), "--lease-ttl-ms=1500".to_owned()],
            flags,
        ]
        .concat();
        [0, 1].map(|number| self.front(number, environment, &common)).into()
    }

    fn front(&mut self, number: usize, environment: &[(&'static str, String)], common: &[String]) -> Pod {
        let name = format!("front-{number}");
        let (grpc, ops, http, internal) = (self.address(), self.address(), self.address(), self.address());
        let own = [
            format!("--replica={name}"),
            format!("--metrics-addr={ops}"),
            format!("--grpc-addr={grpc}"),
            format!("--http-addr={http}"),
            format!("--internal-addr={internal}"),
            format!("--audit-folder={}", self.scratch.join(format!("{name}-audit")).display()),
        ];
        let arguments = [common, &own].concat();
        let log = self.scratch.join(format!("{name}.log"));
        let program = start(&name, "croft-front", environment, &arguments, ops, &log);
        Pod { name, arguments, environment: environment.to_vec(), ops, grpc, http: Some(http), program }
    }
}

/// A proxy in front of Redis, and the URL of Redis behind it.
async fn behind_proxy(redis: &str, tasks: &Tasks) -> (Proxy, String) {
    let redis = redis.strip_prefix("redis://").expect("a Redis URL").trim_end_matches('/');
    let (credentials, behind) = redis.rsplit_once('@').map_or(("", redis), |(user, host)| (user, host));
    let behind = behind.split('/').next().unwrap();
    let relay = Proxy::start(behind.to_owned(), tasks).await;
    let at = if credentials.is_empty() { String::new() } else { format!("{credentials}@") };
    let url = format!("redis://{at}{}", relay.address);
    (relay, url)
}

/// The tenant's first API key. A front is ready before its tenants have their rows.
async fn first_key(owner_url: &str) -> String {
    loop {
        let made = program("croft-front", owner_url, &["api-key", "create", "--tenant", TENANT]).await;
        if made.status.success() {
            return String::from_utf8(made.stdout).unwrap().trim().to_owned();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

impl Stage {
    pub(crate) async fn set() -> Self {
        Self::told(&Flags::default()).await
    }

    /// With so many flags more for each front.
    pub(crate) async fn with(front_flags: &[String]) -> Self {
        Self::told(&Flags { fronts: front_flags.to_vec(), ..Flags::default() }).await
    }

    /// With flags more for programs of both sorts.
    pub(crate) async fn told(flags: &Flags) -> Self {
        Self::raise(&service("CROFT_TEST_POSTGRES_URL"), &service("CROFT_TEST_REDIS_URL"), flags).await
    }

    /// On a PostgreSQL, by a superuser's URL, and a Redis.
    pub(crate) async fn on(postgres: &str, redis: &str) -> Self {
        Self::raise(postgres, redis, &Flags::default()).await
    }

    async fn raise(postgres: &str, redis: &str, flags: &Flags) -> Self {
        croft_serve::tls::install_provider();
        let alone = ONE_AT_A_TIME.lock().await;
        let (tasks, mut workshop) = (Tasks::new(), Workshop::open());
        let Migrated { database, owner_url, host } = migrated(postgres).await;
        let (relay, redis_url) = behind_proxy(redis, &tasks).await;
        let environment = [
            ("CROFT_POSTGRES_URL", format!("postgres://{FRONT_ROLE}:{PASSWORD}@{host}/{database}")),
            ("CROFT_REDIS_URL", redis_url),
        ];
        let mut workers = workshop.workers(&flags.workers);
        let routes_port = workshop.routes(&workers, &tasks).await;
        let mut fronts = workshop.fronts(&environment, routes_port, &flags.fronts);
        for pod in workers.iter_mut().chain(&mut fronts) {
            pod.program.ready().await.unwrap();
        }
        let (api_key, scratch) = (first_key(&owner_url).await, workshop.scratch);
        Self {
            api_key,
            fronts,
            workers,
            relay,
            postgres: postgres.to_owned(),
            owner_url,
            database,
            scratch,
            tasks,
            _alone: alone,
        }
    }

    /// Clients of each front, on connections of their own.
    pub(crate) fn clients(&self) -> Vec<Client> {
        let client = |front: &Pod| Client::new(&front.grpc.to_string(), &self.api_key).unwrap();
        self.fronts.iter().map(client).collect()
    }

    /// The metrics of a front.
    pub(crate) async fn metrics(&self, place: usize) -> Scrape {
        self.fronts[place].program.scrape().await.unwrap()
    }

    /// Where a front serves browsers.
    pub(crate) fn http(&self, place: usize) -> SocketAddr {
        self.fronts[place].http.expect("a front has one")
    }

    /// Kills a front by its process id, and starts it again.
    pub(crate) async fn kill_front(&mut self, place: usize) {
        Self::kill(&mut self.fronts[place], "croft-front", &self.scratch).await;
    }

    /// Kills a worker by its process id, and starts it again.
    pub(crate) async fn kill_worker(&mut self, place: usize) {
        Self::kill(&mut self.workers[place], "croft-worker", &self.scratch).await;
    }

    /// Asks a front to end, and waits until it says that nobody is to be sent there any more.
    pub(crate) async fn ask_front_to_end(&mut self, place: usize) {
        let program = &mut self.fronts[place].program;
        program.terminate().await.unwrap();
        program.unready().await.unwrap();
    }

    /// Waits until a front has ended by itself.
    pub(crate) async fn front_ends(&mut self, place: usize) {
        self.fronts[place].program.wait().await.unwrap();
    }

    /// Asks a front to end, waits until it has, and starts its successor.
    pub(crate) async fn replace_front(&mut self, place: usize) {
        Self::replace(&mut self.fronts[place], "croft-front", &self.scratch).await;
    }

    /// Asks a worker to end, waits until it has, and starts its successor.
    pub(crate) async fn replace_worker(&mut self, place: usize) {
        Self::replace(&mut self.workers[place], "croft-worker", &self.scratch).await;
    }

    /// Kills a front by its process id.
    pub(crate) async fn end_front(&mut self, place: usize) {
        Self::end(&mut self.fronts[place]).await;
    }

    /// Starts one that was killed.
    pub(crate) async fn run_front(&mut self, place: usize) {
        Self::run(&mut self.fronts[place], "croft-front", &self.scratch).await;
    }

    async fn kill(pod: &mut Pod, program: &str, scratch: &Path) {
        Self::end(pod).await;
        Self::run(pod, program, scratch).await;
    }

    async fn replace(pod: &mut Pod, program: &str, scratch: &Path) {
        pod.program.terminate().await.unwrap();
        pod.program.wait().await.unwrap();
        Self::run(pod, program, scratch).await;
    }

    async fn end(pod: &mut Pod) {
        pod.program.kill().unwrap();
        pod.program.wait().await.unwrap();
    }

    async fn run(pod: &mut Pod, program: &str, scratch: &Path) {
        let log = scratch.join(format!("{}-{}.log", pod.name, Uuid::now_v7()));
        pod.program = start(&pod.name, program, &pod.environment, &pod.arguments, pod.ops, &log);
        pod.program.ready().await.unwrap();
    }

    /// Cuts every connection to Redis, which stays away for a while.
    pub(crate) fn cut_redis(&self, away: Duration) {
        self.relay.cut(away);
    }

    /// Cuts every connection of the fronts to PostgreSQL.
    pub(crate) async fn cut_postgres(&self) {
        let cut = format!(
            "select pg_terminate_backend(pid) from pg_stat_activity where usename = '{FRONT_ROLE}' and datname = '{}'",
            self.database
        );
        execute(&self.postgres, &cut).await;
    }

    /// A connection to the database, as one who sees the rows of all.
    pub(crate) async fn database(&self) -> PgConnection {
        PgConnection::connect(&self.owner_url).await.unwrap()
    }

    /// Takes all down. A test that fails leaves database and logs to be looked at.
    pub(crate) async fn strike(self) {
        for mut pod in self.fronts.into_iter().chain(self.workers) {
            pod.program.kill().unwrap();
            pod.program.wait().await.unwrap();
        }
        execute(&self.postgres, &format!("drop database {} with (force)", self.database)).await;
        std::fs::remove_dir_all(&self.scratch).unwrap();
        self.tasks.stopping().cancel();
    }
}

async fn execute(url: &str, statement: &str) {
    let mut connection = PgConnection::connect(url).await.expect("PostgreSQL at CROFT_TEST_POSTGRES_URL");
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await.unwrap();
}

async fn program(program: &str, postgres_url: &str, arguments: &[&str]) -> std::process::Output {
    command(&programs(), program).args(arguments).env("CROFT_POSTGRES_URL", postgres_url).output().await.unwrap()
}

async fn run(name: &str, postgres_url: &str, arguments: &[&str]) {
    let done = program(name, postgres_url, arguments).await;
    assert!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
}
