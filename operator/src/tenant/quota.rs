//! What the tenant's namespace may use altogether.

use k8s_openapi::api::core::v1::{ResourceQuota, ResourceQuotaSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::wanted::{Wanted, amount};

/// As a quota counts objects of any kind:
/// <https://kubernetes.io/docs/concepts/policy/resource-quotas/#quota-on-object-count>.
const AGENT_SESSIONS: &str = "count/agentsessions.croft.dev";

/// See it with `kubectl -n tenant-acme describe resourcequota tenant`.
pub(crate) fn quota(wanted: &Wanted) -> ResourceQuota {
    let (cpu, memory) = (amount(&wanted.quota.cpu), amount(&wanted.quota.memory));
    let hard = [
        ("requests.cpu", cpu.clone()),
        ("limits.cpu", cpu),
        ("requests.memory", memory.clone()),
        ("limits.memory", memory),
        ("pods", Quantity(wanted.quota.pods.to_string())),
        // What owners declare is kept whole by the API server, also what waits, has failed or is over.
        (AGENT_SESSIONS, Quantity(wanted.quota.agent_sessions.to_string())),
        // Ways into the namespace past the fence.
        ("services.nodeports", Quantity("0".to_owned())),
        ("services.loadbalancers", Quantity("0".to_owned())),
    ];
    ResourceQuota {
        metadata: wanted.child_meta("tenant"),
        spec: Some(ResourceQuotaSpec {
            hard: Some(hard.map(|(resource, amount)| (resource.to_owned(), amount)).into()),
            ..ResourceQuotaSpec::default()
        }),
        status: None,
    }
}
