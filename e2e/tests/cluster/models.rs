//! T8, X2: what a worker pod is told of models and tools is where they are: it calls them by the cluster's DNS and through its fence, with
//! the credential that is in the tenant's Secret by then.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, ensure};
use croft_e2e::client::{Client, message, scripted_agent};
use croft_e2e::system::System;
use croft_proto::v1::content_block::Block;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::tool_spec::Source;
use croft_proto::v1::{AgentSpec, McpTool, ModelAttempt, ProviderMode, SessionEvent, ToolSpec};

use crate::outside;
use crate::support::{Tenant, eventually, pods, put_key, whole_turn};

const IN_CLUSTER: &str = "gpt-6-luna";
const AT_ITS_ENDPOINT: &str = "claude-haiku-4-5";
/// Beside the model in the cluster, by its Service.
const TOOLS_IN_CLUSTER: &str = "http://llama.models.svc.cluster.local/mcp";

/// The tenant has `openai` in the cluster, without a key, as the last of its spec's lines say; it is given `anthropic` at an endpoint of its
/// own, and a server of tools beside each. All are played by the probe, which answers with the credential that it was shown.
pub(crate) async fn answer(system: &System, tenant: &Tenant, spec: &str) {
    let mut client = tenant.client(system);
    let said = say(&mut client, system, tenant, IN_CLUSTER, "called with ").await;
    assert_eq!(said.mode(), ProviderMode::InCluster);
    put_key(system, tenant, "sk-green").await;
    let tools_outside = format!("http://{}:{}/mcp", outside::PUBLIC, outside::MODEL_PORT);
    let endpoint = format!(
        "      - name: anthropic
        source: TenantEndpoint
        baseUrl: http://{}:{}
        apiKeySecretRef: {{ name: models, key: anthropic }}
  mcpServers:
    - {{ name: inside, url: '{TOOLS_IN_CLUSTER}' }}
    - {{ name: outside, url: '{tools_outside}', tokenSecretRef: {{ name: models, key: anthropic }} }}
",
        outside::PUBLIC,
        outside::MODEL_PORT
    );
    Tenant::apply_with(system, &tenant.name, 1, &format!("{spec}{endpoint}")).await;
    for key in ["sk-green", "sk-greener"] {
        put_key(system, tenant, key).await;
        let said = say(&mut client, system, tenant, AT_ITS_ENDPOINT, &format!("called with {key}")).await;
        assert_eq!(said.mode(), ProviderMode::TenantEndpoint);
        let usage = said.usage.expect("it tells what it used");
        assert_eq!((usage.input_uncached_tokens, usage.output_tokens), (11, 7));
        call(&mut client, system, tenant, &tools_outside, key).await;
    }
}

/// Has a tool of each server called until the one outside is shown this credential; the other is shown none.
async fn call(client: &mut Client, system: &System, tenant: &Tenant, tools_outside: &str, token: &str) {
    let tool = |name: &str, server_url: &str| {
        let called = McpTool { server_url: server_url.to_owned(), tool_name: "look".to_owned() };
        ToolSpec { name: name.to_owned(), source: Some(Source::Mcp(called)), ..ToolSpec::default() }
    };
    let tools = vec![tool("inside", TOOLS_IN_CLUSTER), tool("outside", tools_outside)];
    let script =
        r#"{"script": [{"tool_call": {"name": "inside"}}, {"tool_call": {"name": "outside"}}, {"text": "done"}]}"#;
    let shown = token.bytes().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
    let expected = [("look called with ".to_owned(), false), (format!("look called with {shown}"), false)];
    let mut looks = 0;
    eventually(&format!("tools are called with {token}"), async || {
        look(system, tenant, &mut looks).await?;
        let agent = AgentSpec { tools: tools.clone(), ..scripted_agent("caller") };
        let session_id = client.create(agent).await?.session_id;
        let events =
            whole_turn(client.lifecycle.send_message(message(&session_id, script)).await?.into_inner()).await?;
        let results = results(&events);
        ensure!(results == expected, "{results:?}");
        Ok(())
    })
    .await;
}

/// What the tools gave, in the order of their names, and whether it was an error: they were called side by side.
fn results(events: &[SessionEvent]) -> Vec<(String, bool)> {
    let mut names = HashMap::new();
    let mut results = BTreeMap::new();
    for event in events {
        match &event.kind {
            Some(Kind::ToolCall(call)) => {
                names.insert(&call.tool_call_id, &call.name);
            }
            Some(Kind::ToolResult(result)) => {
                let text = result.content.iter().filter_map(|content| match &content.block {
                    Some(Block::Text(text)) => Some(text.text.as_str()),
                    _ => None,
                });
                results.insert(names.get(&result.tool_call_id).copied(), (text.collect(), result.is_error));
            }
            _ => {}
        }
    }
    results.into_values().collect()
}

/// Has a node look at what the tenant's workers have mounted: it does so about once a minute, and at once when a pod changes.
async fn look(system: &System, tenant: &Tenant, looks: &mut u32) -> anyhow::Result<()> {
    *looks += 1;
    for pod in pods(system, &tenant.namespace, "app.kubernetes.io/component=worker").await? {
        let look = format!("croft.example/look={looks}");
        system.kubectl(&["annotate", "--overwrite", "pod", &pod.name, "-n", &tenant.namespace, &look]).await?;
    }
    Ok(())
}

/// Speaks to a session on this model until it answers so: a key takes its time to the workers.
async fn say(client: &mut Client, system: &System, tenant: &Tenant, model: &str, expected: &str) -> ModelAttempt {
    let mut looks = 0;
    eventually(&format!("{model} answers {expected:?}"), async || {
        look(system, tenant, &mut looks).await?;
        let agent = AgentSpec { model: model.to_owned(), ..scripted_agent("caller") };
        let session_id = client.create(agent).await?.session_id;
        let events =
            whole_turn(client.lifecycle.send_message(message(&session_id, "hello")).await?.into_inner()).await?;
        let text = crate::support::answer(&events);
        ensure!(text == expected, "it answers {text:?}: {:?}", failures(&events));
        let attempt = events.into_iter().find_map(|event| match event.kind {
            Some(Kind::ModelAttempt(attempt)) => Some(attempt),
            _ => None,
        });
        attempt.context("an answer without an attempt")
    })
    .await
}

fn failures(events: &[SessionEvent]) -> Vec<&Kind> {
    let kinds = events.iter().filter_map(|event| event.kind.as_ref());
    kinds.filter(|kind| matches!(kind, Kind::Error(_) | Kind::ModelAttempt(_))).collect()
}
