//! What the API server itself refuses, with the sentence that a person gets.

use croft_crds::{AgentSession, AgentTenant};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::world::{World, tenant};

fn dry_run() -> PostParams {
    PostParams { dry_run: true, ..PostParams::default() }
}

async fn refusal<K>(api: &Api<K>, object: &Value) -> String
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    let object: K = serde_json::from_value(object.clone()).expect("reads as the kind");
    api.create(&dry_run(), &object).await.map_or_else(|error| error.to_string(), |_| "it is taken".to_owned())
}

#[tokio::test]
async fn nonsense_tenants_are_refused() {
    let session = World::shared().await;
    let provider = |name: &str, url: &str| {
        json!({ "llm": { "providers": [{
            "name": name, "baseUrl": url, "apiKeySecretRef": { "name": "models", "key": "k" },
        }] } })
    };
    let egress = |cidr: &str| json!({ "egress": { "allow": [{ "cidr": cidr }] } });
    let limits = |limit: &str, value: Value| json!({ "limits": { limit: value } });
    let resources = |request: &str, limit: Value| json!({ "workers": { "resources": { "cpuRequest": request, "cpuLimit": limit } } });
    let cases = [
        ("heron.east", json!({}), "the name has a dot in it"),
        (&"h".repeat(57), json!({}), "the name has more than 56 characters"),
        ("heron", json!({ "tier": "gold" }), "supported values: \"free\", \"standard\", \"enterprise\""),
        ("heron", json!({ "quota": { "cpu": "-1" } }), "spec.quota.cpu"),
        ("heron", json!({ "quota": { "memory": "lots" } }), "spec.quota.memory"),
        ("heron", json!({ "workers": { "replicas": 101 } }), "should be less than or equal to 100"),
        ("heron", resources("2", json!(1)), "cpuRequest is more than cpuLimit"),
        ("heron", egress("example.com"), "a range must be a CIDR"),
        ("heron", egress("10.0.0.7/8"), "a range has bits set after its prefix"),
        ("heron", egress("0.0.0.0/0"), "a range reaches 169.254.0.0/16"),
        ("heron", egress("fe80::/10"), "a range reaches fe80::/10"),
        ("heron", egress("fd00::/8"), "a range reaches fd00:ec2::254"),
        ("heron", provider("anthropic", "llm.example.com"), "baseUrl must be an address such as https://"),
        ("heron", limits("maxSessions", json!(0)), "should be greater than or equal to 1"),
        ("heron", json!({ "budget": { "monthlyUsd": "ten" } }), "spec.budget.monthlyUsd"),
    ];
    let tenants = session.all::<AgentTenant>();
    for (name, spec, sentence) in cases {
        // Through plain JSON: some of it the Rust types would not even read.
        let object = json!({
            "apiVersion": "croft.dev/v1alpha1", "kind": "AgentTenant", "metadata": { "name": name }, "spec": spec,
        });
        let request = http::Request::post("/apis/croft.dev/v1alpha1/agenttenants?dryRun=All")
            .header("content-type", "application/json")
            .body(serde_json::to_vec(&object).unwrap())
            .unwrap();
        let told = session.client.request::<AgentTenant>(request).await;
        let told = told.map_or_else(|error| error.to_string(), |_| "it is taken".to_owned());
        assert!(told.contains(sentence), "{object}: wanted {sentence:?}, got {told:?}");
    }
    tenants.create(&dry_run(), &tenant("heron", &json!({ "quota": { "cpu": 4, "memory": "8Gi" } }))).await.unwrap();
}

#[tokio::test]
async fn nonsense_sessions_are_refused() {
    let session = World::shared().await;
    let sessions = session.within::<AgentSession>(&session.world.namespace);
    let tool = |tool: Value| json!({ "agent": { "model": "scripted-1", "tools": [tool] } });
    let cases = [
        ("talk.one", json!({ "agent": { "model": "scripted-1" } }), "at most 63 characters and no dot"),
        ("talk", json!({ "agent": { "model": "" } }), "spec.agent.model"),
        ("talk", tool(json!({ "name": "now" })), "a tool comes from exactly one place"),
        ("talk", tool(json!({ "name": "a b", "builtin": { "name": "clock" } })), "spec.agent.tools[0].name"),
        ("talk", tool(json!({ "name": "now", "mcp": { "serverUrl": "tools" } })), "serverUrl must be an address"),
        ("talk", json!({ "agent": { "model": "scripted-1", "temperature": 3.5 } }), "less than or equal to 2"),
        ("talk", json!({ "agent": { "model": "scripted-1", "name": "Clerk" } }), "spec.agent.name"),
    ];
    for (name, spec, sentence) in cases {
        let object = json!({ "metadata": { "name": name }, "spec": spec });
        let told = refusal(&sessions, &object).await;
        assert!(told.contains(sentence), "{object}: wanted {sentence:?}, got {told:?}");
    }
}

#[tokio::test]
async fn a_declared_agent_is_fixed_and_an_end_is_final() {
    let session = World::shared().await;
    let tenant = session.settled_tenant("fixed", json!({})).await;
    let namespace = kube::ResourceExt::name_any(&tenant);
    let namespace = croft_crds::labels::tenant_namespace(&namespace);
    session.declare(&namespace, "talk", json!({ "agent": { "model": "scripted-1" } })).await;
    let sessions = session.within::<AgentSession>(&namespace);
    let edit = async |spec: Value| {
        let patch = Patch::Merge(json!({ "spec": spec }));
        sessions.patch("talk", &PatchParams::default(), &patch).await.map(drop).map_err(|error| error.to_string())
    };
    let told = edit(json!({ "agent": { "model": "claude-haiku-4-5" } })).await.unwrap_err();
    assert!(told.contains("the agent is fixed once the session is declared"), "{told}");
    edit(json!({ "terminate": true })).await.unwrap();
    for back in [json!({ "terminate": false }), json!({ "terminate": null })] {
        let told = edit(back).await.unwrap_err();
        assert!(told.contains("a terminated session can't be brought back"), "{told}");
    }
}
