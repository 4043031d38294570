//! T3: what a tenant's pods can reach, tried from inside them. Denials are tried beside something that is allowed, so that a broken
//! probe is not taken for a fence.

use std::time::Duration;

use croft_e2e::system::System;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::models;
use crate::outside::{self, Outside};
use crate::support::{Tenant, eventually, front_pods, pods};

struct Probe<'a> {
    system: &'a System,
    namespace: String,
}

impl<'a> Probe<'a> {
    /// A pod in the tenant's namespace, under its fence like any other.
    async fn start(system: &'a System, tenant: &Tenant) -> Self {
        Self::labelled(system, &tenant.namespace, "{}").await
    }

    /// A pod with these labels, an object of JSON.
    async fn labelled(system: &'a System, namespace: &str, labels: &str) -> Self {
        let manifest = format!(
            "
apiVersion: v1
kind: Pod
metadata: {{ name: probe, namespace: {namespace}, labels: {labels} }}
spec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 0
  securityContext: {{ runAsNonRoot: true, runAsUser: 65532, seccompProfile: {{ type: RuntimeDefault }} }}
  containers:
    - name: probe
      image: croft/probe:dev
      imagePullPolicy: Never
      args: [sleep]
      securityContext: {{ allowPrivilegeEscalation: false, capabilities: {{ drop: [ALL] }} }}
      resources:
        requests: {{ cpu: 10m, memory: 16Mi }}
        limits: {{ cpu: 100m, memory: 32Mi }}
"
        );
        eventually("the probe is created", async || system.apply(&manifest).await).await;
        let wait = ["wait", "pod/probe", "-n", namespace, "--for=condition=Ready", "--timeout=90s"];
        system.kubectl(&wait).await.unwrap();
        Self { system, namespace: namespace.to_owned() }
    }

    async fn runs(&self, arguments: &[&str]) -> (bool, String) {
        let exec = ["exec", "-n", &self.namespace, "probe", "--", "/usr/local/bin/probe"];
        self.system.kubectl_tries(&[&exec[..], arguments].concat()).await.unwrap()
    }

    async fn reaches(&self, address: &str) -> bool {
        self.runs(&["connect", address, "2s"]).await.0
    }

    /// None of these, each of which does answer where no fence is: from the host, which is always let in.
    async fn reaches_none(&self, closed: &[(&str, String)]) {
        let reached = futures::future::join_all(closed.iter().map(|(_, address)| self.reaches(address))).await;
        let open: Vec<&str> =
            closed.iter().zip(reached).filter(|(_, reached)| *reached).map(|((what, _), _)| *what).collect();
        assert!(open.is_empty(), "a tenant's pod reaches {open:?}");
        for (what, address) in closed {
            eventually(&format!("{what}, without which the fence proves nothing"), async || {
                timeout(Duration::from_secs(10), TcpStream::connect(address)).await??;
                Ok(())
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_cannot_reach_each_other_nor_the_platform() {
    let system = System::from_env_file().unwrap();
    let red = Tenant::apply(&system, "red", 1).await;
    let blue = Tenant::apply(&system, "blue", 1).await;
    let probe = Probe::start(&system, &red).await;
    let worker = "app.kubernetes.io/component=worker";
    let ours = pods(&system, &red.namespace, worker).await.unwrap().remove(0);
    let theirs = pods(&system, &blue.namespace, worker).await.unwrap().remove(0);

    // DNS is the one thing that is open, and shows that the probe works.
    eventually("DNS answers", async || match probe.runs(&["resolve", "kubernetes.default.svc.cluster.local"]).await {
        (true, _) => Ok(()),
        (false, said) => anyhow::bail!("{said}"),
    })
    .await;
    // The fence is the tenant's, so a probe in another namespace must be able to see what this one can't.
    let kubernetes =
        system.kubectl(&["get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}"]).await.unwrap();
    let front = front_pods(&system).await.remove(0);
    let operator = pods(&system, "croft-system", "app.kubernetes.io/component=operator").await.unwrap().remove(0);
    let path = "jsonpath={.endpoints[0].addresses[0]}:{.ports[0].port}";
    let api_server = system.kubectl(&["get", "endpointslices", "kubernetes", "-o", path]).await.unwrap();
    let stores = system.postgres_url.rsplit_once(':').and_then(|(_, rest)| rest.split('/').next()).unwrap();
    let node = api_server.split(':').next().unwrap();
    let closed = [
        ("the other tenant's worker", format!("{}:50052", theirs.ip)),
        ("the other tenant's metrics", format!("{}:9090", theirs.ip)),
        ("its own tenant's worker, which is the front's to call", format!("{}:50052", ours.ip)),
        ("the API server", format!("{kubernetes}:443")),
        ("the front's gRPC", format!("{}:50051", front.ip)),
        ("the front's HTTP", format!("{}:8080", front.ip)),
        ("the front's internal port", format!("{}:50054", front.ip)),
        ("the operator's routes", format!("{}:50053", operator.ip)),
        ("the API server behind its Service", api_server.clone()),
        ("the platform's database, on the node", format!("{node}:{stores}")),
    ];
    probe.reaches_none(&closed).await;
    red.remove(&system).await;
    blue.remove(&system).await;
}

/// Whoever may make a pod gives it what labels they like: the namespace is what they can't choose.
#[tokio::test(flavor = "multi_thread")]
async fn a_fronts_labels_open_nothing_in_another_namespace() {
    let system = System::from_env_file().unwrap();
    let front = front_pods(&system).await.remove(0);
    let labels = ["get", "pod", &front.name, "-n", "croft-system", "-o", "jsonpath={.metadata.labels}"];
    let labels = system.kubectl(&labels).await.unwrap();
    assert!(labels.contains("\"app.kubernetes.io/component\":\"front\""), "{labels}");
    system.apply("apiVersion: v1\nkind: Namespace\nmetadata: { name: impostor }\n").await.unwrap();
    let probe = Probe::labelled(&system, "impostor", &labels).await;
    // What is open to all shows that this probe works.
    eventually("the probe works", async || {
        anyhow::ensure!(probe.reaches(&format!("{}:50051", front.ip)).await, "the front is closed to it");
        Ok(())
    })
    .await;
    let worker = pods(&system, "tenant-demo", "app.kubernetes.io/component=worker").await.unwrap().remove(0);
    let operator = pods(&system, "croft-system", "app.kubernetes.io/component=operator").await.unwrap().remove(0);
    let closed = [
        ("a worker, which is the front's to call", format!("{}:50052", worker.ip)),
        ("a worker's metrics", format!("{}:9090", worker.ip)),
        ("the operator's routes, which are the front's to watch", format!("{}:50053", operator.ip)),
    ];
    probe.reaches_none(&closed).await;
    system.kubectl(&["delete", "namespace", "impostor", "--timeout=120s"]).await.unwrap();
}

/// A pod that listens on port 8000: the probe, with this verb.
fn listener(name: &str, verb: &str) -> String {
    format!(
        "
---
apiVersion: v1
kind: Pod
metadata: {{ name: {name}, namespace: models, labels: {{ app: {name} }} }}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{{ name: probe, image: croft/probe:dev, imagePullPolicy: Never, args: [{verb}, \"8000\"] }}]
"
    )
}

const SERVICE: &str = "
---
apiVersion: v1
kind: Service
metadata: { name: llama, namespace: models }
spec:
  selector: { app: llama }
  ports: [{ port: 80, targetPort: 8000 }]
";

#[tokio::test(flavor = "multi_thread")]
async fn tenants_reach_the_public_internet_what_is_listed_and_models_and_nothing_beside_it() {
    let system = System::from_env_file().unwrap();
    let _outside = Outside::start(&system).await;
    let models = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{ name: models }}\n{}{}{SERVICE}",
        listener("llama", "model"),
        listener("neighbour", "listen")
    );
    // The namespace's service account comes a moment after it.
    eventually("the model's pods are created", async || system.apply(&models).await).await;
    let more = format!(
        "
  egress: {{ allow: [{{ cidr: {}/32, ports: [{{ port: 8443 }}] }}] }}
  llm:
    providers:
      - name: openai
        source: InCluster
        service: {{ namespace: models, name: llama, port: 80, targetPort: 8000, podSelector: {{ app: llama }} }}
",
        outside::LISTED
    );
    let green = Tenant::apply_with(&system, "green", 1, &more).await;
    system.kubectl(&["wait", "pod", "--all", "-n", "models", "--for=condition=Ready", "--timeout=90s"]).await.unwrap();
    let probe = Probe::start(&system, &green).await;
    let llama = pods(&system, "models", "app=llama").await.unwrap().remove(0);
    let neighbour = pods(&system, "models", "app=neighbour").await.unwrap().remove(0);

    let open = [
        ("a provider on the public internet", format!("{}:8443", outside::PUBLIC)),
        ("any port there", format!("{}:80", outside::PUBLIC)),
        ("a range that is listed, on its port", format!("{}:8443", outside::LISTED)),
        ("the model's pods", format!("{}:8000", llama.ip)),
    ];
    for (what, address) in &open {
        eventually(what, async || match probe.runs(&["connect", address, "2s"]).await {
            (true, _) => Ok(()),
            (false, said) => anyhow::bail!("{said}"),
        })
        .await;
    }
    let closed = [
        ("the metadata service", format!("{}:80", outside::METADATA)),
        ("a listed range on another port", format!("{}:9443", outside::LISTED)),
        ("a private neighbour that is not listed", format!("{}:8443", outside::UNLISTED)),
        ("a pod beside the model", format!("{}:8000", neighbour.ip)),
    ];
    probe.reaches_none(&closed).await;

    // Of the public internet, what is listed is all that stays when it is denied.
    let listed = |address: &str| serde_json::json!({ "cidr": format!("{address}/32"), "ports": [{ "port": 8443 }] });
    let denied = serde_json::json!({ "spec": { "egress": {
        "internet": "Deny", "allow": [listed(outside::LISTED), listed(outside::PUBLIC)],
    } } });
    system.kubectl(&["patch", "agenttenant", &green.name, "--type=merge", "-p", &denied.to_string()]).await.unwrap();
    let closed_ports = [80, 9443, 80, 9443].map(|port| format!("{}:{port}", outside::PUBLIC));
    eventually("the internet is closed", async || {
        for address in &closed_ports {
            anyhow::ensure!(!probe.reaches(address).await, "{address} is open");
        }
        Ok(())
    })
    .await;
    for (what, address) in open.iter().filter(|(what, _)| *what != "any port there") {
        eventually(what, async || match probe.runs(&["connect", address, "2s"]).await {
            (true, _) => Ok(()),
            (false, said) => anyhow::bail!("{said}"),
        })
        .await;
    }
    let denied = [
        ("a port of the internet that is not listed", format!("{}:80", outside::PUBLIC)),
        ("another one", format!("{}:9443", outside::PUBLIC)),
    ];
    probe.reaches_none(&denied).await;
    probe.reaches_none(&closed).await;

    let allowed = serde_json::json!({ "spec": { "egress": { "internet": "Allow" } } });
    system.kubectl(&["patch", "agenttenant", &green.name, "--type=merge", "-p", &allowed.to_string()]).await.unwrap();
    // With new workers beside the old ones there is no room for it.
    system.kubectl(&["delete", "pod", "probe", "-n", &green.namespace]).await.unwrap();
    models::answer(&system, &green, &more).await;
    green.remove(&system).await;
    system.kubectl(&["delete", "namespace", "models", "--timeout=120s"]).await.unwrap();
}
