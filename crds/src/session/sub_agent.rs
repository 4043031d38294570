//! An agent that another one calls: all of an agent but its own sub-agents, since a kind can't hold itself.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::{AgentLimitsSpec, GuardrailSpec, PermissionRuleSpec, RoutingSpec, ToolSpec};
use crate::is_default;

/// An agent that tools may call.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.fallbackModels) || !(self.model in self.fallbackModels)")
        .message("fallbackModels names the model itself")
)]
pub struct SubAgentSpec {
    /// What tools call it, and usage reports.
    #[schemars(length(max = 63), regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    pub name: String,
    /// A model id or alias of the registry, for example `claude-haiku-4-5` or `scripted-1`.
    #[schemars(length(min = 1, max = 128))]
    pub model: String,
    /// What the model is told before all else.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(length(max = 262_144))]
    pub system_prompt: String,
    /// Tools that the agent may call.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub tools: Vec<ToolSpec>,
    /// Checks of what goes in and what comes out, in this order.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub guardrails: Vec<GuardrailSpec>,
    /// What may be called with which arguments, beyond what each tool says of itself: of all rules that fit a call, deny
    /// wins over ask, and ask over allow.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(length(max = 64))]
    pub permission_rules: Vec<PermissionRuleSpec>,
    /// Bounds of one call, and of what it may cost: no more than its caller may.
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: AgentLimitsSpec,
    /// Tried in order when `model` can't answer.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 128)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub fallback_models: Vec<String>,
    /// Which other models may answer to save money.
    #[serde(default, skip_serializing_if = "is_default")]
    pub routing: RoutingSpec,
    /// How freely the model chooses its words; its own default if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2))]
    pub temperature: Option<f64>,
    /// When an answer has not begun after so many milliseconds, the model is asked a second time, as of an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 50, max = 120_000))]
    pub hedge_after_ms: Option<u32>,
}
