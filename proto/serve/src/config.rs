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
    #[arg(long, env = "CROFT_OTLP_ENDPOINT", value_parser = collector_url)]
    pub otlp_endpoint: Option<String>,
    /// Address of /metrics, /healthz, /readyz and /servingz
    #[arg(long, env = "CROFT_METRICS_ADDR", default_value = "0.0.0.0:9090")]
    pub metrics_addr: SocketAddr,
    /// How long new connections and calls are still taken after SIGTERM, while `/readyz` says no, in milliseconds: whoever sends them here
    /// hears of that a moment later. Set it for a program behind a Kubernetes Service
    #[arg(long, env = "CROFT_SHUTDOWN_DELAY_MS", default_value_t = 0)]
    pub shutdown_delay_ms: u64,
    /// How long work that has begun may go on after that, in milliseconds; what is left then is dropped. Keep both below the
    /// pod's terminationGracePeriodSeconds
    #[arg(long, env = "CROFT_SHUTDOWN_GRACE_MS", default_value_t = 25_000)]
    pub shutdown_grace_ms: u64,
}

impl ServeArgs {
    /// [`ServeArgs::shutdown_delay_ms`] as a duration.
    pub fn shutdown_delay(&self) -> Duration {
        Duration::from_millis(self.shutdown_delay_ms)
    }

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

/// A value parser for clap: what [`ServeArgs::log`] may be.
pub fn log_filter(text: &str) -> Result<String, String> {
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// A value parser for clap: what [`ServeArgs::otlp_endpoint`] may be, an absolute `http://` URL.
pub fn collector_url(text: &str) -> Result<String, String> {
    // The exporter is built without TLS roots: a collector is a neighbour, on the node or in the cluster.
    if text.starts_with("https:") {
        return Err("traces are sent without TLS, so it must begin with http://".to_owned());
    }
    http_url(text)
}

/// A value parser for clap: an absolute `http://` or `https://` URL.
pub fn http_url(text: &str) -> Result<String, String> {
    let uri: tonic::transport::Uri = text.parse().map_err(|_| "it isn't a URL".to_owned())?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(host)) if !host.is_empty() => Ok(text.to_owned()),
        _ => Err("it must begin with http:// or https:// and name a host".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Args {
        #[command(flatten)]
        serve: ServeArgs,
        /// Holds a password.
        #[arg(long, env = "CROFT_TEST_ONLY_STORE_URL", hide_env_values = true, value_parser = http_url)]
        store_url: String,
        #[arg(long, default_value_t = 1)]
        sessions_max: u32,
        #[command(subcommand)]
        command: Option<Command>,
    }

    #[derive(Debug, clap::Subcommand)]
    enum Command {
        Migrate {
            #[arg(long, env = "CROFT_TEST_ONLY_RETRIES", default_value_t = 3)]
            retries: u8,
        },
    }

    impl Config for Args {
        fn mistakes(&self) -> Vec<String> {
            let none = self.sessions_max == 0;
            none.then(|| "--sessions-max must be at least 1.".to_owned()).into_iter().collect()
        }
    }

    const STORE: &str = "--store-url=http://store";

    fn mistakes(args: &[&str]) -> Vec<String> {
        try_parse_from::<Args>([&["program"], args].concat()).unwrap_err().0
    }

    #[test]
    fn defaults_are_usable() {
        let args = try_parse_from::<Args>(["program", STORE]).unwrap();
        assert_eq!(args.serve.shutdown_grace(), Duration::from_secs(25));
        assert_eq!(args.serve.metrics_addr.port(), 9090);
        assert_eq!(args.serve.otlp_endpoint, None);
    }

    #[test]
    fn every_mistake_is_told_at_once_and_names_flag_and_variable() {
        let told = mistakes(&["--log=a=b=c", "--metrics-addr=here", "--shutdown-grace-ms=soon"]);
        assert_eq!(told.len(), 4, "{told:#?}");
        for (sentence, name) in told.iter().zip([
            "--log (CROFT_LOG) is not usable: \"a=b=c\": ",
            "--metrics-addr (CROFT_METRICS_ADDR) is not usable: \"here\": ",
            "--shutdown-grace-ms (CROFT_SHUTDOWN_GRACE_MS) is not usable: \"soon\": ",
            "--store-url (CROFT_TEST_ONLY_STORE_URL) is required.",
        ]) {
            assert!(sentence.starts_with(name), "{sentence:?} should begin with {name:?}");
        }
    }

    #[test]
    fn mistakes_within_a_subcommand_are_told_too() {
        let told = mistakes(&["--log=a=b=c", STORE, "migrate", "--retries=many"]);
        assert_eq!(told.len(), 2, "{told:#?}");
        assert!(told[1].starts_with("--retries (CROFT_TEST_ONLY_RETRIES) is not usable"), "{told:#?}");
    }

    #[test]
    fn a_secret_value_is_not_repeated() {
        let told = mistakes(&["--store-url=ftp://user:hunter2@store"]);
        assert_eq!(told.len(), 1);
        assert!(
            told[0].starts_with("--store-url (CROFT_TEST_ONLY_STORE_URL) is not usable: it must begin"),
            "{told:?}"
        );
        assert!(!told[0].contains("hunter2"));
    }

    #[test]
    fn the_programs_own_rules_come_after_claps() {
        assert_eq!(mistakes(&[STORE, "--sessions-max=0"]), ["--sessions-max must be at least 1."]);
    }

    #[test]
    fn an_unknown_flag_is_named() {
        assert_eq!(mistakes(&[STORE, "--colour"]), ["unexpected argument '--colour' found."]);
    }

    #[test]
    fn a_collector_behind_tls_is_refused_with_the_reason() {
        let told = mistakes(&[STORE, "--otlp-endpoint=https://collector:4317"]);
        assert!(told[0].contains("--otlp-endpoint (CROFT_OTLP_ENDPOINT)"), "{told:?}");
        assert!(told[0].contains("without TLS"), "{told:?}");
    }

    #[test]
    fn a_url_needs_a_scheme_and_a_host() {
        assert!(http_url("http://store:8080/path").is_ok());
        assert!(http_url("https://store").is_ok());
        for bad in ["store:8080", "http://", "ftp://store", ""] {
            assert!(http_url(bad).is_err(), "{bad:?}");
        }
    }
}
