//! [`AgentSession`]: a session that is wanted, declared in the cluster.

mod agent;
mod status;

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

pub use agent::{AgentLimitsSpec, AgentSpec, BuiltinToolSpec, McpToolSpec, PermissionSpec, ReplaySpec, ToolSpec};
pub use status::{AgentSessionStatus, SessionPhase};

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
    printcolumn(name = "Model", type_ = "string", json_path = ".spec.agent.model"),
    printcolumn(name = "Session", type_ = "string", json_path = ".status.sessionID"),
    printcolumn(name = "Worker", type_ = "string", priority = 1, json_path = ".status.worker"),
    printcolumn(name = "Events", type_ = "integer", json_path = ".status.lastSeq"),
    printcolumn(name = "Message", type_ = "string", priority = 1, json_path = ".status.message"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(has(oldSelf.terminate) && oldSelf.terminate) || (has(self.terminate) && self.terminate)")
        .message("a terminated session can't be brought back: make a new AgentSession")
)]
pub struct AgentSessionSpec {
    /// What the session runs.
    #[x_kube(
        validation = Rule::new("self == oldSelf")
            .message("the agent is fixed once the session is declared: make a new AgentSession")
    )]
    pub agent: AgentSpec,
    /// Ends the session and keeps this object as its record.
    #[serde(default, skip_serializing_if = "is_default")]
    pub terminate: bool,
}
