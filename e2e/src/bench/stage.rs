//! The system under test: an operator, a front and a worker as processes, on a control plane without nodes.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use croft_serve::Tasks;
use kube::Client;
use tokio::time::Instant;

use super::audit::{Audit, Entry};
use super::launch::{self, OperatorPorts, Ports};
use super::process::Program;
use super::{chart, kubelet, load};

/// Where the operator and the fronts are.
pub const NAMESPACE: &str = "croft-system";
/// Whom the API server takes the operator for, as in a cluster.
pub const OPERATOR_USER: &str = "system:serviceaccount:croft-system:croft-operator";
/// The tenant whose sessions are measured; its worker is a real one.
pub const TENANT: &str = "bench";
/// Nothing here takes that long unless it is broken.
pub const PATIENCE: Duration = Duration::from_mins(1);
/// How long a cluster has been still that is at rest.
const SETTLED: Duration = Duration::from_secs(5);

/// Where the programs, the cluster and its services are.
#[derive(Debug, Clone)]
pub struct Place {
    /// Holds croft-operator, croft-front and croft-worker.
    pub programs: PathBuf,
    pub kubeconfig: PathBuf,
    pub audit_log: PathBuf,
    /// The folder that `cluster.sh` was told.
    pub cluster: String,
    pub postgres_admin_url: String,
    pub postgres_front_url: String,
    pub redis_url: String,
    /// For certificates and logs.
    pub scratch: PathBuf,
}

/// All that runs.
pub struct Stage {
    pub place: Place,
    /// As the administrator.
    pub client: Client,
    /// As one of Kubernetes' own controllers.
    pub trusted: Client,
    pub audit: Audit,
    pub tasks: Tasks,
    pub operator: Program,
    /// Of the first operator and of a second.
    pub ports: [OperatorPorts; 2],
    pub front: Program,
    pub worker: Program,
    front_internal: u16,
    /// Which of the two places the operator has.
    operator_place: usize,
}

impl Stage {
    /// Brings everything up, with the tenant [`TENANT`] and its worker ready.
    pub async fn set(place: Place) -> anyhow::Result<Self> {
        croft_serve::tls::install_provider();
        std::fs::create_dir_all(&place.scratch)?;
        let client = launch::client(&place.kubeconfig).await?;
        let trusted = launch::trusted_client(&place.kubeconfig).await?;
        chart::install(NAMESPACE).await?;
        launch::operator_kubeconfig(&client, &place.kubeconfig, &place.scratch.join("operator.kubeconfig")).await?;
        let tasks = Tasks::new();
        kubelet::start(&tasks, &client, format!("tenant-{TENANT}")).await?;

        let mut ports = Ports::default();
        let operators = [ports.of_operator()?, ports.of_operator()?];
        let front_internal = ports.of_front()?;
        let mut operator = launch::start_operator(&place, "operator-0", operators[0], front_internal)?;
        operator.ready().await?;
        let front_tls = launch::tls_folder(&client, &place, NAMESPACE, "croft-front-tls").await?;
        let mut front = launch::start_front(&place, &front_tls, operators[0], front_internal, &mut ports).await?;
        front.ready().await?;
        let worker = launch::make_tenant(&client, &place, &mut ports).await?;
        let audit = Audit::new(place.audit_log.clone());
        Ok(Self {
            place,
            client,
            trusted,
            audit,
            tasks,
            operator,
            ports: operators,
            front,
            worker,
            front_internal,
            operator_place: 0,
        })
    }

    /// Starts an operator; it leads when no other does.
    pub fn start_operator(&self, identity: &str, ports: OperatorPorts) -> anyhow::Result<Program> {
        launch::start_operator(&self.place, identity, ports, self.front_internal)
    }

    /// The place that the operator doesn't have.
    pub fn other_place(&self) -> usize {
        1 - self.operator_place
    }

    /// Another operator leads now.
    pub fn replace_operator(&mut self, operator: Program, place: usize) {
        self.operator = operator;
        self.operator_place = place;
    }

    /// Processor time of operator, front and worker, and of the control plane, so far.
    pub fn cpu(&self) -> anyhow::Result<Vec<(String, Duration)>> {
        let mut used = Vec::new();
        for (name, program) in [("operator", &self.operator), ("front", &self.front), ("worker", &self.worker)] {
            used.push((name.to_owned(), program.load()?.cpu));
        }
        for (component, pid) in load::of_cluster(&self.place.cluster) {
            used.push((component, load::of(pid)?.cpu));
        }
        used.push(("harness".to_owned(), load::of(std::process::id())?.cpu));
        Ok(used)
    }

    /// What was used since, for people.
    pub fn cpu_since(&self, before: &[(String, Duration)]) -> anyhow::Result<String> {
        let now = self.cpu()?;
        let used = before.iter().filter_map(|(name, before)| {
            let (_, now) = now.iter().find(|(other, _)| other == name)?;
            Some(format!("{name} {:.1}", now.saturating_sub(*before).as_secs_f64()))
        });
        Ok(format!("CPU seconds: {}", used.collect::<Vec<_>>().join(", ")))
    }

    /// Waits until the operator has written nothing and looked at nothing for a second.
    pub async fn quiet(&self) -> anyhow::Result<()> {
        let (mut before, mut since, begun) = (f64::NAN, Instant::now(), Instant::now());
        while since.elapsed() < Duration::from_secs(1) {
            let scrape = self.operator.scrape().await?;
            let work = ["croft_operator_reconciles_total", "croft_operator_api_writes_total"];
            let work: f64 = work.iter().map(|name| scrape.sum(name, &[])).sum();
            if work.to_bits() != before.to_bits() {
                (before, since) = (work, Instant::now());
            }
            ensure!(begun.elapsed() < Duration::from_mins(3), "the operator does not come to rest");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Waits until nobody at all has written anything for [`SETTLED`], so that what is written then has no cause but the
    /// measure's own: Kubernetes' controllers work on for minutes after many tenants were made.
    pub async fn settled(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let noted = self.audit.end()?;
            tokio::time::sleep(SETTLED).await;
            if !self.audit.since(noted)?.iter().any(Entry::is_write) {
                return Ok(());
            }
            ensure!(begun.elapsed() < Duration::from_mins(10), "the cluster does not come to rest");
        }
    }
}

/// Asks until there is an answer.
pub async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> anyhow::Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return Ok(answer);
        }
        ensure!(begun.elapsed() < PATIENCE, "not in {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
