//! Made-up tenants for tests: one that says all, one that says nothing, one with a model in the cluster.

use std::sync::Arc;

use croft_crds::AgentTenant;
use croft_crds::tenant::ProviderName;
use serde_json::json;

use super::platform::PlatformProviders;
use super::tier::Tiers;
use super::wanted::{Key, Keys, Settings};
use crate::keyring::Fingerprint;

pub(crate) fn settings() -> Settings {
    let platform =
        "providers: [{ name: anthropic, secretName: lent, key: api-key, baseUrl: 'https://lent.example.com' }]";
    Settings {
        namespace: "croft-test-system".to_owned(),
        worker_image: "registry.example.com/croft/worker:7".to_owned(),
        worker_image_pull_policy: "IfNotPresent".to_owned(),
        worker_pull_secrets: vec!["registry".to_owned()],
        worker_rollouts_percent: 5,
        worker_log: None,
        worker_otlp_endpoint: None,
        tiers: Arc::new(Tiers::default()),
        platform: Arc::new(PlatformProviders::parse(platform).expect("it is one")),
        surroundings: Arc::default(),
        removal_max_seconds: 600,
    }
}

pub(crate) fn fingerprint(text: &str) -> Fingerprint {
    Fingerprint::of_test(text)
}

/// The one key that [`full`] refers to.
pub(crate) fn keys() -> Keys {
    Keys::from([(ProviderName::Anthropic, Key::There(fingerprint("17")))])
}

/// Every key that `tenant` needs.
pub(crate) fn keys_of(tenant: &AgentTenant) -> Keys {
    let found = tenant.spec.llm.providers.iter().map(|provider| match provider.api_key_secret_ref {
        Some(_) => (provider.name, Key::There(fingerprint("17"))),
        None => (provider.name, Key::NotNeeded),
    });
    found.collect()
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
            "quota": { "cpu": 6, "memory": "12Gi", "pods": 9, "agentSessions": 444 },
            "workers": {
                "replicas": 4,
                "image": "registry.example.com/heron/worker:3",
                "resources": {
                    "cpuRequest": "150m", "cpuLimit": "1250m", "memoryRequest": "96Mi", "memoryLimit": "768Mi",
                },
                "sessionsPerWorker": 33,
                "nodeSelector": { "pool": "agents" },
                "tolerations": [{ "key": "agents", "operator": "Exists", "effect": "NoSchedule" }],
                "runtimeClassName": "sandboxed",
            },
            "owners": [
                { "kind": "User", "name": "ada@example.com" },
                { "kind": "Group", "name": "heron-admins" },
                { "kind": "ServiceAccount", "name": "deployer", "namespace": "ci" },
            ],
            "egress": { "internet": "Deny", "allow": [
                { "cidr": "10.20.0.0/16", "ports": [{ "port": 5432 }, { "port": 9000, "endPort": 9010 }] },
                { "cidr": "fd12:3456::/32" },
            ] },
            "llm": { "providers": [
                {
                    "name": "anthropic", "baseUrl": "https://llm.example.com/v1",
                    "apiKeySecretRef": { "name": "models", "key": "anthropic-key" },
                },
            ] },
            "mcpServers": [
                {
                    "name": "tickets", "url": "https://tools.example.com/mcp", "tools": ["search", "book"],
                    "tokenSecretRef": { "name": "tools", "key": "tickets-token" },
                },
                { "name": "maps", "url": "https://maps.example.com/mcp" },
                {
                    "name": "mail", "url": "https://mail.example.com/mcp",
                    "userTokensSecretRef": { "name": "mail-of-people" },
                },
            ],
            "limits": {
                "maxSessions": 77, "requestsPerMinute": 88, "tokensPerMinute": 66_000, "maxMessageBytes": 99_000,
            },
            "budget": { "monthlyUsd": "123.45", "monthlyTokens": 1_000_000, "onExceeded": "Warn" },
            "sessionDefaults": { "idleTimeoutSeconds": 600, "lifetimeSeconds": 7_200, "ttlSecondsAfterFinished": 60 },
            "cordon": true,
        }),
    )
}

/// A tenant whose model is served in the cluster, without a key.
pub(crate) fn in_cluster() -> AgentTenant {
    tenant(
        "stork",
        "7a1f0a52-2f57-4a6f-8c8e-0c1d9b7a6e5f",
        &json!({ "llm": { "providers": [{
            "name": "anthropic", "source": "InCluster",
            "service": {
                "namespace": "models", "name": "llama", "port": 80, "targetPort": 8000,
                "podSelector": { "app": "llama" },
            },
        }] } }),
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
