//! What a tenant's namespace may use altogether.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::Quantity;

/// The most AgentSessions that one tenant may be let have.
pub const AGENT_SESSIONS_MAX: u32 = 10_000_000;

/// Bounds of the whole namespace; what is not set comes from the tier.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.cpu) || quantity(string(self.cpu)).compareTo(quantity('0')) > 0")
        .message("a quota of no cpu leaves no room for a worker: to take the workers away set suspend"),
    validation = Rule::new("!has(self.memory) || quantity(string(self.memory)).compareTo(quantity('0')) > 0")
        .message("a quota of no memory leaves no room for a worker: to take the workers away set suspend"),
)]
pub struct QuotaSpec {
    /// CPU, requested and as a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Quantity>,
    /// Memory, requested and as a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
    /// Pods that may be there at a time; a rollout of the workers needs one more than they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub pods: Option<i32>,
    /// AgentSessions that may be there at a time, whatever has become of their sessions; any number, if the tier has none either. They
    /// are counted once the tenant is a minute old.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = AGENT_SESSIONS_MAX))]
    pub agent_sessions: Option<u32>,
}
