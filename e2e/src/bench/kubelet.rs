//! Plays a node with its kubelet, and the scheduler: a worker's pod is bound and ready as soon as it is there, and gone as
//! soon as it shall be.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use croft_serve::Tasks;
use futures::StreamExt as _;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};

const NODE: &str = "bench";
/// The address of pods behind which there is no worker: one that is set aside for documentation (RFC 5737). Loopback is
/// none that endpoints may have, and Kubernetes would complain of it in events without an end.
const NOBODY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Pods that are looked after at a time.
const AT_A_TIME: usize = 8;
/// A node that is silent for 50 s is taken for lost.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Looks after every worker's pod, but leaves those of the namespace `spared` to someone else, until shutdown.
pub async fn start(tasks: &Tasks, client: &Client, spared: String) -> kube::Result<()> {
    make_node(client).await?;
    let (stopping, own) = (tasks.stopping(), client.clone());
    let beat = async move {
        loop {
            // One beat may be lost.
            drop(heartbeat(&own).await);
            tokio::time::sleep(HEARTBEAT).await;
        }
    };
    drop(tasks.spawn("node", async move { stopping.run_until_cancelled(beat).await }));

    let pods: Api<Pod> = Api::all(client.clone());
    let workers = watcher::Config::default().labels("app.kubernetes.io/component=worker,croft.dev/tenant");
    let events = watcher(pods, workers).default_backoff().applied_objects();
    let (stopping, client) = (tasks.stopping(), client.clone());
    let play = Box::pin(async move {
        let care = |pod: kube::runtime::watcher::Result<Pod>| {
            let (client, spared) = (client.clone(), &spared);
            async move {
                let Ok(pod) = pod else { return };
                let is_new = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_none());
                // A pod that has gone meanwhile needs nothing more.
                if pod.metadata.deletion_timestamp.is_some() {
                    drop(remove(&client, &pod).await);
                } else if is_new && pod.namespace().as_ref() != Some(spared) {
                    drop(make_ready(&client, &pod, NOBODY.into()).await);
                }
            }
        };
        events.for_each_concurrent(AT_A_TIME, care).await;
    });
    drop(tasks.spawn("kubelet", async move { stopping.run_until_cancelled(play).await }));
    Ok(())
}

/// Binds a pod to the node and says that it runs and is ready, at this address.
pub async fn make_ready(client: &Client, pod: &Pod, address: IpAddr) -> kube::Result<()> {
    let (pods, name) = (of(client, pod), pod.name_any());
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": { "name": name }, "target": { "kind": "Node", "name": NODE },
    });
    let _: Value = pods.create_subresource("binding", &name, &PostParams::default(), &binding).await?;
    let holds = ["PodScheduled", "ContainersReady", "Ready"].map(|kind| json!({ "type": kind, "status": "True" }));
    let status = json!({
        "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }], "conditions": holds,
    });
    let patch = Patch::Merge(json!({ "status": status }));
    pods.patch_status(&name, &PatchParams::default(), &patch).await.map(drop)
}

async fn remove(client: &Client, pod: &Pod) -> kube::Result<()> {
    let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    of(client, pod).delete(&pod.name_any(), &at_once).await.map(drop)
}

fn of(client: &Client, pod: &Pod) -> Api<Pod> {
    Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default())
}

async fn make_node(client: &Client) -> kube::Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": NODE } });
    nodes.patch(NODE, &PatchParams::apply("bench").force(), &Patch::Apply(&node)).await?;
    heartbeat(client).await?;
    let status = json!({ "status": { "conditions": [{ "type": "Ready", "status": "True", "reason": "Played" }] } });
    nodes.patch_status(NODE, &PatchParams::default(), &Patch::Merge(status)).await.map(drop)
}

async fn heartbeat(client: &Client) -> kube::Result<()> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": NODE },
        "spec": { "holderIdentity": NODE, "leaseDurationSeconds": 40, "renewTime": now() },
    });
    leases.patch(NODE, &PatchParams::apply("bench").force(), &Patch::Apply(&lease)).await.map(drop)
}

/// As Kubernetes writes times with fractions.
fn now() -> k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime {
    k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(k8s_openapi::jiff::Timestamp::now())
}
