//! What the tenant's namespace may use altogether.

use std::collections::BTreeMap;
use std::time::Duration;

use croft_crds::AgentTenant;
use k8s_openapi::api::core::v1::{ResourceQuota, ResourceQuotaSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt;

use super::wanted::{Wanted, amount};

/// As a quota counts objects of any kind:
/// <https://kubernetes.io/docs/concepts/policy/resource-quotas/#quota-on-object-count>.
const AGENT_SESSIONS: &str = "count/agentsessions.croft.dev";
/// Kubernetes' controllers look for new kinds every 30 s. What is in a quota and of a kind that they don't know is refused by the API
/// server, and stays so for the five minutes until they count anew. A kind is older than each of its objects: so they know ours when a
/// tenant is as old as this.
const KNOWN_AFTER: Duration = Duration::from_mins(1);

/// How long until this tenant's AgentSessions can be counted; nothing, if they can be now.
pub(crate) fn countable_in(tenant: &AgentTenant, now: i64) -> Option<Duration> {
    let known_at = tenant.creation_timestamp()?.0.as_second() + i64::try_from(KNOWN_AFTER.as_secs()).ok()?;
    let seconds = u64::try_from(known_at - now).ok()?;
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

/// See it with `kubectl -n tenant-acme describe resourcequota tenant`.
pub(crate) fn quota(wanted: &Wanted) -> ResourceQuota {
    let (cpu, memory) = (amount(&wanted.quota.cpu), amount(&wanted.quota.memory));
    let mut hard = BTreeMap::from([
        ("requests.cpu", cpu.clone()),
        ("limits.cpu", cpu),
        ("requests.memory", memory.clone()),
        ("limits.memory", memory),
        ("pods", Quantity(wanted.quota.pods.to_string())),
        // Ways into the namespace past the fence.
        ("services.nodeports", Quantity("0".to_owned())),
        ("services.loadbalancers", Quantity("0".to_owned())),
    ]);
    // What owners declare is kept whole by the API server, also what waits, has failed or is over.
    if let Some(agent_sessions) = wanted.quota.agent_sessions {
        hard.insert(AGENT_SESSIONS, Quantity(agent_sessions.to_string()));
    }
    ResourceQuota {
        metadata: wanted.child_meta("tenant"),
        spec: Some(ResourceQuotaSpec {
            hard: Some(hard.into_iter().map(|(resource, amount)| (resource.to_owned(), amount)).collect()),
            ..ResourceQuotaSpec::default()
        }),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tenant::fixtures;

    #[test]
    fn agent_sessions_are_counted_once_the_clusters_controllers_know_the_kind() {
        let mut tenant = fixtures::minimal();
        assert_eq!(countable_in(&tenant, 1_793_491_200), None, "one that the API server has not seen yet");
        let made = serde_json::from_value(serde_json::json!("2026-11-01T00:00:00Z")).unwrap();
        tenant.metadata.creation_timestamp = Some(made);
        let at = tenant.creation_timestamp().unwrap().0.as_second();
        assert_eq!(countable_in(&tenant, at), Some(Duration::from_mins(1)));
        assert_eq!(countable_in(&tenant, at + 59), Some(Duration::from_secs(1)));
        assert_eq!(countable_in(&tenant, at + 60), None);
    }
}
