//! Objects that must be refused, each with the sentence that a person gets, judged by the same rules as the API server's.

use croft_crds::{AgentSession, AgentTenant};
use serde_json::{Value, json};

fn tenant(name: &str, spec: &Value) -> AgentTenant {
    serde_json::from_value(json!({
        "apiVersion": "croft.dev/v1alpha1", "kind": "AgentTenant", "metadata": { "name": name }, "spec": spec,
    }))
    .expect("reads as the kind")
}

fn session(name: &str, spec: &Value) -> AgentSession {
    serde_json::from_value(json!({
        "apiVersion": "croft.dev/v1alpha1", "kind": "AgentSession",
        "metadata": { "name": name, "namespace": "tenant-heron" }, "spec": spec,
    }))
    .expect("reads as the kind")
}

#[track_caller]
fn refused(outcome: Result<(), impl std::fmt::Display>, sentence: &str) {
    let said = outcome.err().map(|errors| errors.to_string()).unwrap_or_default();
    assert!(said.contains(sentence), "wanted {sentence:?}, got {said:?}");
}

#[test]
fn nonsense_tenants_are_refused_with_a_sentence() {
    let cases = [
        ("heron.east", json!({}), "the name has a dot in it"),
        (&"h".repeat(57), json!({}), "the name has more than 56 characters"),
        ("heron", json!({ "egress": { "allow": [{ "cidr": "db.example.com" }] } }), "a range must be a CIDR"),
        ("heron", json!({ "egress": { "allow": [{ "cidr": "10.0.0.0/33" }] } }), "a range must be a CIDR"),
        (
            "heron",
            json!({ "egress": { "allow": [{ "cidr": "10.1.2.3/8" }] } }),
            "a range has bits set after its prefix",
        ),
        (
            "heron",
            json!({ "egress": { "allow": [{ "cidr": "169.254.169.254/32" }] } }),
            "a range reaches 169.254.0.0/16",
        ),
        (
            "heron",
            json!({ "egress": { "allow": [{ "cidr": "10.0.0.0/8" }, { "cidr": "0.0.0.0/0" }] } }),
            "a range reaches 169.254.0.0/16",
        ),
        ("heron", json!({ "egress": { "allow": [{ "cidr": "fe80::/10" }] } }), "a range reaches fe80::/10"),
        ("heron", json!({ "egress": { "allow": [{ "cidr": "fd00::/8" }] } }), "a range reaches fd00:ec2::254"),
        (
            "heron",
            json!({ "workers": { "resources": { "cpuRequest": 2, "cpuLimit": "500m" } } }),
            "cpuRequest is more than cpuLimit",
        ),
        (
            "heron",
            json!({ "workers": { "resources": { "memoryRequest": "1Gi", "memoryLimit": "1000Mi" } } }),
            "memoryRequest is more than memoryLimit",
        ),
        (
            "heron",
            json!({ "llm": { "providers": [{
                "name": "anthropic", "baseUrl": "llm.example.com", "apiKeySecretRef": { "name": "models", "key": "k" },
            }] } }),
            "baseUrl must be an address such as https://",
        ),
        (
            "heron",
            json!({ "llm": { "providers": [{
                "name": "anthropic", "baseUrl": "ftp://llm.example.com",
                "apiKeySecretRef": { "name": "models", "key": "k" },
            }] } }),
            "baseUrl must be an address such as https://",
        ),
    ];
    for (name, spec, sentence) in cases {
        refused(tenant(name, &spec).validate_cel(), sentence);
    }
}

#[test]
fn a_sound_tenant_passes() {
    let spec = json!({
        "tier": "enterprise",
        "quota": { "cpu": 8, "memory": "16Gi", "pods": 12 },
        "workers": { "replicas": 3, "resources": { "cpuRequest": "250m", "cpuLimit": 1 } },
        "egress": { "allow": [
            { "cidr": "10.20.0.0/16", "ports": [{ "port": 5432 }, { "port": 9000, "endPort": 9010, "protocol": "UDP" }] },
            { "cidr": "192.0.2.7/32" }, { "cidr": "2001:db8::/32" }, { "cidr": "fd12:3456::/32" },
        ] },
        "llm": { "providers": [{
            "name": "anthropic", "baseUrl": "https://llm.example.com:8443/v1",
            "apiKeySecretRef": { "name": "models", "key": "anthropic" },
        }] },
    });
    tenant("heron-2", &spec).validate_cel().unwrap();
    tenant(&"h".repeat(56), &json!({})).validate_cel().unwrap();
}

#[test]
fn nonsense_sessions_are_refused_with_a_sentence() {
    let agent = json!({ "model": "scripted-1" });
    let cases = [
        ("talk.one", json!({ "agent": agent }), "at most 63 characters and no dot"),
        (&"t".repeat(64), json!({ "agent": agent }), "at most 63 characters and no dot"),
        (
            "talk",
            json!({ "agent": { "model": "scripted-1", "tools": [{ "name": "now" }] } }),
            "a tool comes from exactly one place",
        ),
        (
            "talk",
            json!({ "agent": { "model": "scripted-1", "tools": [{
                "name": "now", "builtin": { "name": "clock" }, "mcp": { "serverUrl": "https://tools.example.com" },
            }] } }),
            "a tool comes from exactly one place",
        ),
        (
            "talk",
            json!({ "agent": { "model": "scripted-1", "tools": [{
                "name": "now", "mcp": { "serverUrl": "tools.example.com/mcp" },
            }] } }),
            "serverUrl must be an address such as https://",
        ),
    ];
    for (name, spec, sentence) in cases {
        refused(session(name, &spec).validate_cel(), sentence);
    }
}

#[test]
fn the_agent_of_a_session_is_fixed() {
    let old = session("talk", &json!({ "agent": { "model": "scripted-1" } }));
    let new = session("talk", &json!({ "agent": { "model": "claude-haiku-4-5" } }));
    refused(new.validate_cel_update(&old), "the agent is fixed once the session is declared");
    old.validate_cel_update(&old).unwrap();
}

#[test]
fn a_session_can_be_terminated_but_not_brought_back() {
    let running = session("talk", &json!({ "agent": { "model": "scripted-1" } }));
    let terminated = session("talk", &json!({ "agent": { "model": "scripted-1" }, "terminate": true }));
    terminated.validate_cel_update(&running).unwrap();
    refused(running.validate_cel_update(&terminated), "a terminated session can't be brought back");
}
