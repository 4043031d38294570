//! Statuses of made-up tenants.

use croft_crds::tenant::ProviderName;
use croft_crds::{AgentTenant, AgentTenantStatus};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde_json::json;

use super::{Facts, status};
use crate::tenant::observe::Observed;
use crate::tenant::part::Failure;
use crate::tenant::reason;
use crate::tenant::report::Pass;
use crate::tenant::tier::Tiers;
use crate::tenant::upkeep::KeptUp;
use crate::tenant::wanted::{Key, Keys};
use crate::worker::Problem;

pub(super) fn deployment(desired: i32, ready: i32) -> Deployment {
    serde_json::from_value(json!({
        "metadata": { "generation": 2 },
        "spec": { "replicas": desired, "selector": {}, "template": {} },
        "status": {
            "observedGeneration": 2, "replicas": desired, "updatedReplicas": desired, "readyReplicas": ready,
            "availableReplicas": ready,
        },
    }))
    .unwrap()
}

pub(super) fn after(
    before: &AgentTenantStatus,
    tenant: &AgentTenant,
    outcome: Result<&Observed, &Failure>,
    deployment: Option<&Deployment>,
    at: &str,
) -> AgentTenantStatus {
    let (now, tiers) = (Time(at.parse().unwrap()), Tiers::default());
    let nothing = KeptUp::new();
    let pass = Pass { outcome: outcome.map(drop), observed: outcome.ok(), kept_up: &nothing };
    let facts = Facts {
        tenant,
        before,
        pass,
        deployment,
        is_outdated: false,
        pods: &[],
        total: None,
        tiers: &tiers,
        now: &now,
    };
    let status = status(&facts);
    for condition in &status.conditions {
        assert!(reason::ALL.contains(&condition.reason.as_str()), "{} is in no runbook", condition.reason);
    }
    status
}

pub(super) fn told(
    tenant: &AgentTenant,
    outcome: Result<&Observed, &Failure>,
    deployment: Option<&Deployment>,
) -> AgentTenantStatus {
    after(&AgentTenantStatus::default(), tenant, outcome, deployment, "2026-01-01T00:00:00Z")
}

pub(super) fn condition<'a>(status: &'a AgentTenantStatus, kind: &str) -> &'a Condition {
    status.conditions.iter().find(|condition| condition.type_ == kind).unwrap()
}

pub(super) fn missing_key() -> Observed {
    let message = "namespace tenant-heron lacks models/anthropic-key".to_owned();
    let keys = Keys::from([(ProviderName::Anthropic, Key::Missing(Problem { reason: "KeysMissing", message }))]);
    Observed { keys, ..Observed::default() }
}
