//! What each class of service gives a tenant, where the tenant's own spec doesn't say otherwise.
//!
//! The values are built in, or come from a file whose fields are called as in a tenant's spec.

use croft_crds::Quantity;
use croft_crds::tenant::{
    AGENT_SESSIONS_MAX, BudgetSpec, LimitsSpec, MESSAGE_BYTES_MAX, OnExceeded, QuotaSpec, ResourcesSpec,
    SessionDefaultsSpec, Tier, nano_usd,
};
use croft_serve::settings::Release;
use serde::{Deserialize, Serialize};

use crate::settings_file;

/// The values of all classes.
#[derive(Debug, Clone, PartialEq)]
pub struct Tiers {
    free: TierValues,
    standard: TierValues,
    enterprise: TierValues,
}

/// The values of one class. What is optional here is unbounded when it is not set.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TierValues {
    pub(crate) quota_cpu: Quantity,
    pub(crate) quota_memory: Quantity,
    pub(crate) quota_pods: i32,
    /// As `limits.maxSessions` has it where it is not set.
    pub(crate) quota_agent_sessions: Option<u32>,
    pub(crate) replicas: i32,
    pub(crate) cpu_request: Quantity,
    pub(crate) cpu_limit: Quantity,
    pub(crate) memory_request: Quantity,
    pub(crate) memory_limit: Quantity,
    pub(crate) sessions_per_worker: u32,
    pub(crate) sessions_max: u32,
    pub(crate) requests_per_minute: u32,
    pub(crate) tokens_per_minute: Option<i64>,
    pub(crate) message_bytes_max: u32,
    pub(crate) session_idle_timeout_seconds: u32,
    pub(crate) session_lifetime_seconds: Option<u32>,
    pub(crate) session_ttl_seconds_after_finished: Option<u32>,
    pub(crate) monthly_budget_usd: Option<String>,
    pub(crate) monthly_budget_tokens: Option<i64>,
    pub(crate) on_budget_exceeded: OnExceeded,
}

/// The file: the classes that it names have its values, the others the built-in ones.
#[derive(Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct File {
    #[serde(skip_serializing_if = "Option::is_none")]
    free: Option<Class>,
    #[serde(skip_serializing_if = "Option::is_none")]
    standard: Option<Class>,
    #[serde(skip_serializing_if = "Option::is_none")]
    enterprise: Option<Class>,
}

/// One class in the file. What a tenant can't be without and is not here is as built in; a budget, a rate of tokens, a
/// lifetime, a number of AgentSessions or a time to keep records that is not here is none.
#[derive(Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct Class {
    quota: QuotaSpec,
    workers: ClassWorkers,
    limits: LimitsSpec,
    budget: BudgetSpec,
    session_defaults: SessionDefaultsSpec,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct ClassWorkers {
    #[serde(skip_serializing_if = "Option::is_none")]
    replicas: Option<i32>,
    resources: ResourcesSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    sessions_per_worker: Option<u32>,
}

impl Tiers {
    /// The values of one class.
    pub(crate) fn of(&self, tier: Tier) -> &TierValues {
        match tier {
            Tier::Free => &self.free,
            Tier::Standard => &self.standard,
            Tier::Enterprise => &self.enterprise,
        }
    }

    /// Reads the text of a file of our own release. Fails with every mistake in it, each as a sentence.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        Self::parse_of(text, &Release::Own)
    }

    /// As [`Self::parse`], of this release.
    pub(crate) fn parse_of(text: &str, release: &Release) -> Result<Self, Vec<String>> {
        let File { free, standard, enterprise } = settings_file::parse::<File>(text, release)?;
        let built_in = Self::default();
        let mut mistakes = Vec::new();
        let mut read = |tier: Tier, class: Option<Class>| {
            let built_in = built_in.of(tier).clone();
            let Some(class) = class else { return built_in };
            let values = class.over(built_in);
            mistakes.extend(values.mistakes().into_iter().map(|mistake| format!("{}: {mistake}.", tier.as_str())));
            values
        };
        let tiers = Self {
            free: read(Tier::Free, free),
            standard: read(Tier::Standard, standard),
            enterprise: read(Tier::Enterprise, enterprise),
        };
        if mistakes.is_empty() { Ok(tiers) } else { Err(mistakes) }
    }
}

impl Class {
    fn over(self, built_in: TierValues) -> TierValues {
        let Self { quota, workers, limits, budget, session_defaults } = self;
        let resources = workers.resources;
        TierValues {
            quota_cpu: quota.cpu.unwrap_or(built_in.quota_cpu),
            quota_memory: quota.memory.unwrap_or(built_in.quota_memory),
            quota_pods: quota.pods.unwrap_or(built_in.quota_pods),
            quota_agent_sessions: quota.agent_sessions,
            replicas: workers.replicas.unwrap_or(built_in.replicas),
            cpu_request: resources.cpu_request.unwrap_or(built_in.cpu_request),
            cpu_limit: resources.cpu_limit.unwrap_or(built_in.cpu_limit),
            memory_request: resources.memory_request.unwrap_or(built_in.memory_request),
            memory_limit: resources.memory_limit.unwrap_or(built_in.memory_limit),
            sessions_per_worker: workers.sessions_per_worker.unwrap_or(built_in.sessions_per_worker),
            sessions_max: limits.max_sessions.unwrap_or(built_in.sessions_max),
            requests_per_minute: limits.requests_per_minute.unwrap_or(built_in.requests_per_minute),
            tokens_per_minute: limits.tokens_per_minute,
            message_bytes_max: limits.max_message_bytes.unwrap_or(built_in.message_bytes_max),
            session_idle_timeout_seconds: session_defaults
                .idle_timeout_seconds
                .unwrap_or(built_in.session_idle_timeout_seconds),
            session_lifetime_seconds: session_defaults.lifetime_seconds,
            session_ttl_seconds_after_finished: session_defaults.ttl_seconds_after_finished,
            monthly_budget_usd: budget.monthly_usd,
            monthly_budget_tokens: budget.monthly_tokens,
            on_budget_exceeded: budget.on_exceeded.unwrap_or_default(),
        }
    }
}

impl TierValues {
    /// What is wrong with the values, each as a sentence without its stop.
    fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        for (field, amount) in [
            ("quota.cpu", &self.quota_cpu),
            ("quota.memory", &self.quota_memory),
            ("workers.resources.cpuRequest", &self.cpu_request),
            ("workers.resources.cpuLimit", &self.cpu_limit),
            ("workers.resources.memoryRequest", &self.memory_request),
            ("workers.resources.memoryLimit", &self.memory_limit),
        ] {
            if amount.nanos().is_none_or(|nanos| nanos <= 0) {
                mistakes.push(format!("{field} is {amount}, which is no amount such as 500m or 2Gi"));
            }
        }
        let numbers: [(&str, i64, i64); 11] = [
            ("quota.pods", self.quota_pods.into(), 10_000),
            ("quota.agentSessions", self.quota_agent_sessions.unwrap_or(1).into(), AGENT_SESSIONS_MAX.into()),
            ("workers.replicas", self.replicas.into(), 100),
            ("workers.sessionsPerWorker", self.sessions_per_worker.into(), 10_000),
            ("limits.maxSessions", self.sessions_max.into(), 1_000_000),
            ("limits.requestsPerMinute", self.requests_per_minute.into(), 10_000_000),
            ("limits.tokensPerMinute", self.tokens_per_minute.unwrap_or(1), 1_000_000_000_000),
            ("limits.maxMessageBytes", self.message_bytes_max.into(), MESSAGE_BYTES_MAX.into()),
            ("sessionDefaults.idleTimeoutSeconds", self.session_idle_timeout_seconds.into(), 31_536_000),
            (
                "sessionDefaults.ttlSecondsAfterFinished",
                self.session_ttl_seconds_after_finished.unwrap_or(1).into(),
                31_536_000,
            ),
            ("budget.monthlyTokens", self.monthly_budget_tokens.unwrap_or(1), 1_000_000_000_000_000),
        ];
        for (field, value, max) in numbers {
            let min = i64::from(field != "workers.replicas");
            if !(min..=max).contains(&value) {
                mistakes.push(format!("{field} is {value} and must be {min} to {max}"));
            }
        }
        if let Some(dollars) = self.monthly_budget_usd.as_deref().filter(|dollars| nano_usd(dollars).is_none()) {
            mistakes.push(format!("budget.monthlyUsd is {dollars:?}, which is no amount of dollars such as \"0.50\""));
        }
        if self.session_lifetime_seconds.is_some_and(|lifetime| lifetime < self.session_idle_timeout_seconds) {
            mistakes.push("sessionDefaults.idleTimeoutSeconds is more than lifetimeSeconds".to_owned());
        }
        for (field, one, quota) in
            [("cpu", &self.cpu_limit, &self.quota_cpu), ("memory", &self.memory_limit, &self.quota_memory)]
        {
            if one.nanos() > quota.nanos() {
                mistakes.push(format!("one worker may use {one} of {field}, and the quota is only {quota}"));
            }
        }
        for (field, request, limit) in
            [("cpu", &self.cpu_request, &self.cpu_limit), ("memory", &self.memory_request, &self.memory_limit)]
        {
            if request.nanos() > limit.nanos() {
                mistakes.push(format!("workers.resources.{field}Request is more than {field}Limit"));
            }
        }
        mistakes
    }
}

/// Each quota leaves room for one worker more than runs, so that a rollout fits.
impl Default for Tiers {
    fn default() -> Self {
        let without_bounds = |values: TierValues| TierValues { monthly_budget_usd: None, ..values };
        let free = TierValues {
            quota_cpu: "1".into(),
            quota_memory: "1Gi".into(),
            quota_pods: 4,
            quota_agent_sessions: Some(140),
            replicas: 1,
            cpu_request: "50m".into(),
            cpu_limit: "500m".into(),
            memory_request: "64Mi".into(),
            memory_limit: "256Mi".into(),
            sessions_per_worker: 20,
            sessions_max: 20,
            requests_per_minute: 60,
            tokens_per_minute: None,
            message_bytes_max: 256 * 1024,
            session_idle_timeout_seconds: 30 * 60,
            session_lifetime_seconds: None,
            session_ttl_seconds_after_finished: Some(7 * 24 * 60 * 60),
            monthly_budget_usd: Some("5".to_owned()),
            monthly_budget_tokens: None,
            on_budget_exceeded: OnExceeded::Block,
        };
        let standard = TierValues {
            quota_cpu: "4".into(),
            quota_memory: "8Gi".into(),
            quota_pods: 20,
            quota_agent_sessions: Some(2_100),
            replicas: 2,
            cpu_request: "100m".into(),
            cpu_limit: "1".into(),
            memory_request: "128Mi".into(),
            memory_limit: "512Mi".into(),
            sessions_per_worker: 100,
            sessions_max: 1_000,
            requests_per_minute: 600,
            message_bytes_max: 1024 * 1024,
            session_idle_timeout_seconds: 24 * 60 * 60,
            ..without_bounds(free.clone())
        };
        let enterprise = TierValues {
            quota_cpu: "16".into(),
            quota_memory: "32Gi".into(),
            quota_pods: 60,
            quota_agent_sessions: Some(40_100),
            replicas: 3,
            cpu_request: "250m".into(),
            cpu_limit: "2".into(),
            memory_request: "256Mi".into(),
            memory_limit: "1Gi".into(),
            sessions_per_worker: 200,
            sessions_max: 20_000,
            requests_per_minute: 6_000,
            message_bytes_max: 8 * 1024 * 1024,
            session_idle_timeout_seconds: 7 * 24 * 60 * 60,
            ..without_bounds(free.clone())
        };
        Self { free, standard, enterprise }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workers_of_each_class_fit_into_its_quota_while_they_roll() {
        let tiers = Tiers::default();
        for tier in [Tier::Free, Tier::Standard, Tier::Enterprise] {
            let values = tiers.of(tier);
            assert_eq!(values.mistakes(), [""; 0]);
            let rolling = values.replicas + 1;
            let nanos = |amount: &Quantity| amount.nanos().unwrap();
            assert!(nanos(&values.cpu_limit) * i128::from(rolling) <= nanos(&values.quota_cpu));
            assert!(nanos(&values.memory_limit) * i128::from(rolling) <= nanos(&values.quota_memory));
            assert!(rolling <= values.quota_pods);
        }
    }

    #[test]
    fn a_file_replaces_what_it_names_and_no_budget_in_it_is_none() {
        let tiers = Tiers::parse(
            "free: { workers: { replicas: 3, resources: { cpuLimit: 300m } }, sessionDefaults: { lifetimeSeconds: 7200 } }\n\
             standard: { budget: { monthlyUsd: '12.5', onExceeded: Throttle }, limits: { tokensPerMinute: 70000 } }",
        )
        .unwrap();
        let free = tiers.of(Tier::Free);
        assert_eq!((free.replicas, free.cpu_limit.as_str(), free.memory_limit.as_str()), (3, "300m", "256Mi"));
        assert_eq!((free.session_lifetime_seconds, free.monthly_budget_usd.as_deref()), (Some(7_200), None));
        let standard = tiers.of(Tier::Standard);
        assert_eq!(standard.monthly_budget_usd.as_deref(), Some("12.5"));
        assert_eq!((standard.on_budget_exceeded, standard.tokens_per_minute), (OnExceeded::Throttle, Some(70_000)));
        assert_eq!(tiers.of(Tier::Enterprise), Tiers::default().of(Tier::Enterprise));
    }

    #[test]
    fn the_charts_values_are_the_built_in_ones() {
        let chart: serde_json::Value = serde_yaml::from_str(include_str!("../../../charts/croft/values.yaml")).unwrap();
        assert_eq!(Tiers::parse(&chart["tiers"].to_string()).unwrap(), Tiers::default());
    }

    /// Once, an operator that was started anew in the midst of an upgrade read the next release's file, and refused to start.
    #[test]
    fn a_file_of_another_release_may_say_more_than_is_known_here() {
        let another = Release::Another("7.0.0".to_owned());
        let text = "standard: { quota: { later: 1, pods: 30 }, workers: { later: {} } }\ngold: {}\nfree: { limits: { maxSessions: 3 } }";
        let tiers = Tiers::parse_of(text, &another).unwrap();
        assert_eq!((tiers.of(Tier::Standard).quota_pods, tiers.of(Tier::Free).sessions_max), (30, 3));
        assert!(Tiers::parse(text).is_err(), "of our own it is refused");
        let later = "standard: { quota: { later: 1 } }";
        assert_eq!(Tiers::parse(later).unwrap_err(), ["standard.quota.later is no field that is known here."]);
        assert!(Tiers::parse_of("free: { quota: { pods: 0 } }", &another).is_err(), "what is known must be usable");
    }

    #[test]
    fn every_mistake_in_a_file_is_told_in_a_sentence() {
        let of = |text: &str| Tiers::parse(text).unwrap_err();
        assert_eq!(
            of("free: { quota: { cpu: 100m, pods: 0 }, budget: { monthlyUsd: much } }"),
            [
                "free: quota.pods is 0 and must be 1 to 10000.",
                "free: budget.monthlyUsd is \"much\", which is no amount of dollars such as \"0.50\".",
                "free: one worker may use 500m of cpu, and the quota is only 100m.",
            ]
        );
        assert_eq!(
            of("free: { quota: { cpus: 1 }, limits: { sessions: 3 } }"),
            ["free.limits.sessions is no field that is known here.", "free.quota.cpus is no field that is known here.",]
        );
        assert!(of("gold: {}")[0].starts_with("it can't be read: unknown field `gold`"), "{:?}", of("gold: {}"));
        assert!(of("free: [").iter().all(|mistake| mistake.starts_with("it can't be read: ")));
    }
}
