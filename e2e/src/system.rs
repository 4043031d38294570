//! The system that `make up` left running, as its env file tells.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// Where the system is, and the demo tenant's key.
#[derive(Debug, Clone)]
pub struct System {
    pub kubeconfig: PathBuf,
    /// `PATH` with kubectl and helm on it.
    pub path: String,
    /// `host:port` of the front's gRPC.
    pub grpc: String,
    /// URL of the front's HTTP.
    pub http: String,
    pub api_key: String,
    /// The admin's URL of the database.
    pub postgres_url: String,
    pub redis_url: String,
    /// The program that pods of `croft/probe:dev` run.
    pub probe: PathBuf,
}

impl System {
    /// Reads `target/croft/env`, or the file that `CROFT_ENV_FILE` names.
    pub fn from_env_file() -> anyhow::Result<Self> {
        let file = std::env::var_os("CROFT_ENV_FILE")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/croft/env"), PathBuf::from);
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("{} is not there: `make up` starts the system", file.display()))?;
        let values = exports(&text);
        let value = |name: &str| match values.get(name) {
            Some(value) => Ok(value.clone()),
            None => bail!("{} does not set {name}: `make up` has not finished", file.display()),
        };
        Ok(Self {
            kubeconfig: value("KUBECONFIG")?.into(),
            path: format!("{}:{}", value("PATH")?, std::env::var("PATH").unwrap_or_default()),
            grpc: value("CROFT_GRPC")?,
            http: value("CROFT_HTTP")?,
            api_key: value("CROFT_API_KEY")?,
            postgres_url: value("CROFT_POSTGRES_URL")?,
            redis_url: value("CROFT_REDIS_URL")?,
            probe: value("CROFT_PROBE")?.into(),
        })
    }
}

/// `export NAME=value` lines; later ones win. Of a value in quotes that is all, whatever a shell would put behind them.
fn exports(text: &str) -> HashMap<String, String> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("export "))
        .filter_map(|assignment| assignment.split_once('='))
        .map(|(name, value)| (name.to_owned(), unquoted(value).to_owned()))
        .collect()
}

fn unquoted(value: &str) -> &str {
    let quote = value.chars().next().filter(|first| matches!(first, '"' | '\''));
    let within = quote.and_then(|quote| value[1..].split(quote).next());
    within.unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_are_read_with_and_without_quotes() {
        let values = exports(
            "# a comment\nexport A=one\nexport B='two words'\nexport A=\"three\"\nexport PATH='/its/own'\"${PATH:+:$PATH}\"\n",
        );
        assert_eq!(values["A"], "three");
        assert_eq!(values["B"], "two words");
        assert_eq!(values["PATH"], "/its/own");
        assert_eq!(values.len(), 3);
    }
}
