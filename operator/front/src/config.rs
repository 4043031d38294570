//! What the front can be told: flags, and environment variables of the same names.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use axum::http::HeaderValue;
use clap::{Args, Parser, Subcommand};
use croft_proto::Timestamp;
use croft_serve::config::http_url;
use croft_serve::connections::Bounds;
use croft_serve::settings::Release;
use croft_serve::{ServeArgs, TlsArgs};
use secrecy::{ExposeSecret, SecretString};

use crate::api_key_command;
use crate::audit::spool::Folder;
use crate::budget::webhook::Hook;
use crate::core::Options;
use crate::identity::role::Role;
use crate::identity::settings::{IdentityArgs, Settings};
use crate::limits::rates::{ProviderRates, Rates};
use crate::redis_client;
use crate::reprice_command::Choice;

/// A hundred years. What is longer is a mistake, or "for ever", which is 0.
const RETENTION_HOURS_MAX: u64 = 100 * 366 * 24;
/// At a shutdown, clients that have asked for nothing for so long are not waited for: they go on at another replica. Who takes a large
/// event slowly asks for no more until it is there: so long is enough for 4 MiB at 300 KB/s, and still below the grace.
const UNREAD_MAX: Duration = Duration::from_secs(15);

/// The front of Croft: sessions for the tenants' clients.
#[derive(Debug, Parser)]
#[command(name = "croft-front", version)]
pub struct Config {
    #[command(subcommand)]
    pub command: Command,
}

impl croft_serve::Config for Config {
    fn mistakes(&self) -> Vec<String> {
        match &self.command {
            Command::Serve(serve) => serve.mistakes(),
            Command::Migrate(_) | Command::ApiKey(_) | Command::Models(_) | Command::Reprice(_) => Vec::new(),
        }
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve clients
    Serve(Box<Serve>),
    /// Bring the database up to date, and let the front's role use it
    Migrate(Migrate),
    /// Manage API keys
    #[command(subcommand)]
    ApiKey(ApiKey),
    /// Manage models and their prices
    #[command(subcommand)]
    Models(Models),
    /// Reckon anew what attempts cost, by the prices that there are now for their time
    Reprice(Reprice),
}

/// `croft-front serve`.
#[derive(Debug, Args)]
pub struct Serve {
    #[command(flatten)]
    pub program: ServeArgs,
    #[command(flatten)]
    pub tls: TlsArgs,
    #[command(flatten)]
    pub identity: IdentityArgs,
    /// How long replicas take to begin anew, each at a moment of its own, once their certificate is renewed, in seconds
    #[arg(long, env = "CROFT_RENEWAL_SPREAD_SECONDS", default_value_t = 3_600)]
    pub renewal_spread_seconds: u64,
    /// URL of the database, with the front's own role: `postgres://croft_front:…@host:5432/croft`. By TLS, to a server whose
    /// certificate is checked, with `?sslmode=verify-full`, and `&sslrootcert=PATH` for an authority of one's own
    #[arg(long, env = "CROFT_POSTGRES_URL", hide_env_values = true, value_parser = postgres_url)]
    pub postgres_url: SecretString,
    /// Connections to the database that calls may have; a call waits for a free one. One more looks whether the database is there
    #[arg(long, env = "CROFT_POSTGRES_CONNECTIONS_MAX", default_value_t = 16)]
    pub postgres_connections_max: u32,
    /// URL of Redis: `redis://:…@host:6379`, or by TLS `rediss://:…@host:6379`
    #[arg(long, env = "CROFT_REDIS_URL", hide_env_values = true, value_parser = redis_url)]
    pub redis_url: SecretString,
    /// A PEM file of the authorities that the certificate of a `rediss://` Redis may be of; without it, those that browsers trust
    #[arg(long, env = "CROFT_REDIS_CA")]
    pub redis_ca: Option<PathBuf>,
    /// URL of the operator's RouteService, such as `https://croft-operator.croft-system.svc:50053`
    #[arg(long, env = "CROFT_OPERATOR_URL", value_parser = http_url)]
    pub operator_url: String,
    /// Address for clients' gRPC
    #[arg(long, env = "CROFT_GRPC_ADDR", default_value = "0.0.0.0:50051")]
    pub grpc_addr: SocketAddr,
    /// Address for WebSocket and SSE
    #[arg(long, env = "CROFT_HTTP_ADDR", default_value = "0.0.0.0:8080")]
    pub http_addr: SocketAddr,
    /// Address for the operator's gRPC, by mutual TLS
    #[arg(long, env = "CROFT_INTERNAL_ADDR", default_value = "0.0.0.0:50054")]
    pub internal_addr: SocketAddr,
    /// Origins of web pages that may call the HTTP port from a browser, such as `https://app.example.com`; `*` is any
    #[arg(long, env = "CROFT_ALLOWED_ORIGINS", value_delimiter = ',', value_parser = origin)]
    pub allowed_origins: Vec<HeaderValue>,
    /// The name of this replica, unique among those that run; the pod's name. It holds leases
    #[arg(long, env = "CROFT_REPLICA")]
    pub replica: Option<String>,
    /// How long a silent replica keeps its turns, in milliseconds; then others take them over
    #[arg(long, env = "CROFT_LEASE_TTL_MS", default_value_t = 10_000)]
    pub lease_ttl_ms: u64,
    /// The longest message of a user, in bytes, for tenants that set none
    #[arg(long, env = "CROFT_MESSAGE_BYTES_MAX", default_value_t = 1024 * 1024)]
    pub message_bytes_max: usize,
    /// How long a turn may look for a worker, in milliseconds
    #[arg(long, env = "CROFT_PLACEMENT_TIMEOUT_MS", default_value_t = 10_000)]
    pub placement_timeout_ms: u64,
    /// Connections that each of the clients' two ports takes at most; one more is closed as soon as it is made
    #[arg(long, env = "CROFT_CONNECTIONS_MAX", default_value_t = 16_384)]
    pub connections_max: usize,
    /// Streams of events that one tenant may have open at this replica; one more is refused
    #[arg(long, env = "CROFT_STREAMS_PER_TENANT_MAX", default_value_t = 5_000)]
    pub streams_per_tenant_max: usize,
    /// How long a session that has ended is kept, with its events, in hours; 0 is for ever
    #[arg(long, env = "CROFT_RETENTION_HOURS", default_value_t = 2_160)]
    pub retention_hours: u64,
    /// Calls of a tenant's clients in a minute, for tenants that set none; 0 is no limit
    #[arg(long, env = "CROFT_REQUESTS_PER_MINUTE", default_value_t = 0)]
    pub requests_per_minute: u32,
    /// New sessions of a tenant in a minute; 0 is no limit
    #[arg(long, env = "CROFT_SESSIONS_PER_MINUTE", default_value_t = 0)]
    pub sessions_per_minute: u32,
    /// Tokens that a tenant's models may use in a minute, for tenants that set none; 0 is no limit
    #[arg(long, env = "CROFT_TOKENS_PER_MINUTE", default_value_t = 0)]
    pub tokens_per_minute: u32,
    /// A file with the rates of each tier at each provider, such as `anthropic: { free: { tokensPerMinute: 20000 } }`
    #[arg(long, env = "CROFT_PROVIDER_RATES_FILE")]
    pub provider_rates_file: Option<PathBuf>,
    /// Fronts that there are: while Redis is away, each lets through so great a part of rates and of what is left of budgets
    #[arg(long, env = "CROFT_REPLICAS", default_value_t = 1)]
    pub replicas: u32,
    /// A folder that outlives the process: audit records are there before their callers are answered, and until they are stored
    #[arg(long, env = "CROFT_AUDIT_FOLDER")]
    pub audit_folder: Option<PathBuf>,
    /// Bytes that batches of audit records may take there while the database is away, each file counted as whole blocks of 4 KiB; beyond,
    /// callers wait for the database. Leave a quarter of the volume free beside it
    #[arg(long, env = "CROFT_AUDIT_FOLDER_BYTES_MAX", default_value_t = 768 << 20)]
    pub audit_folder_bytes_max: u64,
    /// Where alerts of budgets are posted, such as `https://alerts.example.com/croft`; none posts nothing
    #[arg(long, env = "CROFT_ALERT_WEBHOOK_URL", hide_env_values = true, value_parser = http_url)]
    pub alert_webhook_url: Option<String>,
    /// What alerts are signed with, 16 characters at least
    #[arg(long, env = "CROFT_ALERT_WEBHOOK_SECRET", hide_env_values = true)]
    pub alert_webhook_secret: Option<SecretString>,
    /// Serve gRPC reflection on the clients' port
    #[arg(long, env = "CROFT_REFLECTION")]
    pub reflection: bool,
}

impl Serve {
    /// The part that concerns turns, and who may have them.
    pub fn options(&self, identity: Settings) -> Options {
        Options {
            identity,
            lease_ttl: Duration::from_millis(self.lease_ttl_ms),
            message_bytes_max: self.message_bytes_max,
            placement_timeout: Duration::from_millis(self.placement_timeout_ms),
            streams_per_tenant_max: self.streams_per_tenant_max,
            replicas: self.replicas,
            audit_folder: self.audit_folder(),
            hook: self.hook(),
            rates: Rates {
                requests: self.requests_per_minute.into(),
                sessions: self.sessions_per_minute.into(),
                tokens: self.tokens_per_minute.into(),
            },
            retention: (self.retention_hours > 0).then(|| Duration::from_hours(self.retention_hours)),
            ..Options::default()
        }
    }

    /// Where audit records wait.
    pub fn audit_folder(&self) -> Option<Folder> {
        Some(Folder { path: self.audit_folder.clone()?, bytes_max: self.audit_folder_bytes_max })
    }

    /// Where alerts go.
    pub fn hook(&self) -> Option<Hook> {
        Some(Hook { url: self.alert_webhook_url.clone()?, secret: self.alert_webhook_secret.clone()? })
    }

    /// What the file of rates says; no file is no rates.
    pub fn provider_rates(&self) -> anyhow::Result<ProviderRates> {
        let Some(path) = &self.provider_rates_file else { return Ok(ProviderRates::default()) };
        let unusable =
            || format!("--provider-rates-file (CROFT_PROVIDER_RATES_FILE): {} can't be used", path.display());
        let text = std::fs::read_to_string(path).with_context(unusable)?;
        ProviderRates::parse_of(&text, &Release::beside(path)).map_err(anyhow::Error::msg).with_context(unusable)
    }

    /// How Redis is reached. Connects to nothing yet.
    pub fn redis(&self) -> anyhow::Result<redis::Client> {
        let path = self.redis_ca.as_ref();
        let unusable = || match path {
            Some(path) => format!("{} of --redis-ca (CROFT_REDIS_CA) can't be used", path.display()),
            None => "--redis-url (CROFT_REDIS_URL) can't be used".to_owned(),
        };
        let authorities = path.map(std::fs::read).transpose().with_context(unusable)?;
        redis_client::open(self.redis_url.expose_secret(), authorities.as_deref()).with_context(unusable)
    }

    /// Of the clients' ports.
    pub fn bounds(&self) -> Bounds {
        Bounds { connections_max: self.connections_max, unread_max: Some(UNREAD_MAX), ..Bounds::default() }
    }

    fn mistakes(&self) -> Vec<String> {
        let mut mistakes = self.identity.read().err().unwrap_or_default();
        if self.lease_ttl_ms < 1_000 {
            mistakes.push("--lease-ttl-ms (CROFT_LEASE_TTL_MS) must be at least 1000.".to_owned());
        }
        if !(1..=crate::intake::MESSAGE_BYTES_CEILING).contains(&self.message_bytes_max) {
            mistakes.push(format!(
                "--message-bytes-max (CROFT_MESSAGE_BYTES_MAX) must be between 1 and {}.",
                crate::intake::MESSAGE_BYTES_CEILING
            ));
        }
        for (flag, is_none) in [
            ("--postgres-connections-max (CROFT_POSTGRES_CONNECTIONS_MAX)", self.postgres_connections_max == 0),
            ("--connections-max (CROFT_CONNECTIONS_MAX)", self.connections_max == 0),
            ("--streams-per-tenant-max (CROFT_STREAMS_PER_TENANT_MAX)", self.streams_per_tenant_max == 0),
            ("--audit-folder-bytes-max (CROFT_AUDIT_FOLDER_BYTES_MAX)", self.audit_folder_bytes_max == 0),
        ] {
            if is_none {
                mistakes.push(format!("{flag} must be at least 1."));
            }
        }
        let secret = self.alert_webhook_secret.as_ref().map_or(0, |secret| secret.expose_secret().len());
        match (&self.alert_webhook_url, secret) {
            (Some(_), ..16) => mistakes.push(
                "--alert-webhook-secret (CROFT_ALERT_WEBHOOK_SECRET) must have 16 characters at least.".to_owned(),
            ),
            (None, 1..) => mistakes.push(
                "--alert-webhook-url (CROFT_ALERT_WEBHOOK_URL) is missing beside --alert-webhook-secret.".to_owned(),
            ),
            _ => {}
        }
        if self.retention_hours > RETENTION_HOURS_MAX {
            mistakes.push(format!("--retention-hours (CROFT_RETENTION_HOURS) must be at most {RETENTION_HOURS_MAX}."));
        }
        mistakes
    }
}

/// `croft-front migrate`.
#[derive(Debug, Args)]
pub struct Migrate {
    /// URL of the database, with a role that owns it or may create roles and tables
    #[arg(long, env = "CROFT_POSTGRES_URL", hide_env_values = true, value_parser = postgres_url)]
    pub postgres_url: SecretString,
    /// The login role of the front, which is let into the tables
    #[arg(long, env = "CROFT_FRONT_ROLE", default_value = "croft_front")]
    pub front_role: String,
}

/// `croft-front api-key …`.
#[derive(Debug, Subcommand)]
pub enum ApiKey {
    /// Make a key for a tenant and print it, once: it is kept nowhere
    Create {
        /// The AgentTenant's name
        #[arg(long)]
        tenant: String,
        /// What its holder may do
        #[arg(long, default_value = "admin")]
        role: Role,
        /// When it is good no more: a time such as `2027-01-31T00:00:00Z`, or a while such as `90d`; never, if it is not given
        #[arg(long, value_parser = api_key_command::expiry)]
        expires: Option<Timestamp>,
        /// URL of the database, with a role that may write API keys
        #[arg(long, env = "CROFT_POSTGRES_URL", hide_env_values = true, value_parser = postgres_url)]
        postgres_url: SecretString,
    },
    /// List a tenant's keys, newest first; their secrets are kept nowhere
    List {
        /// The AgentTenant's name
        #[arg(long)]
        tenant: String,
        /// URL of the database, with a role that may write API keys
        #[arg(long, env = "CROFT_POSTGRES_URL", hide_env_values = true, value_parser = postgres_url)]
        postgres_url: SecretString,
    },
    /// Take a tenant's key back; the fronts refuse it within 30 s
    Revoke {
        /// The AgentTenant's name
        #[arg(long)]
        tenant: String,
        /// Which key, such as `ck_1a2b3c4d`
        #[arg(long, value_parser = api_key_command::prefix)]
        prefix: String,
        /// URL of the database, with a role that may write API keys
        #[arg(long, env = "CROFT_POSTGRES_URL", hide_env_values = true, value_parser = postgres_url)]
        postgres_url: SecretString,
    },
}

/// `croft-front models …`.
#[derive(Debug, Subcommand)]
pub enum Models {
    /// Take models and prices in from a file: a list of `croft.v1.Model`, in JSON or YAML. What it does not name stays
    Apply {
        /// The file
        file: PathBuf,
        /// URL of the database, with a role that may write models
        #[arg(long, env = "CROFT_POSTGRES_URL", hide_env_values = true, value_parser = postgres_url)]
        postgres_url: SecretString,
    },
}

/// `croft-front reprice`.
#[derive(Debug, Args)]
pub struct Reprice {
    /// Attempts from this day (UTC) on, such as `2026-11-01`; all, if it is not given
    #[arg(long, value_parser = day)]
    pub since: Option<i64>,
    /// Those too whose price was known
    #[arg(long)]
    pub all: bool,
    /// Tell what would change, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// URL of the database, with the role that owns it
    #[arg(long, env = "CROFT_POSTGRES_URL", hide_env_values = true, value_parser = postgres_url)]
    pub postgres_url: SecretString,
}

impl Reprice {
    /// What is to be reckoned anew.
    pub fn choice(&self) -> Choice {
        Choice { since: self.since.unwrap_or(0), all: self.all, dry_run: self.dry_run }
    }
}

/// The first second of a day.
fn day(text: &str) -> Result<i64, String> {
    let date: jiff::civil::Date = text.parse().map_err(|_| "it must be a day such as 2026-11-01".to_owned())?;
    date.to_zoned(jiff::tz::TimeZone::UTC).map(|day| day.timestamp().as_second()).map_err(|error| error.to_string())
}

fn postgres_url(text: &str) -> Result<SecretString, String> {
    url_of(text, &["postgres://", "postgresql://"])
}

fn redis_url(text: &str) -> Result<SecretString, String> {
    url_of(text, &["redis://", "rediss://"])
}

/// As browsers write them: a scheme, a host, perhaps a port, and no path.
fn origin(text: &str) -> Result<HeaderValue, String> {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let is_origin = host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '?', '#', '@', ' ', '*']));
    if is_origin || text == "*" {
        HeaderValue::from_str(text).map_err(|_| "it can't be a header".to_owned())
    } else {
        Err("it must be * or an origin such as https://app.example.com, without a path".to_owned())
    }
}

/// Says nothing of what the URL holds, which may be a password.
fn url_of(text: &str, schemes: &[&str]) -> Result<SecretString, String> {
    if schemes.iter().any(|scheme| text.starts_with(scheme) && text.len() > scheme.len()) {
        Ok(SecretString::from(text))
    } else {
        Err(format!("it must begin with {}", schemes.join(" or ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(flags: &[&str]) -> Options {
        let needed = [
            "croft-front",
            "serve",
            "--postgres-url=postgres://front@localhost/croft",
            "--redis-url=redis://localhost",
            "--operator-url=https://localhost:50053",
            "--tls-cert=tls.crt",
            "--tls-key=tls.key",
            "--tls-ca=ca.crt",
        ];
        let Command::Serve(serve) = Config::parse_from(needed.iter().chain(flags)).command else {
            panic!("it serves");
        };
        serve.options(Settings::default())
    }

    /// What `kills/wired.rs` doesn't wait for, too.
    #[test]
    fn each_flag_of_turns_is_heard() {
        let told = options(&[
            "--lease-ttl-ms=4000",
            "--message-bytes-max=5000",
            "--placement-timeout-ms=6000",
            "--streams-per-tenant-max=7",
            "--retention-hours=8",
            "--requests-per-minute=9",
            "--sessions-per-minute=10",
            "--tokens-per-minute=11",
            "--replicas=12",
            "--audit-folder=/audit",
            "--audit-folder-bytes-max=13",
            "--alert-webhook-url=https://alerts.example.com",
            "--alert-webhook-secret=sixteen characters",
        ]);
        assert_eq!((told.lease_ttl, told.placement_timeout), (Duration::from_secs(4), Duration::from_secs(6)));
        assert_eq!((told.message_bytes_max, told.streams_per_tenant_max, told.replicas), (5_000, 7, 12));
        assert_eq!(told.retention, Some(Duration::from_hours(8)));
        assert_eq!(told.rates, Rates { requests: 9, sessions: 10, tokens: 11 });
        assert_eq!(told.audit_folder, Some(Folder { path: PathBuf::from("/audit"), bytes_max: 13 }));
        assert_eq!(told.hook.map(|hook| hook.url).as_deref(), Some("https://alerts.example.com"));
        assert_eq!(options(&["--retention-hours=0"]).retention, None);
    }
}
