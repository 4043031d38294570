//! [`AgentSession`]: a session that is wanted, declared in the cluster.

mod agent;
mod guardrail;
mod status;
mod sub_agent;

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

pub use agent::{
    AgentLimitsSpec, AgentRoleSpec, AgentSpec, ArgumentMatchSpec, BuiltinToolSpec, McpToolSpec, PermissionRuleSpec,
    PermissionSpec, ReplaySpec, RoutingSpec, SubAgentToolSpec, ToolSpec,
};
pub use guardrail::{
    GuardrailModeSpec, GuardrailSpec, GuardrailStageSpec, HttpCheckSpec, JsonSchemaCheckSpec, LengthCheckSpec,
    PatternCheckSpec, PersonalDataCheckSpec, PersonalDataKind,
};
pub use status::{AgentSessionStatus, SessionPhase, SessionUsageStatus};
pub use sub_agent::SubAgentSpec;

use crate::is_default;

/// A session that is wanted.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "croft.dev",
    version = "v1alpha1",
    kind = "AgentSession",
    plural = "agentsessions",
    shortname = "asn",
    category = "croft",
    namespaced,
    status = "AgentSessionStatus",
    derive = "PartialEq",
    cel,
    doc = "A session of a tenant, declared in the tenant's namespace. Deleting it ends the session.",
    validation = Rule::new("self.metadata.name.size() <= 63 && !self.metadata.name.contains('.')")
        .message("the name must have at most 63 characters and no dot: it names the agent in usage reports"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Model", type_ = "string", json_path = ".spec.agent.model"),
    printcolumn(name = "Session", type_ = "string", json_path = ".status.sessionID"),
    printcolumn(name = "Worker", type_ = "string", priority = 1, json_path = ".status.worker"),
    printcolumn(name = "Events", type_ = "integer", json_path = ".status.lastSeq"),
    printcolumn(name = "Cost", type_ = "string", json_path = ".status.usage.costUsd"),
    printcolumn(name = "Message", type_ = "string", priority = 1, json_path = ".status.message"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(has(oldSelf.terminate) && oldSelf.terminate) || (has(self.terminate) && self.terminate)")
        .message("a terminated session can't be brought back: make a new AgentSession"),
    validation = Rule::new("has(self.idleTimeoutSeconds) == has(oldSelf.idleTimeoutSeconds) && (!has(self.idleTimeoutSeconds) || self.idleTimeoutSeconds == oldSelf.idleTimeoutSeconds)")
        .message("idleTimeoutSeconds is fixed once the session is declared: make a new AgentSession"),
    validation = Rule::new("has(self.lifetimeSeconds) == has(oldSelf.lifetimeSeconds) && (!has(self.lifetimeSeconds) || self.lifetimeSeconds == oldSelf.lifetimeSeconds)")
        .message("lifetimeSeconds is fixed once the session is declared: make a new AgentSession"),
    validation = Rule::new("!has(self.idleTimeoutSeconds) || !has(self.lifetimeSeconds) || self.idleTimeoutSeconds <= self.lifetimeSeconds")
        .message("idleTimeoutSeconds is more than lifetimeSeconds, so it would never matter"),
)]
pub struct AgentSessionSpec {
    /// What the session runs.
    #[x_kube(
        validation = Rule::new("self == oldSelf")
            .message("the agent is fixed once the session is declared: make a new AgentSession")
    )]
    pub agent: AgentSpec,
    /// The session is ended when it has heard nothing for so long; the tenant's own time if not set, and at most that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub idle_timeout_seconds: Option<u32>,
    /// The session is ended when it is so old; the tenant's own time if not set, and at most that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 315_360_000))]
    pub lifetime_seconds: Option<u32>,
    /// This object is deleted so long after the session has ended; the tenant's own time if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 31_536_000))]
    pub ttl_seconds_after_finished: Option<u32>,
    /// Ends the session and keeps this object as its record.
    #[serde(default, skip_serializing_if = "is_default")]
    pub terminate: bool,
}
