//! What the operator tells Prometheus about its work.

use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// The operator's instruments. Clones share them.
#[derive(Clone)]
pub struct Metrics {
    /// Passes, by kind and outcome: `ok`, or the fixed word of the error.
    pub reconciles: IntCounterVec,
    /// How long a pass took, by kind.
    pub reconcile_seconds: HistogramVec,
    /// Objects that wait for a pass, by queue: `tenants`, `sessions` or `stops`.
    pub passes_waiting: IntGaugeVec,
    /// For how long the one has waited that has waited for longest, by queue.
    pub passes_oldest_seconds: GaugeVec,
    /// Tenants whose workers are being exchanged for the platform's sake.
    pub rollouts_under_way: IntGauge,
    /// Tenants whose workers wait for a permit to be exchanged.
    pub rollouts_waiting: IntGauge,
    /// Rollouts with a permit that have ended.
    pub rollouts_ended: IntCounter,
    /// Writes to the API server, by kind and verb.
    pub writes: IntCounterVec,
    /// Events for people, by what became of them: `written`, `failed`, `repeated` or `dropped`.
    pub events: IntCounterVec,
    /// 1 on the replica that writes.
    pub leader: IntGauge,
    /// When the API server last answered, by watch: how old a copy may be is the time since then.
    pub watch_answered: IntGaugeVec,
    /// Objects that a later release has written and this one can't read, by kind.
    pub unreadable: IntGaugeVec,
    /// Fronts that watch the routes here.
    pub route_watchers: IntGauge,
    /// Fronts that were cut off because they did not keep up.
    pub route_laggards: IntCounter,
}

impl Metrics {
    /// Registers the instruments. Fails if one is registered already.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let counters = |name: &str, help: &str, labels: &[&str]| -> prometheus::Result<IntCounterVec> {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            Ok(counters)
        };
        let gauge = |name: &str, help: &str| -> prometheus::Result<IntGauge> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let seconds = HistogramOpts::new("croft_operator_reconcile_seconds", "How long a pass took, by kind.")
            .buckets(vec![0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 30.0]);
        let reconcile_seconds = HistogramVec::new(seconds, &["kind"])?;
        registry.register(Box::new(reconcile_seconds.clone()))?;
        let passes_waiting = IntGaugeVec::new(
            Opts::new("croft_operator_passes_waiting", "Objects that wait for a pass, by queue."),
            &["queue"],
        )?;
        registry.register(Box::new(passes_waiting.clone()))?;
        let passes_oldest_seconds = GaugeVec::new(
            Opts::new(
                "croft_operator_passes_oldest_seconds",
                "For how long the object has waited for a pass that has waited for longest, by queue.",
            ),
            &["queue"],
        )?;
        registry.register(Box::new(passes_oldest_seconds.clone()))?;
        let route_laggards = IntCounter::new(
            "croft_operator_route_laggards_total",
            "Fronts that were cut off because they did not keep up with the routes.",
        )?;
        registry.register(Box::new(route_laggards.clone()))?;
        let rollouts_ended = IntCounter::new(
            "croft_operator_rollouts_ended_total",
            "Rollouts for the platform's sake that have ended.",
        )?;
        registry.register(Box::new(rollouts_ended.clone()))?;
        let watch_answered = IntGaugeVec::new(
            Opts::new(
                "croft_operator_watch_answered_timestamp_seconds",
                "When the API server last answered, by watch, in seconds since 1970. Each asks every 20 s.",
            ),
            &["watch"],
        )?;
        registry.register(Box::new(watch_answered.clone()))?;
        let unreadable = IntGaugeVec::new(
            Opts::new(
                "croft_operator_unreadable_objects",
                "Objects that this release can't read, by kind: nothing is made by them until they can be read.",
            ),
            &["kind"],
        )?;
        registry.register(Box::new(unreadable.clone()))?;
        Ok(Self {
            reconciles: counters(
                "croft_operator_reconciles_total",
                "Passes, by kind and outcome.",
                &["kind", "outcome"],
            )?,
            reconcile_seconds,
            passes_waiting,
            passes_oldest_seconds,
            rollouts_under_way: gauge(
                "croft_operator_rollouts_under_way",
                "Tenants whose workers are being exchanged for the platform's sake.",
            )?,
            rollouts_waiting: gauge(
                "croft_operator_rollouts_waiting",
                "Tenants whose workers wait for a permit to be exchanged.",
            )?,
            rollouts_ended,
            writes: counters(
                "croft_operator_api_writes_total",
                "Writes to the API server, by kind and verb.",
                &["kind", "verb"],
            )?,
            events: counters(
                "croft_operator_events_total",
                "Events for people, by what became of them.",
                &["outcome"],
            )?,
            leader: gauge("croft_operator_leader", "1 on the replica that writes.")?,
            watch_answered,
            unreadable,
            route_watchers: gauge("croft_operator_route_watchers", "Fronts that watch the routes here.")?,
            route_laggards,
        })
    }
}
