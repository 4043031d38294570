//! Benchmarks of Croft's parts. `make bench` starts what they need.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser as _;
use croft_e2e::bench::front::{self, FrontExtent};
use croft_e2e::bench::operator::{self, Extent};
use croft_e2e::bench::stage::Place;
use croft_e2e::bench::worker::{self, WorkerExtent};
use tokio::signal::unix::{SignalKind, signal};

/// Measures real programs on real services and prints a table
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
    /// The front: calls, turns, previews, the log, sockets, takeover; needs no cluster
    Front {
        #[command(flatten)]
        extent: FrontExtent,
        /// The folder of croft-front and croft-worker
        #[arg(long, env = "CROFT_BENCH_PROGRAMS")]
        programs: PathBuf,
    },
    /// The worker: decoding of answers, overhead of a request; needs no service
    Worker {
        #[command(flatten)]
        extent: WorkerExtent,
        /// The folder of croft-worker
        #[arg(long, env = "CROFT_BENCH_PROGRAMS")]
        programs: PathBuf,
        /// Where logs go
        #[arg(long, env = "CROFT_CLUSTER_DIR", default_value = "target/croft-bench-worker")]
        scratch: PathBuf,
    },
    /// The model provider that `worker` calls, as a process of its own; prints its address
    Provider,
}

fn main() -> anyhow::Result<std::process::ExitCode> {
    let bench = Bench::parse();
    let mut runtime = match bench {
        // What is heard on one thread need not wait for another to hear of it, which would be taken for the worker's time.
        Bench::Worker { .. } | Bench::Provider => tokio::runtime::Builder::new_current_thread(),
        Bench::Operator { .. } | Bench::Front { .. } => tokio::runtime::Builder::new_multi_thread(),
    };
    runtime.enable_all().build()?.block_on(measure(bench))
}

async fn measure(bench: Bench) -> anyhow::Result<std::process::ExitCode> {
    let mut out = std::io::stdout();
    if let Bench::Provider = bench {
        worker::provider::serve().await?;
        return Ok(std::process::ExitCode::SUCCESS);
    }
    operator::head(&mut out)?;
    let measured = async {
        match bench {
            Bench::Operator { extent, programs } => Box::pin(operator::run(place(programs)?, &extent, &mut out)).await,
            Bench::Worker { extent, programs, scratch } => {
                Box::pin(worker::run(&worker::Place { programs, scratch }, &extent, &mut out)).await
            }
            Bench::Provider => Ok(true),
            Bench::Front { extent, programs } => Box::pin(front::run(front_place(programs)?, &extent, &mut out)).await,
        }
    };
    // Whoever stops us means the programs that we started too: they end as what holds them is dropped.
    let mut terminated = signal(SignalKind::terminate())?;
    let all_hold = tokio::select! {
        all_hold = measured => all_hold?,
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        _ = terminated.recv() => anyhow::bail!("terminated"),
    };
    Ok(if all_hold { std::process::ExitCode::SUCCESS } else { std::process::ExitCode::FAILURE })
}

fn variable(name: &str) -> anyhow::Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set: use `make bench` or `make bench-front`"))
}

fn front_place(programs: PathBuf) -> anyhow::Result<front::stage::Place> {
    Ok(front::stage::Place {
        programs,
        postgres_admin_url: variable("CROFT_POSTGRES_URL")?,
        postgres_front_url: variable("CROFT_POSTGRES_FRONT_URL")?,
        redis_url: variable("CROFT_REDIS_URL")?,
        scratch: PathBuf::from(variable("CROFT_CLUSTER_DIR")?).join("bench"),
    })
}

/// What `cluster.sh` wrote into its env file.
fn place(programs: PathBuf) -> anyhow::Result<Place> {
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
