//! Benchmarks of Croft's parts. `make bench` starts what they need.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser as _;
use croft_e2e::bench::operator::{self, Extent};
use croft_e2e::bench::stage::Place;

/// Measures real programs on a real control plane and prints a table
#[derive(Debug, clap::Parser)]
#[command(name = "croft-bench")]
enum Bench {
    /// The operator: sessions, tenants, a thousand of them, drift, restart, handover
    Operator {
        #[command(flatten)]
        extent: Extent,
        /// The folder of croft-operator, croft-front and croft-worker
        #[arg(long, env = "CROFT_BENCH_PROGRAMS")]
        programs: PathBuf,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<std::process::ExitCode> {
    let Bench::Operator { extent, programs } = Bench::parse();
    let mut out = std::io::stdout();
    operator::head(&mut out)?;
    let all_hold = Box::pin(operator::run(place(programs)?, &extent, &mut out)).await?;
    Ok(if all_hold { std::process::ExitCode::SUCCESS } else { std::process::ExitCode::FAILURE })
}

/// What `cluster.sh` wrote into its env file.
fn place(programs: PathBuf) -> anyhow::Result<Place> {
    let variable = |name: &str| std::env::var(name).with_context(|| format!("{name} is not set: use `make bench`"));
    let cluster = variable("CROFT_CLUSTER_DIR")?;
    Ok(Place {
        programs,
        kubeconfig: variable("KUBECONFIG")?.into(),
        audit_log: variable("CROFT_KUBE_AUDIT_LOG")?.into(),
        postgres_admin_url: variable("CROFT_POSTGRES_URL")?,
        postgres_front_url: variable("CROFT_POSTGRES_FRONT_URL")?,
        redis_url: variable("CROFT_REDIS_URL")?,
        scratch: PathBuf::from(&cluster).join("bench"),
        cluster,
    })
}
