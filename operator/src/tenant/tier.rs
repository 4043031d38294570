//! What each class of service gives a tenant, where the tenant's own spec doesn't say otherwise.

use croft_crds::tenant::Tier;

/// The values of one class.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TierValues {
    pub(crate) quota_cpu: &'static str,
    pub(crate) quota_memory: &'static str,
    pub(crate) quota_pods: i32,
    pub(crate) replicas: i32,
    pub(crate) cpu_request: &'static str,
    pub(crate) cpu_limit: &'static str,
    pub(crate) memory_request: &'static str,
    pub(crate) memory_limit: &'static str,
    pub(crate) sessions_per_worker: u32,
    pub(crate) sessions_max: u32,
    pub(crate) requests_per_minute: u32,
    pub(crate) message_bytes_max: u32,
    pub(crate) session_idle_timeout_seconds: u32,
    /// `None` is no budget.
    pub(crate) monthly_budget_usd: Option<&'static str>,
}

/// The values of `tier`. Each quota leaves room for one worker more than runs, so that a rollout fits.
pub(crate) fn values(tier: Tier) -> TierValues {
    match tier {
        Tier::Free => TierValues {
            quota_cpu: "1",
            quota_memory: "1Gi",
            quota_pods: 4,
            replicas: 1,
            cpu_request: "50m",
            cpu_limit: "500m",
            memory_request: "64Mi",
            memory_limit: "256Mi",
            sessions_per_worker: 20,
            sessions_max: 20,
            requests_per_minute: 60,
            message_bytes_max: 256 * 1024,
            session_idle_timeout_seconds: 30 * 60,
            monthly_budget_usd: Some("5"),
        },
        Tier::Standard => TierValues {
            quota_cpu: "4",
            quota_memory: "8Gi",
            quota_pods: 20,
            replicas: 2,
            cpu_request: "100m",
            cpu_limit: "1",
            memory_request: "128Mi",
            memory_limit: "512Mi",
            sessions_per_worker: 100,
            sessions_max: 1_000,
            requests_per_minute: 600,
            message_bytes_max: 1024 * 1024,
            session_idle_timeout_seconds: 24 * 60 * 60,
            monthly_budget_usd: None,
        },
        Tier::Enterprise => TierValues {
            quota_cpu: "16",
            quota_memory: "32Gi",
            quota_pods: 60,
            replicas: 3,
            cpu_request: "250m",
            cpu_limit: "2",
            memory_request: "256Mi",
            memory_limit: "1Gi",
            sessions_per_worker: 200,
            sessions_max: 20_000,
            requests_per_minute: 6_000,
            message_bytes_max: 8 * 1024 * 1024,
            session_idle_timeout_seconds: 7 * 24 * 60 * 60,
            monthly_budget_usd: None,
        },
    }
}

#[cfg(test)]
mod tests {
    use croft_crds::quantity::nanos;

    use super::*;

    #[test]
    fn the_workers_of_each_class_fit_into_its_quota_while_they_roll() {
        for tier in [Tier::Free, Tier::Standard, Tier::Enterprise] {
            let values = values(tier);
            let rolling = values.replicas + 1;
            assert!(nanos(values.cpu_limit).unwrap() * i128::from(rolling) <= nanos(values.quota_cpu).unwrap());
            assert!(nanos(values.memory_limit).unwrap() * i128::from(rolling) <= nanos(values.quota_memory).unwrap());
            assert!(rolling <= values.quota_pods);
        }
    }
}
