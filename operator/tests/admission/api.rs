//! Plain requests to the API server, on behalf of anyone.

use std::time::Duration;

use croft_serve::tls;
use http::{Method, Request};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::kinds;

/// On everything that a test makes, so that the next run can clear away what a killed one left.
pub(crate) const TEST_LABEL: &str = "croft.dev/made-by-test";
/// Nothing here takes that long unless it is broken.
const LONG: Duration = Duration::from_secs(30);

/// One test's connection, and a word that no other run has.
pub(crate) struct Session {
    client: Client,
    pub(crate) run: String,
}

impl Session {
    /// Connects, and sees to it that both kinds are there.
    pub(crate) async fn begin() -> Self {
        tls::install_provider();
        let path = std::env::var("CROFT_TEST_KUBECONFIG")
            .expect("CROFT_TEST_KUBECONFIG must name the kubeconfig of an API server: `make test-services` starts one");
        let kubeconfig = Kubeconfig::read_from(path).expect("CROFT_TEST_KUBECONFIG is a kubeconfig");
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await.expect("the kubeconfig is usable");
        let client = Client::try_from(config).expect("a client can be made");
        kinds::install(&client).await;
        Self { client, run: uuid::Uuid::new_v4().simple().to_string()[..8].to_owned() }
    }

    /// A namespace of this run.
    pub(crate) async fn namespace(&self, name: &str, labels: &Value) {
        let mut namespace = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": { TEST_LABEL: "true" } },
        });
        for (label, value) in labels.as_object().into_iter().flatten() {
            namespace["metadata"]["labels"][label] = value.clone();
        }
        self.ask(Method::POST, "/api/v1/namespaces", &namespace, None).await.expect("a namespace can be made");
    }

    /// Asks as `someone`, a user with groups, or as ourselves. What is refused is told in the API server's words.
    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &str,
        body: &Value,
        someone: Option<(&str, &[String])>,
    ) -> Result<Value, String> {
        let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let mut request = Request::builder().method(method).uri(path).header("content-type", kind);
        if let Some((user, groups)) = someone {
            request = request.header("impersonate-user", user);
            // Policies bind those too who may do all.
            for group in groups.iter().map(String::as_str).chain(["system:masters", "system:authenticated"]) {
                request = request.header("impersonate-group", group);
            }
        }
        let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(body).expect("plain data") };
        let request = request.body(body).expect("a request can be made");
        self.client.request::<Value>(request).await.map_err(|error| error.to_string())
    }
}

/// Where the objects of a kind are, or one of them.
pub(crate) fn path(api_version: &str, namespace: Option<&str>, resource: &str, name: Option<&str>) -> String {
    let root = if api_version.contains('/') { "apis" } else { "api" };
    let namespace = namespace.map(|namespace| format!("/namespaces/{namespace}")).unwrap_or_default();
    let name = name.map(|name| format!("/{name}")).unwrap_or_default();
    format!("/{root}/{api_version}{namespace}/{resource}{name}")
}

/// Asks until there is an answer. Fails when that takes too long.
pub(crate) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(said) => assert!(begun.elapsed() < LONG, "not within {LONG:?}: {what}: {said}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
