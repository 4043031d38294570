//! Plays the kubelet: worker pods are what their status says.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::world::{Session, until};

/// The pods of a tenant's workers, once there are so many.
pub(crate) async fn pods(session: &Session, namespace: &str, count: usize) -> Vec<Pod> {
    let pods = session.within::<Pod>(namespace);
    until("the workers' pods are made", async || {
        let found = pods.list(&ListParams::default()).await.ok()?.items;
        (found.len() == count).then_some(found)
    })
    .await
}

/// Makes a pod's status say this.
pub(crate) async fn set(session: &Session, pod: &Pod, status: Value) {
    let namespace = pod.namespace().expect("a pod has one");
    let pods = session.within::<Pod>(&namespace);
    let patch = Patch::Merge(json!({ "status": status }));
    pods.patch_status(&pod.name_any(), &PatchParams::default(), &patch).await.expect("the status is taken");
}

/// A pod that runs and is ready, at this address.
pub(crate) fn ready(address: &str) -> Value {
    json!({
        "phase": "Running",
        "podIP": address,
        "podIPs": [{ "ip": address }],
        "conditions": [
            { "type": "Ready", "status": "True" },
            { "type": "ContainersReady", "status": "True" },
            { "type": "PodScheduled", "status": "True" },
        ],
    })
}
