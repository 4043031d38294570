//! `croft-front serve`: everything is built here, and runs until a signal.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use croft_serve::connections::Connections;
use croft_serve::tls::TlsFiles;
use croft_serve::{Check, Program, Tasks, grpc};
use secrecy::ExposeSecret;

use crate::app::{Parts, assemble, internal_routes, public_routes, seen, serve_public};
use crate::config::Serve;
use crate::core::Options;
use crate::counters::redis::{ANSWER_TIMEOUT, RedisCounters};
use crate::error::Error;
use crate::events::relay::redis::RedisRelay;
use crate::gateway;
use crate::store::Stores;
use crate::store::postgres::{Postgres, connections};
use crate::tenants::Tenants;
use crate::tenants::watch::{self, RouteWatch};

/// Between two looks at each dependency.
const PROBE_EVERY: Duration = Duration::from_secs(2);
/// A dependency that takes longer to answer is not there.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// Serves until SIGTERM, without Redis while that is away. Fails at once, with a sentence, when a port is taken or Postgres can't be reached.
pub async fn serve(config: Serve) -> anyhow::Result<()> {
    let tls = TlsFiles::read(&config.tls)?;
    let identity = config.identity.read().map_err(|mistakes| anyhow::anyhow!(mistakes.join(" ")))?;
    let program = Program::start("croft-front", &config.program).await?;
    let (tasks, readiness, registry) = (&program.tasks, &program.readiness, program.metrics.registry());
    tls.register(&program.metrics)?;
    let spread = Duration::from_secs(config.renewal_spread_seconds);
    tasks.spawn_vital("certificate", tls.clone().until_renewed(config.tls.clone(), spread, tasks.stopping()));

    let postgres = Postgres::connect(config.postgres_url.expose_secret(), config.postgres_connections_max)
        .await
        .context("cannot reach PostgreSQL at --postgres-url (CROFT_POSTGRES_URL)")?;
    let counted = postgres.clone();
    connections::register(registry, move || counted.connections())?;
    let redis = config.redis()?;
    let counters = Arc::new(RedisCounters::connect(&redis, ANSWER_TIMEOUT)?);
    let relay = RedisRelay::connect(redis, tasks).await.context("--redis-url (CROFT_REDIS_URL) can't be used")?;
    // Counters and relay have a way without it.
    let (probed_postgres, probed_relay, redis_check) = (postgres.clone(), relay.clone(), readiness.tells("redis"));
    probe(tasks, readiness.check("postgres"), move || {
        let postgres = probed_postgres.clone();
        async move { postgres.check().await }
    });

    let replica = config.replica.clone().unwrap_or_else(|| format!("front-{}", uuid::Uuid::now_v7()));
    let (stores, tenants) = (Stores::postgres(&postgres, tasks), Tenants::new());
    RouteWatch {
        operator_url: config.operator_url.clone(),
        tls: Some(tls.clone()),
        front: replica.clone(),
        tenants: tenants.clone(),
        mirror: Arc::clone(&stores.tenants),
        check: readiness.check("routes"),
        metrics: watch::Metrics::register(registry)?,
    }
    .spawn(tasks)?;

    let provider_rates = config.provider_rates()?;
    let options = Options { provider_rates, ..config.options(identity) };
    let (relay, tls_files) = (Arc::new(relay), Some(tls.clone()));
    let parts = Parts { replica, stores, relay, counters, tenants, tls: tls_files, options };
    let core = assemble(parts, tasks, registry).await?;
    let hub = core.hub.clone();
    probe(tasks, redis_check, move || {
        let (relay, hub) = (probed_relay.clone(), hub.clone());
        async move { relay.check().await.inspect(|()| hub.relay_answered()) }
    });

    let public = grpc::bind(config.grpc_addr, "--grpc-addr (CROFT_GRPC_ADDR)").await?;
    let internal = grpc::bind(config.internal_addr, "--internal-addr (CROFT_INTERNAL_ADDR)").await?;
    let http = grpc::bind(config.http_addr, "--http-addr (CROFT_HTTP_ADDR)").await?;
    let calls = seen(public_routes(&core, readiness, config.reflection).await?, &program.metrics);
    let public = Connections::new(public, "grpc", config.bounds(), &program.metrics);
    serve_public(public, &core, calls.clone());
    let routes = internal_routes(&core, readiness).await;
    grpc::serve("grpc-internal", internal, Some(tls.server()), routes, croft_proto::METHODS, tasks, &program.metrics)?;
    let http = Connections::new(http, "http", config.bounds(), &program.metrics);
    gateway::serve(http, &core, calls, config.allowed_origins.clone(), readiness, registry)?;
    program.run_until_shutdown().await
}

/// Keeps a readiness check true to a dependency.
fn probe<F>(tasks: &Tasks, check: Check, ask: impl Fn() -> F + Send + 'static)
where
    F: Future<Output = Result<(), Error>> + Send,
{
    let stopping = tasks.stopping();
    tasks.spawn_endless("probe", async move {
        loop {
            match tokio::time::timeout(PROBE_TIMEOUT, ask()).await {
                Ok(Ok(())) => check.ready(),
                Ok(Err(error)) => check.not_ready(error.to_string()),
                Err(_) => check.not_ready("no answer in time"),
            }
            tokio::select! {
                () = stopping.cancelled() => return,
                () = tokio::time::sleep(PROBE_EVERY) => {}
            }
        }
    });
}
