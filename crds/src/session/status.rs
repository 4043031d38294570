//! What the operator says about a declared session. It follows the session slowly: clients watch the front.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::condition;

/// Written by the operator alone.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AgentSessionStatus {
    /// The generation of the spec that all of this speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<SessionPhase>,
    /// The session's id at the front.
    #[serde(default, rename = "sessionID", skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// The worker that ran it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// The number of the newest event that the operator knows of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seq: Option<i64>,
    /// What its models have used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<SessionUsageStatus>,
    /// When something last happened in it, as far as the operator knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "time_schema")]
    pub last_activity_time: Option<Time>,
    /// When the operator heard that nothing follows; from then `ttlSecondsAfterFinished` counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "time_schema")]
    pub finish_time: Option<Time>,
    /// A sentence for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What holds of this session, each with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "condition::schema")]
    pub conditions: Vec<Condition>,
}

/// What the models of a session have used, as the front last told.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SessionUsageStatus {
    /// Calls of models, failed ones too.
    pub attempts: i64,
    /// All that was read, cached or not.
    pub input_tokens: i64,
    pub output_tokens: i64,
    /// In US dollars.
    pub cost_usd: String,
}

fn time_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "date-time" })
}

/// The state of a declared session in a word.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionPhase {
    /// The front has not taken it yet; it will be tried again.
    Pending,
    /// Waits for its first message.
    Ready,
    Running,
    /// Waits for the next message.
    Idle,
    Terminated,
    /// It can't be made as declared; the message says why.
    Failed,
}

impl SessionPhase {
    /// Nothing follows but deletion.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Terminated | Self::Failed)
    }
}
