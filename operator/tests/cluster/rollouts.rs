//! How workers are exchanged for others.

use croft_crds::AgentTenant;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;
use kube::api::ListParams;
use serde_json::{Value, json};

use crate::kubelet;
use crate::world::{Session, World, condition, until};

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn begins_with_one_more(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    let surge = strategy.and_then(|strategy| strategy.rolling_update.as_ref()?.max_surge.clone());
    surge == Some(IntOrString::Int(1))
}

/// Starts whatever workers there are until the tenant is ready as it is, and rollouts begin with one more than are wanted.
async fn rolled_out(session: &Session, tenant: &AgentTenant) -> Deployment {
    let namespace = tenant.namespace_name();
    let (pods, deployments) = (session.within::<Pod>(&namespace), session.within::<Deployment>(&namespace));
    until("all workers are exchanged", async || {
        for (number, pod) in pods.list(&ListParams::default()).await.ok()?.iter().enumerate() {
            if !is_ready(pod) {
                kubelet::set(session, pod, kubelet::ready(&format!("10.1.0.{}", 40 + number))).await;
            }
        }
        let tenant: AgentTenant = session.all().get(&tenant.name_any()).await.ok()?;
        let is_told = tenant.status.as_ref()?.observed_generation == tenant.metadata.generation;
        let is_done = is_told && condition(&tenant, "Ready")?.starts_with("True");
        let live = deployments.get("workers").await.ok()?;
        (is_done && begins_with_one_more(&live)).then_some(live)
    })
    .await
}

/// Once, it stood still for ever: the quota had no room for the first of the smaller workers beside the larger ones, of which none might go
/// before it came.
#[tokio::test]
async fn smaller_workers_take_the_place_of_larger_ones_that_leave_them_no_room() {
    let session = World::shared().await;
    let smaller = json!({ "workers": { "resources": { "cpuLimit": "500m" } } });
    for (before, after, left) in
        [(json!({}), json!({ "tier": "free" }), 1), (json!({ "quota": { "cpu": "2" } }), smaller, 2)]
    {
        let tenant = session.settled_tenant("smaller", before.clone()).await;
        let (name, namespace) = (tenant.name_any(), tenant.namespace_name());
        for (pod, address) in kubelet::pods(&session, &namespace, 2).await.iter().zip(["10.1.0.31", "10.1.0.32"]) {
            kubelet::set(&session, pod, kubelet::ready(address)).await;
        }
        until("it is ready", async || {
            let tenant: AgentTenant = session.all().get(&name).await.ok()?;
            condition(&tenant, "Ready")?.starts_with("True").then_some(())
        })
        .await;
        let of = |deployment: &Deployment| deployment.metadata.generation.expect("it is stored");
        let first = of(&session.within::<Deployment>(&namespace).get("workers").await.unwrap());
        session.merge(&session.all::<AgentTenant>(), &name, json!({ "spec": after })).await;
        let live = rolled_out(&session, &tenant).await;
        let limits: Vec<Value> = kubelet::pods(&session, &namespace, left)
            .await
            .iter()
            .map(|pod| {
                serde_json::to_value(pod).unwrap()["spec"]["containers"][0]["resources"]["limits"]["cpu"].clone()
            })
            .collect();
        assert_eq!(limits, vec!["500m"; left]);
        // The smaller workers; one less first; and one more first again, once all are there.
        assert!(of(&live) <= first + 3, "{} writes after {before}", of(&live) - first);
    }
}
