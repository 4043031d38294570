//! What a session runs: the declared twin of `croft.v1.AgentSpec`.

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::{GuardrailSpec, SubAgentSpec};
use crate::is_default;

/// A model, a prompt, tools and limits.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.fallbackModels) || !(self.model in self.fallbackModels)")
        .message("fallbackModels names the model itself")
)]
pub struct AgentSpec {
    /// A name for people, metrics and usage reports; the AgentSession's own if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    pub name: Option<String>,
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
    /// Bounds of one turn, and of what the session may cost.
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
    /// Agents that tools of this one and of each other may call, by name.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub sub_agents: Vec<SubAgentSpec>,
    /// When an answer has not begun after so many milliseconds, the model is asked a second time, and whichever begins first
    /// is the answer. The other is given up, and paid for as far as it got. Never if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 50, max = 120_000))]
    pub hedge_after_ms: Option<u32>,
}

/// What may become of the agent's model when a budget of money runs short.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RoutingSpec {
    /// What the agent's answers are worth.
    #[serde(default, skip_serializing_if = "is_default")]
    pub role: AgentRoleSpec,
    /// The cheapest of these that can do what `model` can answers in its place.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 128)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub economy_models: Vec<String>,
}

/// What an agent's answers are worth.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AgentRoleSpec {
    /// Its model stays, whatever it costs.
    Critical,
    /// It saves from 80 % of a budget on.
    #[default]
    Standard,
    /// It saves from 50 % of a budget on.
    Background,
}

/// A tool that the agent may call.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.builtin), has(self.mcp), has(self.subAgent)].filter(set, set).size() == 1")
        .message("a tool comes from exactly one place: set builtin, mcp or subAgent")
)]
pub struct ToolSpec {
    /// The name that the model sees.
    #[schemars(regex(pattern = r"^[a-zA-Z0-9_-]{1,64}$"))]
    pub name: String,
    /// What the model is told of it.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(length(max = 4_096))]
    pub description: String,
    /// JSON Schema of the arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_object")]
    pub input_schema: Option<serde_json::Value>,
    /// A tool that the worker has built in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub builtin: Option<BuiltinToolSpec>,
    /// A tool of an MCP server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mcp: Option<McpToolSpec>,
    /// Another agent, which runs in a session of its own for each call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub_agent: Option<SubAgentToolSpec>,
    /// What may happen to a call whose outcome is unknown after a crash.
    #[serde(default)]
    pub replay: ReplaySpec,
    /// Whether it may be called.
    #[serde(default)]
    pub permission: PermissionSpec,
    /// How long one call may take; 30 s if not set. More than 600 counts as 600, but for a sub-agent, which may take as long as its own turn
    /// may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400))]
    pub timeout_seconds: Option<u32>,
}

/// An agent that is called like a tool. A call is a session of its own with one turn, whose answer is the result. It may spend what its
/// own limits allow, within what is left of its caller's.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SubAgentToolSpec {
    /// The name of one of the agent's `subAgents`.
    #[schemars(length(min = 1, max = 63))]
    pub agent: String,
}

/// A tool that the worker has built in.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BuiltinToolSpec {
    /// `clock` or `calculator`.
    #[schemars(length(min = 1, max = 64))]
    pub name: String,
}

/// A tool of an MCP server, reached by streamable HTTP.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct McpToolSpec {
    /// Where the server is.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(
        validation = Rule::new("isURL(self) && url(self).getScheme() in ['http', 'https'] && url(self).getHost() != ''")
            .message("serverUrl must be an address such as https://tools.example.com/mcp"),
        validation = Rule::new("!self.contains('@')")
            .message("serverUrl holds a name or a password, which everyone could read who may read AgentSessions"),
    )]
    pub server_url: String,
    /// The tool's name at the server, if it differs.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(length(max = 128))]
    pub tool_name: String,
}

/// What may happen to a call whose outcome is unknown after a crash.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum ReplaySpec {
    /// Has no effects: call it again.
    Safe,
    /// Has effects, and the same idempotency key makes them once: call it again.
    Idempotent,
    /// Never repeated without a person's word.
    #[default]
    Unsafe,
}

/// Whether a tool may be called.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum PermissionSpec {
    #[default]
    Allow,
    /// Each call waits for a person.
    Ask,
    Deny,
}

/// A rule about tool calls.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PermissionRuleSpec {
    /// Names of tools, with `*` for any run of characters; all if not set.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(length(max = 64), regex(pattern = r"^[a-zA-Z0-9_*-]*$"))]
    pub tool: String,
    /// All of them must fit.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(length(max = 16))]
    pub arguments: Vec<ArgumentMatchSpec>,
    pub permission: PermissionSpec,
    /// Told to the model when denied, and to the person who is asked.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(length(max = 512))]
    pub message: String,
}

/// An argument in which a pattern is found. One that isn't there fits nothing.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ArgumentMatchSpec {
    /// A JSON Pointer, for example `/to` or `/items/0/name`.
    #[schemars(length(max = 256), regex(pattern = r"^/"))]
    pub path: String,
    /// A regular expression without look-around and back-references.
    #[schemars(length(min = 1, max = 1_024))]
    pub pattern: String,
}

/// Bounds of one agent; what is not set is the platform's.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AgentLimitsSpec {
    /// Model calls in one turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub max_model_calls: Option<u32>,
    /// Tool calls in one turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub max_tool_calls: Option<u32>,
    /// Output tokens asked of the model in one call, with what it thinks, and no more than the model gives. If not set, 16,384 of a model of which the
    /// registry says how much it gives, and 4,096 of another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub max_output_tokens: Option<u32>,
    /// Wall time of one turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400))]
    pub turn_timeout_seconds: Option<u32>,
    /// What the models may cost in the whole session, in US dollars, for example "2.50".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 19), regex(pattern = r"^[0-9]{1,9}(\.[0-9]{1,9})?$"))]
    #[x_kube(
        validation = Rule::new("self.matches('[1-9]')")
            .message("budgetUsd is nothing at all: the agent could not say a word")
    )]
    pub budget_usd: Option<String>,
    /// Tokens, as reckoned, of the conversation that a model is sent; beyond it the oldest is left out. Without it, only a
    /// conversation that the model says doesn't fit is shortened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 256, max = 100_000_000))]
    pub max_context_tokens: Option<u32>,
    /// Tokens of all classes in the whole session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000_000_i64))]
    pub budget_tokens: Option<i64>,
}

fn any_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "description": "JSON Schema of the arguments.",
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": true
    })
}
