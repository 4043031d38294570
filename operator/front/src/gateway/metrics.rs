//! What the HTTP port tells prometheus.

use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};

/// Instruments of the HTTP port. No label carries a tenant or a session: their number has no bound.
#[derive(Clone)]
pub struct Metrics {
    /// By kind: `sse` or `websocket`.
    pub(super) connections: IntGaugeVec,
    /// By kind.
    pub(super) events_sent: IntCounterVec,
    /// Ends of a WebSocket, by close code; 0 when the peer was just gone.
    pub(super) closes: IntCounterVec,
    /// Frames that were refused, by reason.
    pub(super) refusals: IntCounterVec,
}

impl Metrics {
    /// Registers the instruments. Fails if one is registered already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = |name: &str, help: &str, label: &str| -> Result<IntCounterVec, prometheus::Error> {
            let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(counters.clone()))?;
            Ok(counters)
        };
        let opts = Opts::new("croft_gateway_connections", "Open streams and WebSockets");
        let connections = IntGaugeVec::new(opts, &["kind"])?;
        registry.register(Box::new(connections.clone()))?;
        Ok(Self {
            connections,
            events_sent: counters("croft_gateway_events_sent_total", "Events sent to clients", "kind")?,
            closes: counters("croft_gateway_websocket_closes_total", "WebSockets that ended, by close code", "code")?,
            refusals: counters("croft_gateway_refused_frames_total", "Frames of clients that were refused", "reason")?,
        })
    }

    /// Counts a connection until it is dropped.
    pub(super) fn open(&self, kind: &'static str) -> Open {
        let connections = self.connections.clone();
        connections.with_label_values(&[kind]).inc();
        Open { connections, kind }
    }
}

pub(super) struct Open {
    connections: IntGaugeVec,
    kind: &'static str,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.connections.with_label_values(&[self.kind]).dec();
    }
}
