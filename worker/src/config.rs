//! The program's flags and variables; checked once, at start.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use croft_llm::Providers;
use croft_serve::{Config, Mistakes, ServeArgs, TlsArgs};

use crate::keys::Keys;
use crate::server::RuntimeOptions;
use crate::{memory, providers};

/// Of the shutdown grace, what is kept for handing turns back that did not end by themselves.
const HAND_BACK: Duration = Duration::from_secs(5);
/// What checkpoints of idle sessions may take of the worker's memory: turns that run need the most of it.
const CHECKPOINT_SHARE: u64 = 8;

/// Runs the agents of one tenant, for the front.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "croft-worker", version)]
pub struct Args {
    #[command(flatten)]
    pub serve: ServeArgs,
    #[command(flatten)]
    pub tls: TlsArgs,
    /// Address of `RuntimeService`
    #[arg(long, env = "CROFT_GRPC_ADDR", default_value = "0.0.0.0:50052")]
    pub grpc_addr: SocketAddr,
    /// Name of the tenant that this worker serves
    #[arg(long, env = "CROFT_TENANT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub tenant: String,
    /// Name of this worker's pod
    #[arg(long, env = "CROFT_WORKER_NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub worker_name: String,
    /// Namespace of this worker's pod; tenant-<tenant> unless given
    #[arg(long, env = "CROFT_WORKER_NAMESPACE")]
    pub worker_namespace: Option<String>,
    /// Sessions that this worker may hold; further ones are refused with `WORKER_FULL`
    #[arg(long, env = "CROFT_SESSIONS_MAX", default_value_t = 50)]
    pub sessions_max: usize,
    /// JSON file of the model providers beside `scripted`, and of the MCP servers that agents may use, such as
    /// `{"providers":{"anthropic":{"api_key_file":"/etc/croft/keys/anthropic"}},"mcp_servers":[{"name":"tickets",
    /// "url":"https://tools.example.com/mcp","token_file":"/etc/croft/keys/mcp-tickets"}]}`
    #[arg(long, env = "CROFT_PROVIDERS")]
    pub providers: Option<PathBuf>,
    /// Speak plaintext and take calls from anyone, on a loopback address only: for tests
    #[arg(long, env = "CROFT_INSECURE")]
    pub insecure: bool,
}

impl Config for Args {
    fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        if self.sessions_max == 0 {
            mistakes.push("--sessions-max (CROFT_SESSIONS_MAX) must be at least 1.".to_owned());
        }
        if self.insecure && !self.grpc_addr.ip().is_loopback() {
            mistakes.push(format!(
                "--insecure (CROFT_INSECURE) is for tests on a loopback address, and --grpc-addr (CROFT_GRPC_ADDR) is {}.",
                self.grpc_addr
            ));
        }
        mistakes
    }
}

impl Args {
    /// What the worker is told to be, with the MCP servers of the file. Fails as [`Args::providers`] does.
    pub fn options(&self) -> Result<RuntimeOptions, Mistakes> {
        let mcp_servers = providers::mcp_servers(self.providers.as_deref())?;
        let namespace = self.worker_namespace.clone().unwrap_or_else(|| format!("tenant-{}", self.tenant));
        let defaults = RuntimeOptions::new(&self.tenant, &self.worker_name, namespace);
        Ok(RuntimeOptions {
            sessions_max: self.sessions_max,
            checkpoint_bytes_max: checkpoint_bytes_max(memory::limit()).unwrap_or(defaults.checkpoint_bytes_max),
            drain: self.serve.shutdown_grace().saturating_sub(HAND_BACK),
            mcp_servers,
            require_front_certificate: !self.insecure,
            ..defaults
        })
    }

    /// The providers of the file, and `scripted`, with the keys to follow. Fails with a sentence per mistake, none of which
    /// holds anything of a key.
    pub fn providers(&self) -> Result<(Providers, Keys), Mistakes> {
        providers::open(self.providers.as_deref())
    }
}

/// Their share of this much memory, in bytes.
fn checkpoint_bytes_max(memory: Option<u64>) -> Option<usize> {
    usize::try_from(memory? / CHECKPOINT_SHARE).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_of_512_mib_keeps_64_mib_of_checkpoints_and_one_without_a_limit_as_much_by_default() {
        let by_default = RuntimeOptions::new("meadow", "worker-0", "tenant-meadow").checkpoint_bytes_max;
        assert_eq!(checkpoint_bytes_max(Some(512 * 1024 * 1024)), Some(by_default));
        assert_eq!(checkpoint_bytes_max(None), None);
    }
}
