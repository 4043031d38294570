//! A program's life: start, run, stop. What is begun here is what every `main` would otherwise repeat.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

use crate::shutdown::{self, Signals};
use crate::trace::Telemetry;
use crate::{Check, Config, Metrics, Mistakes, Readiness, ServeArgs, Tasks, config, grpc, health, log, tls};

/// How long the page of metrics and probes may take to close after everything else has.
const BACKSTAGE_GRACE: Duration = Duration::from_secs(1);

/// How long the last traces may take.
const FLUSH_MAX: Duration = Duration::from_secs(3);

/// What a program is built around. Its parts clone from here what they need.
pub struct Program {
    pub tasks: Tasks,
    pub readiness: Readiness,
    pub metrics: Metrics,
    name: &'static str,
    delay: Duration,
    grace: Duration,
    ops_addr: SocketAddr,
    /// Tasks that must outlive the drain: `/readyz` and `/metrics` tell how it goes.
    backstage: Tasks,
    telemetry: Telemetry,
    signals: Signals,
    /// Objects until all parts are made: those that have checks of their own may not have said so yet.
    start: Check,
}

impl Program {
    /// Installs cryptography, logs and traces, listens for signals, and serves `/metrics`, `/healthz`, `/readyz` and `/servingz`.
    pub async fn start(name: &'static str, args: &ServeArgs) -> anyhow::Result<Self> {
        tls::install_provider();
        let telemetry = Telemetry::start(name, args.otlp_endpoint.as_deref())
            .context("cannot send traces to --otlp-endpoint (CROFT_OTLP_ENDPOINT)")?;
        log::install(&args.log, telemetry.tracer())?;
        let (tasks, readiness, metrics) = (Tasks::new(), Readiness::new(), Metrics::new(name)?);
        tasks.register(&metrics)?;
        readiness.register(&metrics)?;
        let signals = Signals::listen().context("cannot listen for signals")?;

        let listener = grpc::bind(args.metrics_addr, "--metrics-addr (CROFT_METRICS_ADDR)").await?;
        let ops_addr = listener.local_addr()?;
        let start = readiness.check("start");
        start.not_ready("still starting");
        let backstage = Tasks::new();
        let routes = health::routes(&readiness).merge(metrics.routes());
        let closing = backstage.stopping().cancelled_owned();
        drop(backstage.spawn("ops-http", async move {
            if let Err(error) = axum::serve(listener, routes).with_graceful_shutdown(closing).await {
                tracing::error!(%error, "cannot serve metrics and probes");
            }
        }));
        tracing::info!(program = name, version = env!("CARGO_PKG_VERSION"), %ops_addr, "started");
        let (delay, grace) = (args.shutdown_delay(), args.shutdown_grace());
        Ok(Self { tasks, readiness, metrics, name, delay, grace, ops_addr, backstage, telemetry, signals, start })
    }

    /// Where `/metrics`, `/healthz`, `/readyz` and `/servingz` are.
    pub fn ops_addr(&self) -> SocketAddr {
        self.ops_addr
    }

    /// Call it when all parts are made: from here on the program is ready when they are. Waits for SIGTERM or SIGINT, or for the
    /// end of a vital task, then shuts down in order. A second signal ends the process at once. Fails when it was a vital task.
    pub async fn run_until_shutdown(mut self) -> anyhow::Result<()> {
        self.start.ready();
        let failed = tokio::select! {
            _ = self.signals.next() => false,
            () = self.tasks.failed() => true,
        };
        tracing::info!(program = self.name, failed, "shutting down");
        let delay = if failed { Duration::ZERO } else { self.delay };
        tokio::select! {
            left = shutdown::in_order(&self.readiness, &self.tasks, delay, self.grace) => {
                tracing::info!(program = self.name, tasks_left = left, "stopped");
            }
            signal = self.signals.next() => {
                tracing::warn!(program = self.name, "stopped at once by a second signal");
                std::process::exit(shutdown::exit_code(signal));
            }
        }
        self.backstage.shutdown(BACKSTAGE_GRACE).await;
        if tokio::time::timeout(FLUSH_MAX, self.telemetry.flush()).await.is_err() {
            tracing::warn!("gave up on sending the last traces");
        }
        anyhow::ensure!(!failed, "a task that the program can't be without has ended");
        Ok(())
    }
}

/// The whole of a `main`: reads the arguments, runs `body` on a multi-threaded runtime, and turns the outcome into an
/// exit code: 0, 1 after an error, which is told once, or 2 after mistakes in the config, a sentence each on stderr.
pub fn run<C: Config>(body: impl AsyncFnOnce(C) -> anyhow::Result<()>) -> ExitCode {
    let config: C = config::parse();
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
        .and_then(|runtime| runtime.block_on(Box::pin(body(config))));
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    if let Some(mistakes) = error.downcast_ref::<Mistakes>() {
        eprintln!("{mistakes}");
        return ExitCode::from(2);
    }
    // Before the log is there, and for a command that has none, a person reads it.
    if tracing::dispatcher::has_been_set() {
        tracing::error!(error = format!("{error:#}"), "failed");
    } else {
        eprintln!("{error:#}");
    }
    ExitCode::FAILURE
}
