//! The program's prometheus registry and its page.

use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};

/// Seconds. Calls last from a millisecond (a read) to minutes (a turn that streams).
const RPC_BUCKETS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0];

/// Where the parts of one program register their counters. Clones share it.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    rpc: RpcMetrics,
    connections: ConnectionMetrics,
}

/// What is counted of the connections of each port.
#[derive(Clone)]
pub(crate) struct ConnectionMetrics {
    pub(crate) open: IntGaugeVec,
    pub(crate) refused: IntCounterVec,
    pub(crate) calls_refused: IntCounterVec,
}

/// What is counted of each call that a gRPC server takes.
#[derive(Clone)]
pub(crate) struct RpcMetrics {
    pub(crate) requests: IntCounterVec,
    pub(crate) duration: HistogramVec,
}

impl Metrics {
    /// A registry that holds `croft_build_info{program, version}`, always 1, and the counters of gRPC servers and of ports.
    pub fn new(program: &'static str) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let opts = Opts::new("croft_build_info", "The program and its version; always 1.");
        let build_info = IntGaugeVec::new(opts, &["program", "version"])?;
        build_info.with_label_values(&[program, env!("CARGO_PKG_VERSION")]).set(1);
        registry.register(Box::new(build_info))?;

        let labels = ["service", "method", "code"];
        let help = "Calls that ended, by method and gRPC code, and whose doing it is where anybody or a tenant can bring the code about.";
        let opts = Opts::new("croft_grpc_requests_total", help);
        let requests = IntCounterVec::new(opts, &["service", "method", "code", "whose"])?;
        registry.register(Box::new(requests.clone()))?;
        let help = "Seconds from a call's arrival to its final status, by method and gRPC code.";
        let opts = HistogramOpts::new("croft_grpc_request_duration_seconds", help).buckets(RPC_BUCKETS.to_vec());
        let duration = HistogramVec::new(opts, &labels)?;
        registry.register(Box::new(duration.clone()))?;

        let opts = Opts::new("croft_connections", "Open connections, by port.");
        let open = IntGaugeVec::new(opts, &["port"])?;
        registry.register(Box::new(open.clone()))?;
        let opts = Opts::new("croft_connections_refused_total", "Connections beyond the bound of their port.");
        let refused = IntCounterVec::new(opts, &["port"])?;
        registry.register(Box::new(refused.clone()))?;
        let help = "Calls refused, as their port held too much of requests' heads.";
        let calls_refused = IntCounterVec::new(Opts::new("croft_calls_refused_total", help), &["port"])?;
        registry.register(Box::new(calls_refused.clone()))?;
        let connections = ConnectionMetrics { open, refused, calls_refused };
        Ok(Self { registry, rpc: RpcMetrics { requests, duration }, connections })
    }

    /// The registry, for counters and histograms of the program's own.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Everything registered, in prometheus' text format.
    pub fn text(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// `/metrics`.
    pub fn routes(&self) -> axum::Router {
        let metrics = self.clone();
        let page = move || {
            let answer = match metrics.text() {
                Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
            };
            std::future::ready(answer)
        };
        axum::Router::new().route("/metrics", get(page))
    }

    pub(crate) fn rpc(&self) -> &RpcMetrics {
        &self.rpc
    }

    pub(crate) fn connections(&self) -> &ConnectionMetrics {
        &self.connections
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_begins_with_what_is_running() {
        let text = Metrics::new("croft-test").unwrap().text().unwrap();
        let line = format!("croft_build_info{{program=\"croft-test\",version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
        assert!(text.lines().any(|own| own == line), "{text}");
    }
}
