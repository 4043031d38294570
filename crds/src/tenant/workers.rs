//! The pods that run a tenant's sessions.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Toleration;
use kube::KubeSchema;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::labels_schema;
use crate::{Quantity, is_default};

/// How many workers, which, and where; what is not set comes from the tier.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct WorkersSpec {
    /// Pods that run at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub replicas: Option<i32>,
    /// An image of this tenant's own in the place of the platform's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1_024), regex(pattern = r"^[a-zA-Z0-9][a-zA-Z0-9._:/@-]*$"))]
    pub image: Option<String>,
    /// What one worker asks for and may use.
    #[serde(default, skip_serializing_if = "is_default")]
    pub resources: ResourcesSpec,
    /// Sessions that one worker may run at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub sessions_per_worker: Option<u32>,
    /// Labels of the nodes that workers may run on.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(schema_with = "labels_schema")]
    #[x_kube(
        validation = Rule::new("self.all(key, key.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$'))")
            .message("a key of nodeSelector is not the name of a label"),
    )]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes that workers put up with.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(schema_with = "tolerations_schema")]
    pub tolerations: Vec<Toleration>,
    /// The RuntimeClass of the worker pods, for example one that gives each a sandbox of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    pub runtime_class_name: Option<String>,
}

/// CPU and memory of one worker.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.cpuRequest) || !has(self.cpuLimit) || quantity(string(self.cpuRequest)).compareTo(quantity(string(self.cpuLimit))) <= 0")
        .message("cpuRequest is more than cpuLimit"),
    validation = Rule::new("!has(self.memoryRequest) || !has(self.memoryLimit) || quantity(string(self.memoryRequest)).compareTo(quantity(string(self.memoryLimit))) <= 0")
        .message("memoryRequest is more than memoryLimit"),
    validation = Rule::new("!has(self.cpuLimit) || quantity(string(self.cpuLimit)).compareTo(quantity('0')) > 0")
        .message("a worker with a cpuLimit of 0 can't run"),
    validation = Rule::new("!has(self.memoryLimit) || quantity(string(self.memoryLimit)).compareTo(quantity('0')) > 0")
        .message("a worker with a memoryLimit of 0 can't run"),
)]
pub struct ResourcesSpec {
    /// What the scheduler sets aside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_request: Option<Quantity>,
    /// What it may use at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_limit: Option<Quantity>,
    /// What the scheduler sets aside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_request: Option<Quantity>,
    /// What it may use at most; a worker that uses more is killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<Quantity>,
}

fn tolerations_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "description": "Taints of nodes that workers put up with.",
        "type": "array",
        "maxItems": 32,
        "items": {
            "type": "object",
            "properties": {
                "key": { "type": "string", "maxLength": 317 },
                "operator": { "type": "string", "enum": ["Exists", "Equal"] },
                "value": { "type": "string", "maxLength": 63 },
                "effect": { "type": "string", "enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"] },
                "tolerationSeconds": { "type": "integer", "format": "int64" }
            },
            "x-kubernetes-validations": [
                {
                    "rule": "!has(self.operator) || self.operator != 'Exists' || !has(self.value) || self.value == ''",
                    "message": "a toleration with operator Exists has no value"
                },
                {
                    "rule": "(has(self.key) && self.key != '') || (has(self.operator) && self.operator == 'Exists')",
                    "message": "a toleration without a key is one of everything: set operator Exists"
                },
                {
                    "rule": "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
                    "message": "tolerationSeconds goes with effect NoExecute only"
                }
            ]
        }
    })
}
