//! The system under test: fronts and workers as processes, on PostgreSQL and Redis, with no cluster around them.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use croft_proto::id::TenantId;
use croft_proto::v1::{TenantAdmission, TenantLimits, TenantRoute, WorkerRoute};
use croft_serve::Tasks;
use croft_serve::tls::PeerRole;
use tonic::transport::Endpoint;

use super::authority::Authority;
use super::collector;
use super::provider;
use super::routes;
use crate::bench::launch::{Ports, command, loopback, tls_flags};
use crate::bench::load::{self, megabytes};
use crate::bench::process::Program;
use crate::bench::stage::until;
use crate::client::Client;

/// That a worker holds at most: more than are opened here.
const SESSIONS_MAX: u32 = 200_000;

/// Where the programs and the services are.
#[derive(Debug, Clone)]
pub struct Place {
    pub programs: PathBuf,
    pub postgres_admin_url: String,
    pub postgres_front_url: String,
    pub redis_url: String,
    /// For certificates and logs.
    pub scratch: PathBuf,
}

/// A tenant with workers of its own.
pub struct Tenant {
    pub id: TenantId,
    pub name: &'static str,
    pub workers: Vec<Program>,
    /// Of its one client.
    pub api_key: String,
}

/// A front and where it listens.
pub struct Front {
    pub program: Program,
    pub grpc: SocketAddr,
    pub http: SocketAddr,
}

/// All that runs.
pub struct Stage {
    pub place: Place,
    pub tasks: Tasks,
    /// Sessions of the first tenant have no limit to be counted against, and its model calls neither rate nor budget; the second's have.
    /// The third has two workers.
    pub tenants: [Tenant; 3],
    pub front: Front,
    front_tls: PathBuf,
    routes_port: u16,
    traces: SocketAddr,
    ports: Ports,
}

impl Stage {
    /// Brings all up: the tenants, their workers, one front.
    pub async fn set(place: Place) -> anyhow::Result<Self> {
        croft_serve::tls::install_provider();
        std::fs::create_dir_all(&place.scratch)?;
        let (tasks, mut ports, authority) = (Tasks::new(), Ports::default(), Authority::new()?);
        migrate(&place).await?;
        let provider = provider::serve(&tasks).await?;
        let providers = place.scratch.join("providers.json");
        let anthropic = serde_json::json!({ "base_url": format!("http://{provider}") });
        std::fs::write(&providers, serde_json::json!({ "providers": { "anthropic": anthropic } }).to_string())?;

        let traces = collector::serve(&tasks).await?;

        let (mut told, mut started) = (Vec::new(), Vec::new());
        for (name, sessions_max, workers) in [("open", 0, 1), ("limited", 1_000_000, 1), ("pair", 0, 2)] {
            let role = PeerRole::Worker { tenant: name.to_owned() };
            let hosts = [format!("workers.tenant-{name}.svc")];
            let tls = authority.issue_to(&place.scratch.join(format!("worker-{name}")), &role, &hosts)?;
            let (mut programs, mut addresses) = (Vec::new(), Vec::new());
            for number in 0..workers {
                let (address, ops) = (loopback(ports.take()?), ports.take()?);
                let worker_name = format!("worker-{name}-{number}");
                let mut worker = command(&place.programs, "croft-worker");
                worker.args(tls_flags(&tls)).args([
                    format!("--tenant={name}"),
                    format!("--worker-name={worker_name}"),
                    format!("--metrics-addr=127.0.0.1:{ops}"),
                    format!("--grpc-addr={address}"),
                    format!("--providers={}", providers.display()),
                    format!("--otlp-endpoint=http://{traces}"),
                    format!("--sessions-max={SESSIONS_MAX}"),
                ]);
                let log = place.scratch.join(format!("{worker_name}.log"));
                let mut worker = Program::start(&worker_name, worker, loopback(ops), &log)?;
                worker.ready().await?;
                programs.push(worker);
                addresses.push(WorkerRoute {
                    name: worker_name,
                    address: address.to_string(),
                    ready: true,
                    sessions_max: SESSIONS_MAX,
                });
            }
            let id = TenantId::generate();
            // Of tokens, where there is a limit at all.
            let plenty = if sessions_max > 0 { 1_000_000_000_000 } else { 0 };
            told.push(TenantRoute {
                tenant_id: id.to_string(),
                name: name.to_owned(),
                namespace: format!("tenant-{name}"),
                admission: TenantAdmission::Open.into(),
                workers: addresses,
                limits: Some(TenantLimits {
                    sessions_max,
                    requests_per_minute: 100_000_000,
                    tokens_per_minute: plenty,
                    monthly_budget_tokens: plenty,
                    ..TenantLimits::default()
                }),
                tier: "enterprise".to_owned(),
                ..TenantRoute::default()
            });
            started.push((id, name, programs));
        }
        let operator = authority.issue(&PeerRole::Operator, &["localhost".to_owned()])?;
        let routes_port = routes::serve(&tasks, &operator, told).await?;
        let hosts = ["localhost".to_owned()];
        let front_tls = authority.issue_to(&place.scratch.join("front"), &PeerRole::Front, &hosts)?;
        let front = start_front(&place, "front-0", &front_tls, routes_port, traces, &mut ports).await?;

        let mut tenants = Vec::new();
        for (id, name, workers) in started {
            // A front is ready before its tenants have their rows.
            let api_key = until("a key of the tenant", async || api_key(&place, name).await.ok()).await?;
            tenants.push(Tenant { id, name, workers, api_key });
        }
        let tenants = tenants.try_into().ok().context("there are not three tenants")?;
        Ok(Self { place, tasks, tenants, front, front_tls, routes_port, traces, ports })
    }

    /// One more replica.
    pub async fn another_front(&mut self, name: &str) -> anyhow::Result<Front> {
        start_front(&self.place, name, &self.front_tls, self.routes_port, self.traces, &mut self.ports).await
    }

    /// A client of the tenant whose sessions aren't counted, on a connection of its own.
    pub async fn client(&self) -> anyhow::Result<Client> {
        self.client_of(&self.front, &self.tenants[0]).await
    }

    pub async fn client_of(&self, front: &Front, tenant: &Tenant) -> anyhow::Result<Client> {
        let channel = Endpoint::from_shared(format!("http://{}", front.grpc))?.connect().await?;
        Client::over(channel, &tenant.api_key)
    }

    /// Several of a tenant, so that no connection's own order holds anything up.
    pub async fn clients_of(&self, tenant: &Tenant, count: usize) -> anyhow::Result<Vec<Client>> {
        let mut clients = Vec::with_capacity(count);
        for _ in 0..count {
            clients.push(self.client_of(&self.front, tenant).await?);
        }
        Ok(clients)
    }

    /// Processor seconds so far: front, workers, this program.
    pub fn cpu(&self) -> anyhow::Result<[f64; 3]> {
        let workers: f64 = self
            .tenants
            .iter()
            .flat_map(|tenant| &tenant.workers)
            .map(|worker| worker.load().map(|load| load.cpu.as_secs_f64()))
            .sum::<anyhow::Result<_>>()?;
        let own = load::of(std::process::id())?.cpu.as_secs_f64();
        Ok([self.front.program.load()?.cpu.as_secs_f64(), workers, own])
    }

    /// What was used since, for people.
    pub fn cpu_since(&self, before: [f64; 3]) -> anyhow::Result<String> {
        let now = self.cpu()?;
        let [front, workers, harness] = [0, 1, 2].map(|index| now[index] - before[index]);
        let memory = megabytes(self.front.program.load()?.resident);
        Ok(format!("CPU seconds: front {front:.1}, workers {workers:.1}, harness {harness:.1}; front holds {memory}"))
    }
}

async fn migrate(place: &Place) -> anyhow::Result<()> {
    let migrated = command(&place.programs, "croft-front")
        .args(["migrate", "--front-role=croft_front"])
        .env("CROFT_POSTGRES_URL", &place.postgres_admin_url)
        .output()
        .await?;
    ensure!(migrated.status.success(), "croft-front migrate: {}", String::from_utf8_lossy(&migrated.stderr));
    Ok(())
}

async fn api_key(place: &Place, tenant: &str) -> anyhow::Result<String> {
    let made = command(&place.programs, "croft-front")
        .args(["api-key", "create", "--tenant", tenant])
        .env("CROFT_POSTGRES_URL", &place.postgres_admin_url)
        .output()
        .await?;
    ensure!(made.status.success(), "croft-front api-key create: {}", String::from_utf8_lossy(&made.stderr));
    Ok(String::from_utf8(made.stdout)?.trim().to_owned())
}

async fn start_front(
    place: &Place,
    name: &str,
    tls: &std::path::Path,
    routes_port: u16,
    traces: SocketAddr,
    ports: &mut Ports,
) -> anyhow::Result<Front> {
    let (ops, grpc, http) = (ports.take()?, loopback(ports.take()?), loopback(ports.take()?));
    let mut front = command(&place.programs, "croft-front");
    front
        .env("CROFT_POSTGRES_URL", &place.postgres_front_url)
        .env("CROFT_REDIS_URL", &place.redis_url)
        .arg("serve")
        .args(tls_flags(tls))
        .args([
            format!("--replica={name}"),
            format!("--operator-url=https://localhost:{routes_port}"),
            format!("--otlp-endpoint=http://{traces}"),
            format!("--metrics-addr=127.0.0.1:{ops}"),
            format!("--grpc-addr={grpc}"),
            format!("--http-addr={http}"),
            format!("--internal-addr=127.0.0.1:{}", ports.take()?),
            // As in the chart.
            format!("--audit-folder={}", place.scratch.join(format!("{name}-audit")).display()),
            // The idle WebSockets are all of one tenant.
            "--streams-per-tenant-max=20000".to_owned(),
        ]);
    let mut program = Program::start(name, front, loopback(ops), &place.scratch.join(format!("{name}.log")))?;
    program.ready().await?;
    Ok(Front { program, grpc, http })
}
