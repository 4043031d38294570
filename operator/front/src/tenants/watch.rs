//! Keeps [`Tenants`] in step with the operator's `RouteService`, for as long as the front runs.
//!
//! While the operator is away the routes stay as they were, and the front stays ready: only its first snapshot is
//! waited for. How stale they are is in a metric.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use backon::{BackoffBuilder, ExponentialBuilder};
use croft_proto::id::TenantId;
use croft_proto::v1::route_service_client::RouteServiceClient;
use croft_proto::v1::watch_routes_response::Change;
use croft_proto::v1::{TenantRoute, WatchRoutesRequest, WatchRoutesResponse};
use croft_serve::tls::TlsFiles;
use croft_serve::{Check, Tasks};
use futures::{StreamExt, stream};
use prometheus::{IntCounter, IntGauge, Registry};
use tokio::time::{Instant, timeout};
use tonic::Streaming;
use tonic::transport::Endpoint;

use super::{TenantMirror, Tenants};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An operator that went silent is noticed after the interval and the timeout.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// How long a change of routes waits for its rows. Past it the routes go ahead and the rows are tried again each tick.
const MIRROR_TIMEOUT: Duration = Duration::from_secs(1);
const MIRROR_CONCURRENCY: usize = 8;
const TICK: Duration = Duration::from_secs(2);
/// A snapshot holds all tenants: about 1 kB each.
const MESSAGE_BYTES_MAX: usize = 256 * 1024 * 1024;

/// What the watch tells prometheus.
#[derive(Clone)]
pub struct Metrics {
    connected: IntGauge,
    stale_seconds: IntGauge,
    disconnects: IntCounter,
    tenants: IntGauge,
    unmirrored: IntGauge,
}

impl Metrics {
    /// Registers the instruments. Fails if one is registered already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| -> Result<IntGauge, prometheus::Error> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let disconnects = IntCounter::new("croft_routes_disconnects_total", "Times that the watch of routes broke")?;
        registry.register(Box::new(disconnects.clone()))?;
        Ok(Self {
            connected: gauge("croft_routes_connected", "1 while the operator tells this front its routes")?,
            stale_seconds: gauge("croft_routes_stale_seconds", "Since the watch of routes broke; 0 while it holds")?,
            disconnects,
            tenants: gauge("croft_routes_tenants", "Tenants that this front knows of")?,
            unmirrored: gauge("croft_routes_unmirrored_tenants", "Tenants whose database row is still to be written")?,
        })
    }
}

/// The watch, before it runs.
pub struct RouteWatch {
    /// For example `https://croft-operator.croft-system.svc:50053`.
    pub operator_url: String,
    /// `None` speaks plaintext, for tests in one process.
    pub tls: Option<TlsFiles>,
    /// This front's pod, for the operator's log.
    pub front: String,
    pub tenants: Tenants,
    pub mirror: Arc<dyn TenantMirror>,
    /// Ready from the first snapshot on.
    pub check: Check,
    pub metrics: Metrics,
}

impl RouteWatch {
    /// Watches in a task of its own until shutdown. Fails when the URL or the certificates can't be used.
    pub fn spawn(self, tasks: &Tasks) -> anyhow::Result<()> {
        self.check.not_ready("no routes from the operator yet");
        let endpoint = self.endpoint()?;
        let stopping = tasks.stopping();
        let run = self.run(endpoint);
        tasks.spawn_endless("route-watch", async move { stopping.run_until_cancelled(run).await });
        Ok(())
    }

    fn endpoint(&self) -> anyhow::Result<Endpoint> {
        let mut endpoint = Endpoint::from_shared(self.operator_url.clone())
            .with_context(|| format!("the operator's URL {:?} is not usable", self.operator_url))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        if let Some(tls) = &self.tls {
            let host = endpoint.uri().host().unwrap_or_default().to_owned();
            endpoint = endpoint.tls_config(tls.client(&host)).context("the front's certificates are not usable")?;
        }
        Ok(endpoint)
    }

    async fn run(self, endpoint: Endpoint) {
        let mut backlog = Backlog::new(Arc::clone(&self.mirror), self.metrics.unmirrored.clone());
        let mut lost_at = Instant::now();
        let mut retries = retries();
        loop {
            match self.connect(&endpoint).await {
                Ok(stream) => {
                    self.metrics.connected.set(1);
                    self.metrics.stale_seconds.set(0);
                    if self.follow(stream, &mut backlog).await {
                        retries = self::retries();
                    }
                    lost_at = Instant::now();
                    self.metrics.connected.set(0);
                    self.metrics.disconnects.inc();
                }
                Err(status) => tracing::warn!(error = %status, "the operator does not tell its routes"),
            }
            self.pause(retries.next().unwrap_or(RETRY_MAX), lost_at, &mut backlog).await;
        }
    }

    /// By a connection of its own each time: a replica of the operator that ends the stream may want the Service to lead to another.
    async fn connect(&self, endpoint: &Endpoint) -> Result<Streaming<WatchRoutesResponse>, tonic::Status> {
        let mut client = RouteServiceClient::new(endpoint.connect_lazy()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let request = WatchRoutesRequest { front: self.front.clone() };
        Ok(client.watch_routes(request).await?.into_inner())
    }

    /// Applies what comes until the stream ends. Returns whether anything came: an operator that takes the call and says
    /// nothing is as good as one that refuses.
    async fn follow(&self, mut stream: Streaming<WatchRoutesResponse>, backlog: &mut Backlog) -> bool {
        let mut tick = tokio::time::interval_at(Instant::now() + TICK, TICK);
        let mut told = false;
        loop {
            let message = tokio::select! {
                message = stream.message() => message,
                _ = tick.tick() => {
                    backlog.retry().await;
                    continue;
                }
            };
            match message {
                Ok(Some(response)) => {
                    told = true;
                    self.take(response, backlog).await;
                }
                Ok(None) => {
                    tracing::info!("the operator ended the watch of routes");
                    return told;
                }
                Err(status) => {
                    tracing::warn!(error = %status, "the watch of routes broke");
                    return told;
                }
            }
        }
    }

    async fn take(&self, response: WatchRoutesResponse, backlog: &mut Backlog) {
        // Rows come first: a session of a new tenant refers to the tenant's row. A change that needs none waits for none: it may
        // be the word to stop a tenant.
        if backlog.add(routes(&response)) {
            backlog.retry().await;
        }
        let change = self.tenants.apply(response);
        backlog.forget(&change.removed);
        self.metrics.tenants.set(i64::try_from(self.tenants.len()).unwrap_or(i64::MAX));
        if self.tenants.synced() {
            self.check.ready();
        }
    }

    /// Sleeps between two tries, and keeps the metric and the rows current meanwhile.
    async fn pause(&self, pause: Duration, lost_at: Instant, backlog: &mut Backlog) {
        let until = Instant::now() + pause;
        while Instant::now() < until {
            self.metrics.stale_seconds.set(i64::try_from(lost_at.elapsed().as_secs()).unwrap_or(i64::MAX));
            backlog.retry().await;
            tokio::time::sleep_until(until.min(Instant::now() + TICK)).await;
        }
    }
}

fn retries() -> impl Iterator<Item = Duration> + Send {
    ExponentialBuilder::new()
        .with_min_delay(RETRY_FIRST)
        .with_max_delay(RETRY_MAX)
        .with_jitter()
        .without_max_times()
        .build()
}

fn routes(response: &WatchRoutesResponse) -> &[TenantRoute] {
    match &response.change {
        Some(Change::Snapshot(snapshot)) => &snapshot.tenants,
        Some(Change::Delta(delta)) => &delta.upserts,
        None => &[],
    }
}

/// Tenants whose row is still to be written. As many as there are tenants, at most.
struct Backlog {
    mirror: Arc<dyn TenantMirror>,
    written: HashMap<TenantId, String>,
    waiting: HashMap<TenantId, String>,
    gauge: IntGauge,
}

impl Backlog {
    fn new(mirror: Arc<dyn TenantMirror>, gauge: IntGauge) -> Self {
        Self { mirror, written: HashMap::new(), waiting: HashMap::new(), gauge }
    }

    /// Whether one of them has no row yet and hasn't been waiting for it.
    fn add(&mut self, routes: &[TenantRoute]) -> bool {
        let mut added = false;
        for route in routes {
            let Ok(id) = route.tenant_id.parse() else { continue };
            if self.written.get(&id) != Some(&route.name) {
                added |= self.waiting.insert(id, route.name.clone()).is_none();
            }
        }
        added
    }

    fn forget(&mut self, tenants: &[TenantId]) {
        for id in tenants {
            self.written.remove(id);
            self.waiting.remove(id);
        }
    }

    /// Writes what waits, as far as that goes within the time limit.
    async fn retry(&mut self) {
        if !self.waiting.is_empty() {
            let Self { mirror, written, waiting, .. } = self;
            let mirror: &dyn TenantMirror = &**mirror;
            let todo: Vec<_> = waiting.iter().map(|(id, name)| (*id, name.clone())).collect();
            let mut writes = stream::iter(todo)
                .map(|(id, name)| async move { (mirror.upsert(id, &name).await, id, name) })
                .buffer_unordered(MIRROR_CONCURRENCY);
            let pass = async {
                while let Some((outcome, id, name)) = writes.next().await {
                    match outcome {
                        Ok(()) => {
                            waiting.remove(&id);
                            written.insert(id, name);
                        }
                        Err(error) => tracing::warn!(tenant = %id, error = %error, "cannot mirror the tenant"),
                    }
                }
            };
            // Whatever is left waits for the next tick.
            let _ = timeout(MIRROR_TIMEOUT, pass).await;
        }
        self.gauge.set(i64::try_from(self.waiting.len()).unwrap_or(i64::MAX));
    }
}
