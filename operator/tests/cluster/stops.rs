//! A tenant that is stopped in an emergency, one that has no room, and what people hear of either.

use std::time::Duration;

use croft_crds::AgentTenant;
use croft_crds::tenant::TenantPhase;
use croft_proto::v1::TenantAdmission;
use futures::{StreamExt as _, stream};
use http::Method;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;

use crate::kubelet;
use crate::proxy::What;
use crate::routes::{next_where, watch};
use crate::world::{Session, World, condition, until, within};

async fn when(session: &Session, name: &str, kind: &str, beginning: &str) -> AgentTenant {
    until(&format!("{kind} is {beginning}"), async || {
        let tenant: AgentTenant = session.all().get(name).await.ok()?;
        condition(&tenant, kind)?.starts_with(beginning).then_some(tenant)
    })
    .await
}

/// What people were told of an object, as `type reason`.
pub(crate) async fn heard(session: &Session, tenant: &AgentTenant) -> Vec<String> {
    let events: Api<Event> = session.within("default");
    let of = ListParams::default().fields(&format!("regarding.name={}", tenant.name_any()));
    let found = events.list(&of).await.expect("Events can be listed");
    let told = |event: &Event| Some(format!("{} {}", event.type_.as_deref()?, event.reason.as_deref()?));
    found.iter().filter_map(told).collect()
}

#[tokio::test]
async fn an_emergency_stop_shuts_the_fence_and_gives_workers_no_time() {
    let session = World::shared().await;
    let mut stream = watch(&session).await;
    stream.message().await.unwrap().unwrap();
    let made = session.settled_tenant("stopped", json!({ "workers": { "replicas": 1 } })).await;
    let (name, namespace) = (made.name_any(), made.namespace_name());
    let pods = kubelet::pods(&session, &namespace, 1).await;
    kubelet::set(&session, &pods[0], kubelet::ready("10.1.0.21")).await;
    when(&session, &name, "Ready", "True").await;
    // A pod that runs on a node, and so isn't gone before its node says so.
    let api = session.within::<Pod>(&namespace);
    let held = Patch::Merge(json!({ "metadata": { "finalizers": ["croft.dev/a-kubelet-of-a-test"] } }));
    api.patch(&pods[0].name_any(), &PatchParams::default(), &held).await.unwrap();

    let tenants = session.all::<AgentTenant>();
    session.merge(&tenants, &name, json!({ "spec": { "emergencyStop": true } })).await;
    let route = next_where(&mut stream, &made, |route| route.admission() == TenantAdmission::Stopped).await;
    assert_eq!(route.name, name);
    until("the fence is shut", async || {
        let fence: NetworkPolicy = session.within(&namespace).get("fence").await.ok()?;
        let spec = fence.spec?;
        (spec.ingress.unwrap_or_default().is_empty() && spec.egress.unwrap_or_default().is_empty()).then_some(())
    })
    .await;
    until("the worker is going, without time", async || {
        let metadata = api.get(&pods[0].name_any()).await.ok()?.metadata;
        (metadata.deletion_timestamp.is_some() && metadata.deletion_grace_period_seconds? <= 1).then_some(())
    })
    .await;
    let going = when(&session, &name, "WorkersReady", "False Stopping").await;
    assert_ne!(going.status.unwrap().phase, Some(TenantPhase::Stopped), "not before the last has gone");
    let gone = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    api.patch(&pods[0].name_any(), &PatchParams::default(), &gone).await.unwrap();
    let stopped = when(&session, &name, "Ready", "False Stopped").await;
    assert_eq!(stopped.status.unwrap().phase, Some(TenantPhase::Stopped));

    session.merge(&tenants, &name, json!({ "spec": { "emergencyStop": false } })).await;
    kubelet::pods(&session, &namespace, 1).await;
    until("the fence is open again", async || {
        let fence: NetworkPolicy = session.within(&namespace).get("fence").await.ok()?;
        (!fence.spec?.egress?.is_empty()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn workers_go_in_an_emergency_whatever_cant_be_written_of_the_others_and_of_their_deployment() {
    let session = World::shared().await;
    let made = session.settled_tenant("stubborn", json!({ "workers": { "replicas": 2 } })).await;
    let (name, namespace) = (made.name_any(), made.namespace_name());
    let mut names: Vec<_> = kubelet::pods(&session, &namespace, 2).await.iter().map(Pod::name_any).collect();
    names.sort();
    let api = session.within::<Pod>(&namespace);
    for pod in &names {
        let held = Patch::Merge(json!({ "metadata": { "finalizers": ["croft.dev/a-kubelet-of-a-test"] } }));
        api.patch(pod, &PatchParams::default(), &held).await.unwrap();
    }
    let proxy = &session.world.proxy;
    let deployment = format!("/namespaces/{namespace}/deployments/workers");
    let scaled = proxy.inject(Method::PATCH, &deployment, What::Answer(500), None);
    let first = format!("/namespaces/{namespace}/pods/{}", names[0]);
    let first = proxy.inject(Method::DELETE, &first, What::Answer(500), None);
    session.merge(&session.all::<AgentTenant>(), &name, json!({ "spec": { "emergencyStop": true } })).await;
    let goes = async |pod: &str| {
        until(&format!("{pod} is going, without time"), async || {
            let metadata = api.get(pod).await.ok()?.metadata;
            (metadata.deletion_timestamp.is_some() && metadata.deletion_grace_period_seconds? <= 1).then_some(())
        })
        .await;
    };
    goes(&names[1]).await;
    assert!(scaled.hits() > 0 && first.hits() > 0);
    assert!(api.get(&names[0]).await.unwrap().metadata.deletion_timestamp.is_none());
    when(&session, &name, "WorkersApplied", "False ApiFailed").await;
    drop(first);
    goes(&names[0]).await;
    drop(scaled);
    until("no pod is left but those that are held", async || {
        let pods = api.list(&ListParams::default()).await.ok()?;
        pods.iter().all(|pod| names.contains(&pod.name_any())).then_some(())
    })
    .await;
    for pod in &names {
        let gone = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
        api.patch(pod, &PatchParams::default(), &gone).await.unwrap();
    }
    when(&session, &name, "Ready", "False Stopped").await;
}

/// As many hang as there are passes at a time, and as there are writes of children.
#[tokio::test]
async fn an_emergency_stop_waits_for_no_write_of_another_tenant_that_hangs() {
    const HANGING: usize = 64;
    let session = World::alone().await;
    let made = session.settled_tenant("urgent", json!({ "workers": { "replicas": 1 } })).await;
    let (name, namespace) = (made.name_any(), made.namespace_name());
    let pod = kubelet::pods(&session, &namespace, 1).await[0].name_any();
    let none = json!({ "workers": { "replicas": 0 } });
    let others: Vec<_> = stream::iter(0..HANGING)
        .map(|_| session.settled_tenant("crowd", none.clone()))
        .buffer_unordered(16)
        .collect()
        .await;
    session.quiet().await;
    let stalled = session.world.proxy.inject(Method::PATCH, "/deployments/workers", What::Stall, None);
    let tenants = session.all::<AgentTenant>();
    let change = json!({ "spec": { "workers": { "nodeSelector": { "pool": "agents" } } } });
    stream::iter(&others)
        .for_each_concurrent(16, async |other| {
            session.merge(&tenants, &other.name_any(), change.clone()).await;
        })
        .await;
    until("every place is taken", async || (stalled.hits() >= 64).then_some(())).await;

    session.merge(&tenants, &name, json!({ "spec": { "emergencyStop": true } })).await;
    within(Duration::from_secs(10), "the fence is shut", async || {
        let fence: NetworkPolicy = session.within(&namespace).get("fence").await.ok()?;
        let spec = fence.spec?;
        (spec.ingress.unwrap_or_default().is_empty() && spec.egress.unwrap_or_default().is_empty()).then_some(())
    })
    .await;
    // For two seconds it waits for the Deployment, which hangs too. Another pod is made in its place until that answers.
    within(Duration::from_secs(10), "the pod goes", async || {
        let there = session.within::<Pod>(&namespace).get_opt(&pod).await.ok()?;
        there.is_none_or(|there| there.metadata.deletion_timestamp.is_some()).then_some(())
    })
    .await;
    drop(stalled);
    when(&session, &name, "Ready", "False Stopped").await;
    stream::iter(&others)
        .for_each_concurrent(16, async |other| {
            tenants.delete(&other.name_any(), &DeleteParams::default()).await.expect("it can be deleted");
        })
        .await;
}

/// A request above the limit that the tier gives is refused by the API server, in a Deployment and in a `LimitRange`.
fn unusable() -> serde_json::Value {
    json!({ "spec": { "workers": { "resources": { "cpuRequest": "2" } } } })
}

#[tokio::test]
async fn a_tenant_whose_parts_cant_be_applied_is_stopped_all_the_same() {
    let session = World::shared().await;
    let made = session.settled_tenant("unruly", json!({ "workers": { "replicas": 2 } })).await;
    let (name, namespace) = (made.name_any(), made.namespace_name());
    for (number, pod) in kubelet::pods(&session, &namespace, 2).await.iter().enumerate() {
        kubelet::set(&session, pod, kubelet::ready(&format!("10.1.0.{}", 51 + number))).await;
    }
    when(&session, &name, "Ready", "True").await;
    let tenants = session.all::<AgentTenant>();
    session.merge(&tenants, &name, unusable()).await;
    when(&session, &name, "Applied", "False").await;
    session.merge(&tenants, &name, json!({ "spec": { "emergencyStop": true } })).await;
    kubelet::pods(&session, &namespace, 0).await;
    let is_shut = async || {
        let fence: NetworkPolicy = session.within(&namespace).get("fence").await.unwrap();
        let spec = fence.spec.unwrap();
        spec.ingress.unwrap_or_default().is_empty() && spec.egress.unwrap_or_default().is_empty()
    };
    until("the fence is shut", async || is_shut().await.then_some(())).await;
    let told = when(&session, &name, "WorkersReady", "False Stopped").await;
    assert!(is_shut().await, "what is kept up of the rest opens it again");
    let expected =
        "False SpecNotUsable: spec.workers.resources is not usable: cpuRequest 2 is more than a worker may use, 1";
    assert_eq!(condition(&told, "Applied").as_deref(), Some(expected));
}

#[tokio::test]
async fn a_tenant_whose_parts_cant_be_applied_is_suspended_all_the_same() {
    let session = World::shared().await;
    let made = session.settled_tenant("sluggish", json!({ "workers": { "replicas": 2 } })).await;
    let (name, namespace) = (made.name_any(), made.namespace_name());
    kubelet::pods(&session, &namespace, 2).await;
    let tenants = session.all::<AgentTenant>();
    session.merge(&tenants, &name, unusable()).await;
    when(&session, &name, "Applied", "False").await;
    session.merge(&tenants, &name, json!({ "spec": { "suspend": true } })).await;
    kubelet::pods(&session, &namespace, 0).await;
    when(&session, &name, "WorkersReady", "False Suspended").await;
    let mended = json!({ "spec": { "suspend": false, "workers": { "resources": { "cpuRequest": null } } } });
    session.merge(&tenants, &name, mended).await;
    kubelet::pods(&session, &namespace, 2).await;
}

#[tokio::test]
async fn a_quota_that_no_worker_fits_into_is_named_and_nothing_is_tried() {
    let session = World::shared().await;
    let made = session.tenant("cramped", json!({ "quota": { "cpu": "300m" } })).await;
    let (name, namespace) = (made.name_any(), made.namespace_name());
    let tenant = when(&session, &name, "QuotaApplied", "False QuotaTooSmall").await;
    let expected = "False QuotaTooSmall: quota exceeded: one worker may use 1 of cpu, and the quota is 300m";
    assert_eq!(condition(&tenant, "Ready").as_deref(), Some(expected));
    assert_eq!(tenant.status.as_ref().unwrap().phase, Some(TenantPhase::Pending));
    assert_eq!(condition(&tenant, "FenceApplied").unwrap(), "True Applied: it is as the spec wants it");
    let deployment: Deployment = session.within(&namespace).get("workers").await.unwrap();
    assert_eq!(deployment.spec.unwrap().replicas, Some(0));
    until("people hear of it", async || {
        heard(&session, &tenant).await.contains(&"Warning QuotaTooSmall".to_owned()).then_some(())
    })
    .await;
    session.merge(&session.all::<AgentTenant>(), &name, json!({ "spec": { "quota": { "cpu": "2" } } })).await;
    let tenant = when(&session, &name, "QuotaApplied", "True").await;
    assert_eq!(condition(&tenant, "WorkersReady").unwrap(), "False Starting: 0 of 2 workers are ready");
}

#[tokio::test]
async fn people_hear_of_what_turns_and_only_once() {
    let session = World::shared().await;
    let made = session.settled_tenant("newsworthy", json!({ "workers": { "replicas": 1 } })).await;
    let (name, namespace) = (made.name_any(), made.namespace_name());
    let pods = kubelet::pods(&session, &namespace, 1).await;
    kubelet::set(&session, &pods[0], kubelet::ready("10.1.0.22")).await;
    when(&session, &name, "Ready", "True").await;
    let waiting = |message: &str| {
        json!({ "phase": "Pending", "conditions": [{ "type": "Ready", "status": "False" }], "containerStatuses": [{
            "name": "worker", "image": "croft/worker:dev", "imageID": "", "ready": false, "restartCount": 0,
            "state": { "waiting": { "reason": "ErrImagePull", "message": message } },
        }] })
    };
    kubelet::set(&session, &pods[0], waiting("pull access denied")).await;
    when(&session, &name, "WorkersReady", "False ImageUnavailable").await;
    kubelet::set(&session, &pods[0], waiting("pull access denied again")).await;
    session.merge(&session.all::<AgentTenant>(), &name, json!({ "metadata": { "labels": { "touched": "x" } } })).await;
    until("both turns were told", async || (heard(&session, &made).await.len() >= 2).then_some(())).await;
    let mut told = heard(&session, &made).await;
    told.sort();
    assert_eq!(told, ["Normal AllWell", "Warning ImageUnavailable"]);
}

#[tokio::test]
async fn a_missing_runtime_class_is_named() {
    let session = World::shared().await;
    let made = session.tenant("sandboxed", json!({ "workers": { "runtimeClassName": "no-such-class" } })).await;
    let tenant = when(&session, &made.name_any(), "WorkersReady", "False Refused").await;
    let told = condition(&tenant, "WorkersReady").unwrap();
    assert!(told.contains("no-such-class"), "{told}");
}

#[tokio::test]
async fn a_tenant_that_is_deleted_while_it_is_made_leaves_nothing() {
    let session = World::shared().await;
    let (tenants, namespaces) = (session.all::<AgentTenant>(), session.all::<Namespace>());
    for _ in 0..5 {
        let made = session.tenant("hasty", json!({ "owners": [{ "kind": "User", "name": "ada" }] })).await;
        tenants.delete(&made.name_any(), &kube::api::DeleteParams::default()).await.unwrap();
        until("it goes", async || tenants.get_opt(&made.name_any()).await.ok()?.is_none().then_some(())).await;
        // Where the deletion and our finalizer meet, the API server takes both, and its garbage collector cleans up.
        until("and so does its namespace", async || {
            namespaces.get_opt(&made.namespace_name()).await.ok()?.is_none().then_some(())
        })
        .await;
    }
}
