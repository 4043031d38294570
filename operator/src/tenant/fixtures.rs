//! Two made-up tenants for tests: one that says all, one that says nothing.

use croft_crds::AgentTenant;
use croft_crds::tenant::SecretKeyRef;
use serde_json::json;

use super::wanted::{KeyVersions, Settings};

pub(crate) fn settings() -> Settings {
    Settings {
        namespace: "croft-test-system".to_owned(),
        worker_image: "registry.example.com/croft/worker:7".to_owned(),
        worker_image_pull_policy: "IfNotPresent".to_owned(),
    }
}

/// The one key that [`full`] refers to.
pub(crate) fn keys() -> KeyVersions {
    let key = SecretKeyRef { name: "models".to_owned(), key: "anthropic-key".to_owned() };
    KeyVersions::from([(key, "17".to_owned())])
}

pub(crate) fn minimal() -> AgentTenant {
    tenant("egret", "5e1d3c6a-0d3c-4a53-9f11-7c3f2a1b0c9d", &json!({}))
}

pub(crate) fn full() -> AgentTenant {
    tenant(
        "heron",
        "0c9e2f6e-8a8f-4a8e-9a56-3f3b7b1c2d4e",
        &json!({
            "tier": "enterprise",
            "quota": { "cpu": 6, "memory": "12Gi", "pods": 9 },
            "workers": {
                "replicas": 4,
                "image": "registry.example.com/heron/worker:3",
                "resources": {
                    "cpuRequest": "150m", "cpuLimit": "1250m", "memoryRequest": "96Mi", "memoryLimit": "768Mi",
                },
                "sessionsPerWorker": 33,
                "nodeSelector": { "pool": "agents" },
                "tolerations": [{ "key": "agents", "operator": "Exists", "effect": "NoSchedule" }],
            },
            "egress": { "allow": [
                { "cidr": "10.20.0.0/16", "ports": [{ "port": 5432 }, { "port": 9000, "endPort": 9010 }] },
                { "cidr": "fd12:3456::/32" },
            ] },
            "llm": { "providers": [
                {
                    "name": "anthropic", "baseUrl": "https://llm.example.com/v1",
                    "apiKeySecretRef": { "name": "models", "key": "anthropic-key" },
                },
            ] },
            "limits": {
                "maxSessions": 77, "requestsPerMinute": 88, "tokensPerMinute": 66_000, "maxMessageBytes": 99_000,
            },
            "budget": { "monthlyUsd": "123.45", "monthlyTokens": 1_000_000, "onExceeded": "Warn" },
            "sessionDefaults": { "idleTimeoutSeconds": 600, "lifetimeSeconds": 7_200, "ttlSecondsAfterFinished": 60 },
            "cordon": true,
        }),
    )
}

fn tenant(name: &str, uid: &str, spec: &serde_json::Value) -> AgentTenant {
    serde_json::from_value(json!({
        "apiVersion": "croft.dev/v1alpha1",
        "kind": "AgentTenant",
        "metadata": { "name": name, "uid": uid, "generation": 3 },
        "spec": spec,
    }))
    .expect("a fixture is a tenant")
}
