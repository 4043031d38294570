//! Flags and environment variables that several programs share, and how a program with mistakes in them says so.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

mod mistakes;

pub use mistakes::{Config, Mistakes, parse, try_parse_from};

/// What every program needs to serve; flatten it into the program's own arguments.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Serving")]
pub struct ServeArgs {
    /// Which log lines to write, as `level` or `target=level,…`
    #[arg(long, env = "CROFT_LOG", default_value = "info", value_parser = log_filter)]
    pub log: String,
    /// Send traces by OTLP over gRPC to this collector, such as `http://otel-collector.monitoring:4317`; none are sent
    /// without it
    #[arg(long, env = "CROFT_OTLP_ENDPOINT", value_parser = http_url)]
    pub otlp_endpoint: Option<String>,
    /// Address of /metrics, /healthz and /readyz
    #[arg(long, env = "CROFT_METRICS_ADDR", default_value = "0.0.0.0:9090")]
    pub metrics_addr: SocketAddr,
    /// How long work that has begun may go on after SIGTERM, in milliseconds; what is left then is dropped. Keep it below
    /// the pod's terminationGracePeriodSeconds
    #[arg(long, env = "CROFT_SHUTDOWN_GRACE_MS", default_value_t = 25_000)]
    pub shutdown_grace_ms: u64,
}

impl ServeArgs {
    /// [`ServeArgs::shutdown_grace_ms`] as a duration.
    pub fn shutdown_grace(&self) -> Duration {
        Duration::from_millis(self.shutdown_grace_ms)
    }
}

/// The files of a program's mutual TLS; flatten it where such calls are made or taken.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Mutual TLS")]
pub struct TlsArgs {
    /// PEM file of this program's certificate, with its chain if it has one
    #[arg(long, env = "CROFT_TLS_CERT", default_value = "/etc/croft/tls/tls.crt")]
    pub tls_cert: PathBuf,
    /// PEM file of the certificate's private key
    #[arg(long, env = "CROFT_TLS_KEY", default_value = "/etc/croft/tls/tls.key")]
    pub tls_key: PathBuf,
    /// PEM file of the authority that peers' certificates must come from
    #[arg(long, env = "CROFT_TLS_CA", default_value = "/etc/croft/tls/ca.crt")]
    pub tls_ca: PathBuf,
}

fn log_filter(text: &str) -> Result<String, String> {
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// A value parser for clap: an absolute `http://` or `https://` URL.
pub fn http_url(text: &str) -> Result<String, String> {
    let uri: tonic::transport::Uri = text.parse().map_err(|_| "it isn't a URL".to_owned())?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(host)) if !host.is_empty() => Ok(text.to_owned()),
        _ => Err("it must begin with http:// or https:// and name a host".to_owned()),
    }
}
