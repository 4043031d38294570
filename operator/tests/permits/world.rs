//! A cluster without other tenants than the test's own.

use std::time::Duration;

use croft_crds::AgentTenant;
use croft_serve::tls;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, Resource, ResourceExt as _};
use serde_json::{Value, json};

use crate::{kinds, kubelet};

/// On everything that a test makes, so that the next run can clear away what a killed one left.
const TEST_LABEL: &str = "croft.dev/made-by-test";
/// Nothing here takes that long unless it is broken.
pub(crate) const LONG: Duration = Duration::from_mins(4);

pub(crate) struct Session {
    client: Client,
    /// The operator's.
    pub(crate) namespace: String,
    /// At the end of names that no other run has.
    pub(crate) suffix: String,
}

impl Session {
    pub(crate) async fn start() -> Self {
        tls::install_provider();
        let kubeconfig = Kubeconfig::read_from(kubeconfig_path()).expect("CROFT_TEST_KUBECONFIG is a kubeconfig");
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
        let client = Client::try_from(config.expect("the kubeconfig is usable")).expect("a client can be made");
        kinds::install(&client).await;
        let suffix = uuid::Uuid::new_v4().simple().to_string()[..8].to_owned();
        let session = Self { client, namespace: format!("croft-test-{suffix}"), suffix };
        session.clear_away().await;
        let made = json!({ "metadata": { "name": session.namespace, "labels": { TEST_LABEL: "true" } } });
        let made: Namespace = serde_json::from_value(made).expect("reads as the kind");
        session.all().create(&PostParams::default(), &made).await.expect("a namespace can be made");
        session
    }

    pub(crate) fn within<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(
        &self,
        namespace: &str,
    ) -> Api<K> {
        Api::namespaced(self.client.clone(), namespace)
    }

    fn all<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    pub(crate) async fn tenant(&self, name: &str, spec: Value) {
        let tenant = json!({
            "apiVersion": "croft.dev/v1alpha1", "kind": "AgentTenant",
            "metadata": { "name": name, "labels": { TEST_LABEL: "true" } }, "spec": spec,
        });
        let tenant: AgentTenant = serde_json::from_value(tenant).expect("reads as the kind");
        self.all().create(&PostParams::default(), &tenant).await.expect("the tenant can be made");
    }

    pub(crate) async fn edit(&self, name: &str, spec: Value) {
        let edit = Patch::Merge(json!({ "spec": spec }));
        self.all::<AgentTenant>().patch(name, &PatchParams::default(), &edit).await.expect("the edit is taken");
    }

    pub(crate) async fn tenants(&self) -> Option<Vec<AgentTenant>> {
        Some(self.all().list(&ListParams::default().labels(TEST_LABEL)).await.ok()?.items)
    }

    /// The workers of this run's tenants, by the tenant's name.
    pub(crate) async fn workers(&self) -> Option<Vec<(String, Deployment)>> {
        let all = self.all::<Deployment>().list(&ListParams::default().labels("croft.dev/tenant")).await.ok()?;
        let named =
            all.items.into_iter().filter_map(|live| Some((live.labels().get("croft.dev/tenant")?.clone(), live)));
        Some(named.filter(|(name, _)| name.contains(&self.suffix)).collect())
    }

    /// Starts whatever workers there are.
    pub(crate) async fn start_pods(&self) {
        let workers = ListParams::default().labels("app.kubernetes.io/component=worker");
        for pod in self.all::<Pod>().list(&workers).await.into_iter().flatten() {
            let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref()).into_iter().flatten();
            let is_ready = conditions.into_iter().any(|condition| condition.type_ == "Ready");
            let namespace = pod.namespace().expect("a pod has one");
            if !is_ready && namespace.contains(&self.suffix) {
                let started = Patch::Merge(json!({ "status": kubelet::ready("10.1.0.41") }));
                let pods = self.within::<Pod>(&namespace);
                // Another one may have taken its place.
                let _ = pods.patch_status(&pod.name_any(), &PatchParams::default(), &started).await;
            }
        }
    }

    /// Takes away all tenants of tests, at once.
    pub(crate) async fn clear_away(&self) {
        let tenants = self.all::<AgentTenant>();
        let ours = ListParams::default().labels(TEST_LABEL);
        until("all tenants of tests are gone", async || {
            let left = tenants.list(&ours).await.ok()?.items;
            for tenant in &left {
                let unfinished = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
                // Either may find that it is gone already.
                let _ = tenants.patch(&tenant.name_any(), &PatchParams::default(), &unfinished).await;
                let _ = tenants.delete(&tenant.name_any(), &DeleteParams::default()).await;
            }
            left.is_empty().then_some(())
        })
        .await;
        for namespace in self.all::<Namespace>().list(&ours).await.expect("namespaces can be listed") {
            let _ = self.all::<Namespace>().delete(&namespace.name_any(), &DeleteParams::default()).await;
        }
    }
}

/// Asks until there is an answer, as often as there is room for. While the machine stalls nobody is asked, and nothing is late.
pub(crate) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    const PAUSE: Duration = Duration::from_millis(50);
    for _ in 0..=LONG.as_millis() / PAUSE.as_millis() {
        if let Some(answer) = ask().await {
            return answer;
        }
        tokio::time::sleep(PAUSE).await;
    }
    panic!("not within {LONG:?}: {what}");
}

pub(crate) fn kubeconfig_path() -> String {
    std::env::var("CROFT_TEST_KUBECONFIG")
        .expect("CROFT_TEST_KUBECONFIG must name the kubeconfig of an API server: `make test-services` starts one")
}
