//! The operator's flags and environment.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use croft_serve::config::{collector_url, http_url, log_filter};
use croft_serve::{Config, ServeArgs};

use crate::controller::Limits;
use crate::leader::Election;
use crate::settings_file;
use crate::tenant::{PlatformProviders, Settings, Surroundings, Tiers};

/// What of its deadline a pass keeps for its report, at most.
const REPORT_MAX: Duration = Duration::from_secs(5);

/// For longer nobody wants to be without an operator after a crash.
const LEASE_SECONDS_MAX: u64 = 3_600;

/// Gives each AgentTenant its fenced namespace with workers, each AgentSession its session, and each front its routes.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "croft-operator", version)]
pub struct Args {
    #[command(flatten)]
    pub serve: ServeArgs,
    /// The namespace that the operator and the fronts run in
    #[arg(long, env = "CROFT_NAMESPACE", default_value = "croft-system")]
    pub namespace: String,
    /// A name unlike any other replica's, such as the pod's
    #[arg(long, env = "CROFT_IDENTITY", default_value_t = uuid::Uuid::new_v4().to_string())]
    pub identity: String,
    /// Address of the routes service, which fronts call
    #[arg(long, env = "CROFT_ROUTES_ADDR", default_value = "0.0.0.0:50053")]
    pub routes_addr: SocketAddr,
    /// The front's internal port; `https://croft-front-internal.<namespace>.svc:50054` if not set
    #[arg(long, env = "CROFT_FRONT_URL", value_parser = http_url)]
    pub front_url: Option<String>,
    /// Image of the workers of tenants that name none of their own
    #[arg(long, env = "CROFT_WORKER_IMAGE", default_value = "croft/worker:dev")]
    pub worker_image: String,
    /// When nodes pull the workers' image
    #[arg(long, env = "CROFT_WORKER_IMAGE_PULL_POLICY", default_value = "IfNotPresent",
          value_parser = ["Always", "IfNotPresent", "Never"])]
    pub worker_image_pull_policy: String,
    /// Secrets of the operator's namespace, of the type kubernetes.io/dockerconfigjson, with which nodes pull workers' images: each
    /// tenant's namespace gets a copy
    #[arg(long, env = "CROFT_WORKER_PULL_SECRETS", value_delimiter = ',', value_name = "NAME,…")]
    pub worker_pull_secrets: Vec<String>,
    /// How many tenants' workers are replaced at a time for the platform's sake, as for another image, in percent of all tenants; 10 are in
    /// any case. Those that don't become ready keep their place, so that a bad image stops there. What a tenant changes itself does not wait
    #[arg(long, env = "CROFT_WORKER_ROLLOUTS_PERCENT", default_value_t = 5)]
    pub worker_rollouts_percent: u8,
    /// Which lines workers log, as `level` or `target=level,…`; `info` if not set. Another value is a rollout of every tenant's workers
    #[arg(long, env = "CROFT_WORKER_LOG", value_parser = log_filter)]
    pub worker_log: Option<String>,
    /// Workers send traces by OTLP over gRPC to this collector, such as `http://otel-collector.monitoring:4317`; none are sent without
    /// it. Their fences let them go to the `collectors` of `--fence` for it
    #[arg(long, env = "CROFT_WORKER_OTLP_ENDPOINT", value_parser = collector_url)]
    pub worker_otlp_endpoint: Option<String>,
    /// YAML file with what each tier gives a tenant, its fields called as in a tenant's spec; built-in values if not set
    #[arg(long, env = "CROFT_TIERS", value_name = "FILE")]
    pub tiers: Option<PathBuf>,
    /// YAML file with the model providers whose keys the platform lends to tenants, and where those lie
    #[arg(long, env = "CROFT_PLATFORM_PROVIDERS", value_name = "FILE")]
    pub platform_providers: Option<PathBuf>,
    /// YAML file with public ranges that every tenant's fence closes too, with the servers that workers ask for names, and with the
    /// collectors that they send traces to
    #[arg(long, env = "CROFT_FENCE", value_name = "FILE")]
    pub fence: Option<PathBuf>,
    /// How long the fronts may take to end a deleted tenant's sessions and put its records in order, in seconds; then its
    /// namespace goes all the same
    #[arg(long, env = "CROFT_TENANT_REMOVAL_SECONDS", default_value_t = 300)]
    pub tenant_removal_seconds: u32,
    /// Passes over objects of one kind that run at a time, a quarter of them of one tenant; more wait. Each holds a connection to the
    /// API server
    #[arg(long, env = "CROFT_RECONCILE_CONCURRENCY", default_value_t = 64)]
    pub reconcile_concurrency: u16,
    /// A pass that takes longer is given up and tried again, in milliseconds
    #[arg(long, env = "CROFT_RECONCILE_DEADLINE_MS", default_value_t = 30_000)]
    pub reconcile_deadline_ms: u64,
    /// How often the fronts tell what has become of one declared session, in milliseconds; at most one status write comes
    /// of it each time
    #[arg(long, env = "CROFT_SESSION_STATUS_MS", default_value_t = 5_000)]
    pub session_status_ms: u64,
    /// How often a tenant's status may change because of its open sessions and its spend, in milliseconds
    #[arg(long, env = "CROFT_TENANT_TOTALS_MS", default_value_t = 30_000)]
    pub tenant_totals_ms: u64,
    /// A replica whose watches the API server has not answered for so long says that it is not ready, so that fronts that connect get
    /// their routes from another, in seconds. After twice as long, if none of them is answered, it ends the streams of those that are
    /// connected as well. Routes are served all the same
    #[arg(long, env = "CROFT_ROUTES_STALE_SECONDS", default_value_t = 60)]
    pub routes_stale_seconds: u64,
    /// After a crash of the replica that writes, another takes over when this has passed, in seconds
    #[arg(long, env = "CROFT_LEASE_SECONDS", default_value_t = 15)]
    pub lease_seconds: u64,
}

impl Config for Args {
    fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        let mut at_least = |value: u64, least: u64, name: &str| {
            if value < least {
                mistakes.push(format!("{name} must be at least {least}."));
            }
        };
        at_least(self.reconcile_concurrency.into(), 1, "--reconcile-concurrency (CROFT_RECONCILE_CONCURRENCY)");
        at_least(self.reconcile_deadline_ms, 1_000, "--reconcile-deadline-ms (CROFT_RECONCILE_DEADLINE_MS)");
        at_least(self.session_status_ms, 200, "--session-status-ms (CROFT_SESSION_STATUS_MS)");
        at_least(self.tenant_totals_ms, 200, "--tenant-totals-ms (CROFT_TENANT_TOTALS_MS)");
        // Watches are made anew every 20 s, and one that is lost is noticed 5 s later.
        at_least(self.routes_stale_seconds, 30, "--routes-stale-seconds (CROFT_ROUTES_STALE_SECONDS)");
        at_least(self.lease_seconds, 5, "--lease-seconds (CROFT_LEASE_SECONDS)");
        if self.lease_seconds > LEASE_SECONDS_MAX {
            mistakes.push(format!("--lease-seconds (CROFT_LEASE_SECONDS) must be at most {LEASE_SECONDS_MAX}."));
        }
        if !(1..=100).contains(&self.worker_rollouts_percent) {
            let name = "--worker-rollouts-percent (CROFT_WORKER_ROLLOUTS_PERCENT)";
            mistakes.push(format!("{name} must be 1 to 100."));
        }
        mistakes.extend(self.read_tiers().err().unwrap_or_default());
        mistakes.extend(self.read_platform_providers().err().unwrap_or_default());
        mistakes.extend(self.read_surroundings().err().unwrap_or_default());
        mistakes
    }
}

impl Args {
    /// How passes are run, where failing ones pause for as long as `retry_max`.
    pub fn limits(&self, retry_max: Duration) -> Limits {
        Limits {
            concurrency: self.reconcile_concurrency,
            deadline: Duration::from_millis(self.reconcile_deadline_ms),
            retry_max,
        }
    }

    /// How long a pass may take that says in a status how it went, which it has the rest of its deadline for.
    pub fn pass_max(&self) -> Duration {
        let deadline = Duration::from_millis(self.reconcile_deadline_ms);
        deadline.saturating_sub(REPORT_MAX.min(deadline / 4))
    }

    /// From when on routes are too old to be looked for here.
    pub fn routes_stale_after(&self) -> Duration {
        Duration::from_secs(self.routes_stale_seconds)
    }

    /// What the builders must know. Fails with a sentence for each mistake in a file.
    pub fn settings(&self) -> Result<Settings, Vec<String>> {
        Ok(Settings {
            namespace: self.namespace.clone(),
            worker_image: self.worker_image.clone(),
            worker_image_pull_policy: self.worker_image_pull_policy.clone(),
            worker_pull_secrets: self.worker_pull_secrets.clone(),
            worker_rollouts_percent: self.worker_rollouts_percent,
            worker_log: self.worker_log.clone(),
            worker_otlp_endpoint: self.worker_otlp_endpoint.clone(),
            tiers: Arc::new(self.read_tiers()?),
            platform: Arc::new(self.read_platform_providers()?),
            surroundings: Arc::new(self.read_surroundings()?),
            removal_max_seconds: self.tenant_removal_seconds.into(),
        })
    }

    fn read_tiers(&self) -> Result<Tiers, Vec<String>> {
        let Some(path) = &self.tiers else { return Ok(Tiers::default()) };
        settings_file::read(path, "--tiers (CROFT_TIERS)", Tiers::parse_of)
    }

    fn read_platform_providers(&self) -> Result<PlatformProviders, Vec<String>> {
        let Some(path) = &self.platform_providers else { return Ok(PlatformProviders::default()) };
        let flag = "--platform-providers (CROFT_PLATFORM_PROVIDERS)";
        settings_file::read(path, flag, PlatformProviders::parse_of)
    }

    fn read_surroundings(&self) -> Result<Surroundings, Vec<String>> {
        let Some(path) = &self.fence else { return Ok(Surroundings::default()) };
        settings_file::read(path, "--fence (CROFT_FENCE)", Surroundings::parse_of)
    }

    /// The front's internal port.
    pub fn front_url(&self) -> String {
        let own = self.front_url.clone();
        own.unwrap_or_else(|| format!("https://croft-front-internal.{}.svc:50054", self.namespace))
    }

    /// How the Lease is held: renewed when two thirds of it are left.
    pub fn election(&self) -> Election {
        Election {
            namespace: self.namespace.clone(),
            identity: self.identity.clone(),
            lease_seconds: self.lease_seconds,
            renew_before_seconds: self.lease_seconds * 2 / 3,
        }
    }
}

#[cfg(test)]
mod tests {
    use croft_serve::config::try_parse_from;

    use super::*;

    #[test]
    fn the_defaults_are_usable_and_follow_the_namespace() {
        let args = try_parse_from::<Args>(["croft-operator", "--namespace=plots"]).unwrap();
        assert_eq!(args.front_url(), "https://croft-front-internal.plots.svc:50054");
        assert_eq!(args.settings().unwrap().namespace, "plots");
        assert_eq!(args.limits(Duration::ZERO).concurrency, 64);
        assert_eq!(args.pass_max(), Duration::from_secs(25));
    }

    #[test]
    fn a_short_deadline_leaves_time_for_the_report_and_most_of_it_for_the_pass() {
        let args = try_parse_from::<Args>(["croft-operator", "--reconcile-deadline-ms=1000"]).unwrap();
        assert_eq!(args.pass_max(), Duration::from_millis(750));
    }

    #[test]
    fn unbounded_is_no_option() {
        let mistakes = try_parse_from::<Args>(["croft-operator", "--reconcile-concurrency=0"]).unwrap_err();
        assert_eq!(mistakes.0, ["--reconcile-concurrency (CROFT_RECONCILE_CONCURRENCY) must be at least 1."]);
    }

    #[test]
    fn rollouts_that_would_never_begin_are_refused() {
        for unusable in ["0", "101"] {
            let percent = format!("--worker-rollouts-percent={unusable}");
            let mistakes = try_parse_from::<Args>(["croft-operator", &percent]).unwrap_err();
            let told = "--worker-rollouts-percent (CROFT_WORKER_ROLLOUTS_PERCENT) must be 1 to 100.";
            assert_eq!(mistakes.0, [told]);
        }
    }

    #[test]
    fn a_lease_that_would_not_end_within_an_hour_is_refused() {
        assert!(try_parse_from::<Args>(["croft-operator", "--lease-seconds=3600"]).is_ok());
        let mistakes = try_parse_from::<Args>(["croft-operator", "--lease-seconds=3601"]).unwrap_err();
        assert_eq!(mistakes.0, ["--lease-seconds (CROFT_LEASE_SECONDS) must be at most 3600."]);
    }

    #[test]
    fn mistakes_in_files_are_told_at_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiers.yaml");
        std::fs::write(&path, "free: { quota: { pods: 0 } }").unwrap();
        let (tiers, providers) = (format!("--tiers={}", path.display()), "--platform-providers=/nowhere/p.yaml");
        let mistakes = try_parse_from::<Args>(["croft-operator", &tiers, providers]).unwrap_err().0;
        assert_eq!(mistakes.len(), 2, "{mistakes:?}");
        let told = "of --tiers (CROFT_TIERS) is not usable: free: quota.pods is 0 and must be 1 to 10000.";
        assert_eq!(mistakes[0], format!("{} {told}", path.display()));
        let told =
            "/nowhere/p.yaml of --platform-providers (CROFT_PLATFORM_PROVIDERS) is not usable: it can't be read: ";
        assert!(mistakes[1].starts_with(told), "{mistakes:?}");
    }
}
