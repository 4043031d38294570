//! Tenants, keys and watching of the cluster tests.

use std::time::Duration;

use anyhow::{Context, bail};
use croft_e2e::client::Client;
use croft_e2e::system::System;
use croft_front::api_key_command;
use croft_front::store::postgres::Postgres;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{SendMessageResponse, SessionEvent};
use secrecy::ExposeSecret;
use serde_json::json;
use tokio::time::Instant;
use tonic::Streaming;

/// For anything that a healthy cluster does at once, and a busy one a little later.
pub(crate) const PATIENCE: Duration = Duration::from_mins(2);

/// Tries until `attempt` succeeds; its last error is the failure's.
pub(crate) async fn eventually<T>(what: &str, mut attempt: impl AsyncFnMut() -> anyhow::Result<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(error) if Instant::now() >= until => panic!("{what}: {error:#}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

/// A tenant of a test's own, removed by [`Tenant::remove`].
pub(crate) struct Tenant {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) api_key: String,
}

impl Tenant {
    /// Applies an AgentTenant, waits until it is Ready, and makes a key for it.
    pub(crate) async fn apply(system: &System, name: &str, workers: u32) -> Self {
        Self::apply_with(system, name, workers, "").await
    }

    /// With more in its spec: lines of YAML.
    pub(crate) async fn apply_with(system: &System, name: &str, workers: u32, more: &str) -> Self {
        let manifest = format!(
            "apiVersion: croft.dev/v1alpha1\nkind: AgentTenant\nmetadata:\n  name: {name}\nspec:\n  tier: free\n  # Tests ask more often than people do.\n  limits:\n    requestsPerMinute: 1000000\n  workers:\n    replicas: {workers}\n{more}"
        );
        system.apply(&manifest).await.unwrap();
        let wait = ["wait", &format!("agenttenant/{name}"), "--for=condition=Ready", "--timeout=120s"];
        system.kubectl(&wait).await.unwrap();
        let api_key = eventually("the key", async || api_key(system, name).await).await;
        let tenant = Self { name: name.to_owned(), namespace: format!("tenant-{name}"), api_key };
        // Each front learns of the tenant on its own; the node port may lead to any.
        for front in front_pods(system).await {
            let mut client = Client::new(&format!("{}:50051", front.ip), &tenant.api_key).unwrap();
            eventually("every front knows the tenant", async || {
                client.lifecycle.list_sessions(croft_proto::v1::ListSessionsRequest::default()).await?;
                Ok(())
            })
            .await;
        }
        tenant
    }

    pub(crate) fn client(&self, system: &System) -> Client {
        Client::new(&system.grpc, &self.api_key).unwrap()
    }

    /// Deletes the tenant and waits until its namespace is gone.
    pub(crate) async fn remove(self, system: &System) {
        system.kubectl(&["delete", "agenttenant", &self.name, "--timeout=120s"]).await.unwrap();
        eventually("the namespace is gone", async || {
            match system.kubectl_tries(&["get", "namespace", &self.namespace]).await? {
                (false, said) if said.contains("NotFound") => Ok(()),
                (_, said) => bail!("{said}"),
            }
        })
        .await;
    }
}

/// Makes a key as `croft-front api-key create` does.
async fn api_key(system: &System, tenant: &str) -> anyhow::Result<String> {
    let postgres = Postgres::connect(&system.postgres_url, 1).await?;
    Ok(api_key_command::make(tenant, &postgres).await?.expose_secret().to_owned())
}

/// A pod with its address.
#[derive(Debug, Clone)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) ip: String,
}

/// The pods that this selector finds and that are ready.
pub(crate) async fn pods(system: &System, namespace: &str, selector: &str) -> anyhow::Result<Vec<Pod>> {
    let format = "jsonpath={range .items[*]}{.metadata.name} {.status.podIP} {.status.conditions[?(@.type==\"Ready\")].status} {.metadata.deletionTimestamp}{\"\\n\"}{end}";
    let listed = system.kubectl(&["get", "pods", "-n", namespace, "-l", selector, "-o", format]).await?;
    Ok(listed
        .lines()
        .filter_map(|line| match line.split_whitespace().collect::<Vec<_>>()[..] {
            [name, ip, "True"] => Some(Pod { name: name.to_owned(), ip: ip.to_owned() }),
            _ => None,
        })
        .collect())
}

/// The replicas of the front.
pub(crate) async fn front_pods(system: &System) -> Vec<Pod> {
    let fronts = pods(system, "croft-system", "app.kubernetes.io/component=front").await.unwrap();
    assert!(!fronts.is_empty(), "no front is ready");
    fronts
}

/// Fails where a page of a front's or an operator's metrics has one of these on it.
pub(crate) async fn assert_on_no_page(system: &System, names: &[String]) {
    let operators = pods(system, "croft-system", "app.kubernetes.io/component=operator").await.unwrap();
    assert!(!operators.is_empty(), "no operator is ready");
    for pod in [front_pods(system).await, operators].concat() {
        let page = eventually("a page of metrics can be read", async || metrics(&pod.ip).await).await;
        assert!(page.contains("croft_build_info"), "{}: {page}", pod.name);
        for name in names {
            assert!(!page.contains(name), "{} tells of {name}: {page}", pod.name);
        }
    }
}

/// The page of metrics of the pod at this address.
pub(crate) async fn metrics(address: &str) -> anyhow::Result<String> {
    Ok(reqwest::get(format!("http://{address}:9090/metrics")).await?.error_for_status()?.text().await?)
}

/// Reads a turn to its end.
pub(crate) async fn whole_turn(mut events: Streaming<SendMessageResponse>) -> anyhow::Result<Vec<SessionEvent>> {
    let mut seen = Vec::new();
    let reading = async {
        while let Some(response) = events.message().await? {
            seen.push(response.event.context("a response without an event")?);
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, reading).await.context("the turn does not end")??;
    Ok(seen)
}

/// The text of a turn's agent messages.
pub(crate) fn answer(events: &[SessionEvent]) -> String {
    let mut text = String::new();
    for event in events {
        if let Some(Kind::AgentMessage(message)) = &event.kind {
            for block in &message.content {
                if let Some(croft_proto::v1::content_block::Block::Text(part)) = &block.block {
                    text.push_str(&part.text);
                }
            }
        }
    }
    text
}

/// Asserts that durable numbers follow one another without a hole.
pub(crate) fn assert_contiguous(events: &[SessionEvent]) {
    let numbers: Vec<u64> = events.iter().map(|event| event.seq).filter(|seq| *seq > 0).collect();
    assert!(!numbers.is_empty(), "no durable event");
    for pair in numbers.windows(2) {
        assert_eq!(pair[1], pair[0] + 1, "a hole or a double in {numbers:?}");
    }
}

/// Puts the tenant's key of a provider where its spec says that it is: Secret `models`, key `anthropic`.
pub(crate) async fn put_key(system: &System, tenant: &Tenant, key: &str) {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": { "name": "models", "namespace": tenant.namespace },
        "stringData": { "anthropic": key },
    });
    system.apply(&secret.to_string()).await.unwrap();
}
