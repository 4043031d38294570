//! What the fan-out tells prometheus.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Instruments of the fan-out. No label carries a tenant or a session: their number has no bound.
#[derive(Clone)]
pub struct Metrics {
    pub(crate) subscribers: IntGauge,
    pub(crate) sessions_watched: IntGauge,
    /// By place: `subscriber` or `relay`.
    pub(crate) previews_dropped: IntCounterVec,
    /// By class: `durable` or `preview`.
    pub(crate) relay_shed: IntCounterVec,
    pub(crate) relay_waiting: IntGauge,
    /// By operation: `publish` or `subscribe`.
    pub(crate) relay_failures: IntCounterVec,
    pub(crate) relay_up: IntGauge,
    pub(crate) slow_subscribers: IntCounter,
    pub(crate) gaps: IntCounter,
    /// Streams that were opened behind an event.
    pub(crate) resumes: IntCounter,
    /// Events that a live subscriber had to read from the log.
    pub(crate) filled: IntCounter,
    pub(crate) stale_previews: IntCounter,
    pub(crate) controls_dropped: IntCounter,
}

impl Metrics {
    /// Registers the instruments. Fails if one is registered already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let counters = |name: &str, help: &str, label: &str| -> Result<IntCounterVec, prometheus::Error> {
            let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(counters.clone()))?;
            Ok(counters)
        };
        let gauge = |name: &str, help: &str| -> Result<IntGauge, prometheus::Error> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        Ok(Self {
            subscribers: gauge("croft_event_subscribers", "Streams of events that are open at this replica")?,
            sessions_watched: gauge("croft_event_sessions_watched", "Sessions that this replica listens to")?,
            previews_dropped: counters("croft_event_previews_dropped_total", "Previews dropped at a bound", "at")?,
            relay_shed: counters("croft_event_relay_shed_total", "Events not sent to other replicas", "class")?,
            relay_waiting: gauge("croft_event_relay_waiting", "Events that wait to be sent to other replicas")?,
            relay_failures: counters("croft_event_relay_failures_total", "Failed calls of the relay", "operation")?,
            relay_up: gauge("croft_event_relay_up", "1 while the last call of the relay went well")?,
            slow_subscribers: counter("croft_event_slow_subscribers_total", "Streams ended as they were too slow")?,
            gaps: counter("croft_event_gaps_total", "Gap notices that were sent")?,
            resumes: counter("croft_event_resumes_total", "Streams that went on behind an event")?,
            filled: counter("croft_event_filled_total", "Live events that came from the log, not the relay")?,
            stale_previews: counter("croft_event_stale_previews_total", "Previews that came after their event")?,
            controls_dropped: counter("croft_event_controls_dropped_total", "Controls that a turn had no room for")?,
        })
    }
}

/// As gauges take it.
pub(super) fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
