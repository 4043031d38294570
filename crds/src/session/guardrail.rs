//! Checks of what goes into an agent and what comes out: the declared twin of `croft.v1.GuardrailSpec`.

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::is_default;

/// A check of text on its way into or out of the agent.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.length), has(self.pattern), has(self.personalData), has(self.jsonSchema), has(self.http)].filter(set, set).size() == 1")
        .message("a guardrail is exactly one check: set length, pattern, personalData, jsonSchema or http")
)]
pub struct GuardrailSpec {
    /// For events and metrics.
    #[schemars(length(max = 63), regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    pub name: String,
    /// Where it looks; none means all of them.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(length(max = 4))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub stages: Vec<GuardrailStageSpec>,
    /// What it does with what it refuses.
    #[serde(default)]
    pub mode: GuardrailModeSpec,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<LengthCheckSpec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<PatternCheckSpec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub personal_data: Option<PersonalDataCheckSpec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub json_schema: Option<JsonSchemaCheckSpec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpCheckSpec>,
}

/// Where a guardrail looks.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardrailStageSpec {
    /// What the user says.
    Input,
    ToolArguments,
    ToolResult,
    /// What the agent says.
    Output,
}

/// What a guardrail does with what it refuses.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GuardrailModeSpec {
    /// It goes no further.
    #[default]
    Enforce,
    /// It is told of, and goes on.
    Shadow,
}

/// Refuses long texts.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LengthCheckSpec {
    /// Unicode characters.
    #[schemars(range(min = 1, max = 67_108_864))]
    pub max_characters: u32,
}

/// Refuses texts in which a pattern is found.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PatternCheckSpec {
    /// Regular expressions without look-around and back-references.
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 1_024)))]
    pub denied: Vec<String>,
}

/// Finds what tells of a person.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PersonalDataCheckSpec {
    /// None means all of them.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(length(max = 5))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub kinds: Vec<PersonalDataKind>,
    /// Replaces what is found in place of refusing it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub redact: bool,
}

/// What tells of a person.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum PersonalDataKind {
    Email,
    Phone,
    Card,
    Iban,
    Ip,
}

impl PersonalDataKind {
    /// As it is written in a spec and in `croft.v1.PersonalDataCheck`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::Phone => "phone",
            Self::Card => "card",
            Self::Iban => "iban",
            Self::Ip => "ip",
        }
    }
}

/// Refuses texts that are not JSON of a shape.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct JsonSchemaCheckSpec {
    #[schemars(schema_with = "any_object")]
    pub schema: serde_json::Value,
}

/// Asks a server of the tenant's; what it doesn't answer in time is refused unless `failOpen`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HttpCheckSpec {
    /// Where the server is.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(
        validation = Rule::new("isURL(self) && url(self).getScheme() in ['http', 'https'] && url(self).getHost() != ''")
            .message("url must be an address such as https://checks.example.com/v1/check"),
        validation = Rule::new("!self.contains('@')")
            .message("url holds a name or a password, which everyone could read who may read AgentSessions"),
    )]
    pub url: String,
    /// How long it may take to answer; the worker's default if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 300))]
    pub timeout_seconds: Option<u32>,
    /// What it doesn't answer in time goes on, in place of being refused.
    #[serde(default, skip_serializing_if = "is_default")]
    pub fail_open: bool,
}

fn any_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "description": "JSON Schema of the text.",
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": true
    })
}
