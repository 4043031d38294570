//! [`AgentTenant`]: one tenant of the platform, and all that a platform admin decides about it.

mod egress;
mod limits;
mod llm;
mod quota;
mod status;
mod workers;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{CustomResource, KubeSchema, Resource as _, ResourceExt as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use egress::{EgressSpec, UnusableRange, parse_range};
pub use limits::{LimitsSpec, nano_usd};
pub use llm::{LlmSpec, ProviderName, ProviderSpec, SecretKeyRef};
pub use quota::QuotaSpec;
pub use status::{AgentTenantStatus, TenantPhase, WorkersStatus};
pub use workers::{ResourcesSpec, WorkersSpec};

use crate::{is_default, labels};

/// What a platform admin decides about a tenant. All of it can be changed at any time.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "croft.dev",
    version = "v1alpha1",
    kind = "AgentTenant",
    plural = "agenttenants",
    shortname = "atn",
    category = "croft",
    status = "AgentTenantStatus",
    derive = "PartialEq",
    derive = "Default",
    cel,
    doc = "A tenant of the platform. The operator gives it the fenced namespace tenant-<name> with workers of its own.",
    validation = Rule::new("self.metadata.name.size() <= 56")
        .message("the name has more than 56 characters, so the namespace tenant-<name> would be longer than a namespace may be"),
    validation = Rule::new("!self.metadata.name.contains('.')")
        .message("the name has a dot in it, which the namespace tenant-<name> may not have"),
    printcolumn(name = "Tier", type_ = "string", json_path = ".spec.tier"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Workers", type_ = "integer", json_path = ".status.workers.desired"),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.workers.ready"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        priority = 1,
        json_path = ".status.conditions[?(@.type=='Ready')].message"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct AgentTenantSpec {
    /// The class of service, from which every value that is not set here comes.
    #[serde(default)]
    pub tier: Tier,
    /// What the tenant's namespace may use altogether.
    #[serde(default, skip_serializing_if = "is_default")]
    pub quota: QuotaSpec,
    /// The pods that run this tenant's sessions.
    #[serde(default, skip_serializing_if = "is_default")]
    pub workers: WorkersSpec,
    /// Where the workers may connect to, beyond cluster DNS and the public internet.
    #[serde(default, skip_serializing_if = "is_default")]
    pub egress: EgressSpec,
    /// The language model providers that the workers may use.
    #[serde(default, skip_serializing_if = "is_default")]
    pub llm: LlmSpec,
    /// What the tenant's callers may do.
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: LimitsSpec,
    /// Refuses new sessions; the running ones go on.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cordon: bool,
    /// Takes all workers away: nothing runs until this is off again. Sessions keep what they have stored.
    #[serde(default, skip_serializing_if = "is_default")]
    pub suspend: bool,
}

/// A class of service.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    Free,
    #[default]
    Standard,
    Enterprise,
}

impl Tier {
    /// As it is written in a spec.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Standard => "standard",
            Self::Enterprise => "enterprise",
        }
    }
}

impl AgentTenant {
    /// The namespace that the operator makes for this tenant.
    pub fn namespace_name(&self) -> String {
        labels::tenant_namespace(&self.name_any())
    }

    /// For the objects that belong to this tenant: they go when it goes. `None` for one that was never stored.
    pub fn owner_reference(&self) -> Option<OwnerReference> {
        self.controller_owner_ref(&())
    }
}
