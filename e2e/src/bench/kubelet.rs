//! Plays the kubelet: a worker's pod is ready as soon as it is there.

use std::net::{IpAddr, Ipv4Addr};

use croft_serve::Tasks;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, ResourceExt as _};
use serde_json::json;

/// The address of pods behind which there is no worker: one that is set aside for documentation (RFC 5737). Loopback is
/// none that endpoints may have, and Kubernetes would complain of it in events without an end.
const NOBODY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Pods that are made ready at a time.
const AT_A_TIME: usize = 8;

/// Makes every worker's pod ready, but those in `spared`, until shutdown.
pub fn start(tasks: &Tasks, client: &Client, spared: String) {
    let pods: Api<Pod> = Api::all(client.clone());
    let workers = watcher::Config::default().labels("app.kubernetes.io/component=worker,croft.dev/tenant");
    let client = client.clone();
    let unready = watcher(pods, workers).default_backoff().applied_objects().filter_map(move |pod| {
        let pod = pod.ok().filter(|pod| is_new(pod) && pod.namespace().as_ref() != Some(&spared));
        std::future::ready(pod)
    });
    let stopping = tasks.stopping();
    let play = Box::pin(async move {
        let mark = |pod: Pod| {
            let client = client.clone();
            // A pod that has gone meanwhile needs nothing.
            async move { drop(make_ready(&client, &pod, NOBODY.into()).await) }
        };
        unready.for_each_concurrent(AT_A_TIME, mark).await;
    });
    drop(tasks.spawn("kubelet", async move { stopping.run_until_cancelled(play).await }));
}

fn is_new(pod: &Pod) -> bool {
    let address = pod.status.as_ref().and_then(|status| status.pod_ip.as_ref());
    pod.metadata.deletion_timestamp.is_none() && address.is_none()
}

/// Says that a pod runs and is ready, at this address.
pub async fn make_ready(client: &Client, pod: &Pod, address: IpAddr) -> kube::Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let holds = ["PodScheduled", "ContainersReady", "Ready"].map(|kind| json!({ "type": kind, "status": "True" }));
    let status = json!({
        "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }], "conditions": holds,
    });
    let patch = Patch::Merge(json!({ "status": status }));
    pods.patch_status(&pod.name_any(), &PatchParams::default(), &patch).await.map(drop)
}
