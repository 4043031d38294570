//! [`AgentTenant`]: one tenant of the platform, and all that a platform admin decides about it.
#![expect(clippy::struct_excessive_bools, reason = "each is a switch of its own, and any goes with any other")]

mod budget;
mod egress;
mod limits;
mod llm;
mod mcp;
mod owner;
mod quota;
mod status;
mod workers;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{CustomResource, KubeSchema, Resource as _, ResourceExt as _};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

pub use budget::{BudgetSpec, OnExceeded, nano_usd};
pub use egress::{
    AllowedPort, AllowedRange, CLOUDS_ADDRESSES, EgressSpec, InternetAccess, Protocol, UnusableRange,
    clouds_addresses_in, overlapping, parse_range,
};
pub use limits::{LimitsSpec, MESSAGE_BYTES_MAX, SessionDefaultsSpec};
pub use llm::{
    LlmSpec, ModelServiceSpec, ProviderApi, ProviderName, ProviderSource, ProviderSpec, SecretKeyRef, SecretRef,
    ServiceScheme,
};
pub use mcp::McpServerSpec;
pub use owner::{OwnerKind, OwnerSpec};
pub use quota::{AGENT_SESSIONS_MAX, QuotaSpec};
pub use status::{AgentTenantStatus, SessionsStatus, SpendStatus, TenantPhase, WorkersStatus};
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
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.workers.ready"),
    printcolumn(name = "Workers", type_ = "integer", json_path = ".status.workers.desired"),
    printcolumn(name = "Sessions", type_ = "integer", json_path = ".status.sessions.open"),
    printcolumn(name = "Max", type_ = "integer", json_path = ".status.sessions.max"),
    printcolumn(name = "Spend", type_ = "string", json_path = ".status.spend.usd"),
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
    /// Who may manage the AgentSessions of this tenant.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(length(max = 32))]
    #[x_kube(
        validation = Rule::new("self.all(one, self.filter(other, other == one).size() == 1)")
            .message("an owner is listed twice")
    )]
    pub owners: Vec<OwnerSpec>,
    /// What the tenant's namespace may use altogether.
    #[serde(default, skip_serializing_if = "is_default")]
    pub quota: QuotaSpec,
    /// The pods that run this tenant's sessions.
    #[serde(default, skip_serializing_if = "is_default")]
    pub workers: WorkersSpec,
    /// Where the workers may connect to, beyond cluster DNS and models in the cluster.
    #[serde(default, skip_serializing_if = "is_default")]
    pub egress: EgressSpec,
    /// The language model providers that the workers may use.
    #[serde(default, skip_serializing_if = "is_default")]
    pub llm: LlmSpec,
    /// The MCP servers whose tools agents may use. A tool at any other address is refused.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(length(max = 32))]
    #[x_kube(
        merge_strategy = ListMerge::Map(vec!["name".into()]),
        validation = Rule::new("self.all(one, self.filter(other, other.url == one.url).size() == 1)")
            .message("two MCP servers have one address: which credential goes there would be chance"),
    )]
    pub mcp_servers: Vec<McpServerSpec>,
    /// What the tenant's callers may do.
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: LimitsSpec,
    /// What the tenant may spend on models.
    #[serde(default, skip_serializing_if = "is_default")]
    pub budget: BudgetSpec,
    /// How long sessions live that say nothing of their own.
    #[serde(default, skip_serializing_if = "is_default")]
    pub session_defaults: SessionDefaultsSpec,
    /// Refuses new sessions; the running ones go on.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cordon: bool,
    /// Takes all workers away: nothing runs until this is off again. Sessions keep what they have stored.
    #[serde(default, skip_serializing_if = "is_default")]
    pub suspend: bool,
    /// Stops everything at once: running turns are interrupted, workers go without grace, and the fence is closed in both
    /// directions, until this is off again.
    #[serde(default, skip_serializing_if = "is_default")]
    pub emergency_stop: bool,
    /// Keeps this tenant from being deleted until this is off again.
    #[serde(default, skip_serializing_if = "is_default")]
    pub prevent_deletion: bool,
    /// What becomes of what the tenant has stored, when it is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

/// What becomes of what a tenant has stored, when it is deleted. Usage and audit are kept either way: the books must balance.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeletionPolicy {
    /// Sessions and their events stay in the database; credentials go.
    #[default]
    Archive,
    /// Sessions, their events, budgets with their alerts, and credentials go.
    Erase,
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

/// The schema of labels by which pods or nodes are chosen.
pub(crate) fn labels_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": {
            "type": "string", "maxLength": 63, "pattern": "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
        }
    })
}
