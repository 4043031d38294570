//! The program's flags and variables, and the file of its model providers; checked once, at start.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use croft_llm::anthropic::{self, Anthropic};
use croft_llm::{Limits, Providers, scripted};
use croft_serve::config::http_url;
use croft_serve::{Config, Mistakes, ServeArgs, TlsArgs};
use secrecy::SecretString;
use serde::Deserialize;

use crate::server::RuntimeOptions;
use crate::step::chain;

/// Of the shutdown grace, what is kept for handing turns back that did not end by themselves.
const HAND_BACK: Duration = Duration::from_secs(5);

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
    /// JSON file of the model providers beside `scripted`, such as
    /// `{"providers":{"anthropic":{"api_key_file":"/etc/croft/keys/anthropic"}}}`
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
    /// What the worker is told to be.
    pub fn options(&self) -> RuntimeOptions {
        let namespace = self.worker_namespace.clone().unwrap_or_else(|| format!("tenant-{}", self.tenant));
        RuntimeOptions {
            sessions_max: self.sessions_max,
            drain: self.serve.shutdown_grace().saturating_sub(HAND_BACK),
            require_front_certificate: !self.insecure,
            ..RuntimeOptions::new(&self.tenant, &self.worker_name, namespace)
        }
    }

    /// The providers of the file, and `scripted`. Reads the keys. Fails with a sentence per mistake, none of which
    /// holds anything of a key.
    pub fn providers(&self) -> Result<Providers, Mistakes> {
        let providers = Providers::new().with(scripted::Scripted::new());
        let Some(path) = &self.providers else { return Ok(providers) };
        let file = read(path).map_err(|problem| Mistakes(vec![sentence(path, &problem)]))?;
        let mut mistakes = Vec::new();
        let configured =
            file.providers.into_iter().fold(providers, |providers, (name, provider)| match open(&name, provider) {
                Ok(Some(anthropic)) => providers.with(anthropic),
                Ok(None) => providers,
                Err(problem) => {
                    mistakes.push(sentence(path, &format!("provider {name}: {problem}")));
                    providers
                }
            });
        if mistakes.is_empty() { Ok(configured) } else { Err(Mistakes(mistakes)) }
    }
}

fn sentence(path: &Path, problem: &str) -> String {
    format!("{} of --providers (CROFT_PROVIDERS) is not usable: {problem}.", path.display())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    providers: BTreeMap<String, Provider>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Provider {
    base_url: Option<String>,
    api_key_file: Option<PathBuf>,
}

fn read(path: &Path) -> Result<File, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    serde_json::from_str(&text).map_err(|error| error.to_string())
}

/// The provider of that name; none for `scripted`, which is there already.
fn open(name: &str, provider: Provider) -> Result<Option<Anthropic>, String> {
    match name {
        scripted::NAME => Ok(None),
        anthropic::NAME => {
            // Without a key there is only a model of one's own, that asks for none.
            let needs_none = provider.base_url.is_some() && provider.api_key_file.is_none();
            let base_url = provider.base_url.unwrap_or_else(|| anthropic::BASE_URL.to_owned());
            let base_url = http_url(&base_url).map_err(|problem| format!("base_url {base_url:?}: {problem}"))?;
            let found =
                if needs_none { Some(SecretString::default()) } else { api_key(provider.api_key_file.as_deref())? };
            let Some(api_key) = found else {
                tracing::warn!(provider = name, "its key is not there; going on without it");
                return Ok(None);
            };
            let settings = anthropic::Settings { base_url, api_key, limits: Limits::default() };
            Anthropic::new(settings).map(Some).map_err(|error| format!("no TLS client can be made: {}", chain(&error)))
        }
        _ => Err(format!("there is no such provider; there are {} and {}", anthropic::NAME, scripted::NAME)),
    }
}

/// `None` where the file is not there: the key may come later, and the tenant's other providers must not wait for it.
fn api_key(path: Option<&Path>) -> Result<Option<SecretString>, String> {
    let path = path.ok_or("api_key_file is missing")?;
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("api_key_file {}: {error}", path.display())),
    };
    let key = text.trim();
    // It goes into a header; the parser's own error could quote it.
    if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("api_key_file {} must hold one line of printable ASCII", path.display()));
    }
    Ok(Some(SecretString::from(key)))
}
