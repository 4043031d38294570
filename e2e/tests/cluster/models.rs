//! T8: what a worker pod is told of models is where they are: it calls them by the cluster's DNS and through its fence, with the key that is
//! in the tenant's Secret by then.

use anyhow::{Context as _, ensure};
use croft_e2e::client::{Client, message, scripted_agent};
use croft_e2e::system::System;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{AgentSpec, ModelAttempt, ProviderMode, SessionEvent};

use crate::outside;
use crate::support::{Tenant, eventually, pods, put_key, whole_turn};

const IN_CLUSTER: &str = "gpt-6-luna";
const AT_ITS_ENDPOINT: &str = "claude-haiku-4-5";

/// The tenant has `openai` in the cluster, without a key, as the last of its spec's lines say; it is given `anthropic` at an endpoint of its
/// own. Both are played by the probe, which answers with the credential that it was shown.
pub(crate) async fn answer(system: &System, tenant: &Tenant, spec: &str) {
    let mut client = tenant.client(system);
    let said = say(&mut client, system, tenant, IN_CLUSTER, "called with ").await;
    assert_eq!(said.mode(), ProviderMode::InCluster);
    put_key(system, tenant, "sk-green").await;
    let endpoint = format!(
        "      - name: anthropic
        source: TenantEndpoint
        baseUrl: http://{}:{}
        apiKeySecretRef: {{ name: models, key: anthropic }}
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
    }
}

/// Speaks to a session on this model until it answers so: a key takes its time to the workers.
async fn say(client: &mut Client, system: &System, tenant: &Tenant, model: &str, expected: &str) -> ModelAttempt {
    let mut looks = 0;
    eventually(&format!("{model} answers {expected:?}"), async || {
        // A node looks at what a pod has mounted about once a minute, and at once when the pod changes.
        looks += 1;
        for pod in pods(system, &tenant.namespace, "app.kubernetes.io/component=worker").await? {
            let look = format!("croft.example/look={looks}");
            system.kubectl(&["annotate", "--overwrite", "pod", &pod.name, "-n", &tenant.namespace, &look]).await?;
        }
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
