//! What becomes of an AgentTenant.

use std::time::Duration;

use croft_crds::AgentTenant;
use croft_crds::tenant::TenantPhase;
use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{
    ConfigMap, LimitRange, Namespace, Pod, ResourceQuota, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Api, DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use kube::{Resource, ResourceExt as _};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::kubelet;
use crate::repairs::REPAIRED;
use crate::routes::{next_where, snapshot, watch};
use crate::world::{Session, World, assert_mostly_within, condition, tenant, until, within};

/// `kind/name` of every child and its resource version.
async fn versions(session: &Session, namespace: &str) -> Vec<(String, String)> {
    async fn of<K>(api: Api<K>) -> Vec<(String, String)>
    where
        K: Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        let ours = ListParams::default().labels("app.kubernetes.io/managed-by=croft");
        let found = api.list(&ours).await.expect("children can be listed");
        let named = |object: &K| format!("{}/{}", K::kind(&()), object.name_any());
        found.iter().map(|object| (named(object), object.resource_version().expect("it is stored"))).collect()
    }
    let mut all = Vec::new();
    all.extend(of::<NetworkPolicy>(session.within(namespace)).await);
    all.extend(of::<ResourceQuota>(session.within(namespace)).await);
    all.extend(of::<LimitRange>(session.within(namespace)).await);
    all.extend(of::<ServiceAccount>(session.within(namespace)).await);
    all.extend(of::<Role>(session.within(namespace)).await);
    all.extend(of::<RoleBinding>(session.within(namespace)).await);
    all.extend(of::<ConfigMap>(session.within(namespace)).await);
    all.extend(of::<Secret>(session.within(namespace)).await);
    all.extend(of::<Service>(session.within(namespace)).await);
    all.extend(of::<Deployment>(session.within(namespace)).await);
    all.extend(of::<PodDisruptionBudget>(session.within(namespace)).await);
    let own: Namespace = session.all().get(namespace).await.expect("the namespace is there");
    all.push((format!("Namespace/{namespace}"), own.resource_version().expect("it is stored")));
    all.sort();
    all
}

pub(crate) fn owners() -> Value {
    json!([{ "kind": "User", "name": "ada" }, { "kind": "ServiceAccount", "name": "ci", "namespace": "ci" }])
}

async fn phase_of(session: &Session, name: &str) -> Option<TenantPhase> {
    session.all::<AgentTenant>().get(name).await.ok()?.status?.phase
}

#[tokio::test]
async fn a_tenant_gets_all_its_parts_and_becomes_ready_with_its_workers() {
    let session = World::shared().await;
    let made = session.settled_tenant("whole", json!({ "workers": { "replicas": 2 } })).await;
    let (name, namespace) = (made.name_any(), made.namespace_name());
    let parts: Vec<_> = versions(&session, &namespace).await.into_iter().map(|(part, _)| part).collect();
    let expected = [
        "ConfigMap/providers",
        "Deployment/workers",
        "LimitRange/tenant",
        &format!("Namespace/{namespace}"),
        "NetworkPolicy/fence",
        "PodDisruptionBudget/workers",
        "ResourceQuota/tenant",
        "Secret/worker-tls",
        "Service/workers",
        "ServiceAccount/worker",
    ];
    assert_eq!(parts, expected);
    assert_eq!(phase_of(&session, &name).await, Some(TenantPhase::Pending));

    let pods = kubelet::pods(&session, &namespace, 2).await;
    kubelet::set(&session, &pods[0], kubelet::ready("10.1.0.7")).await;
    until("one of two workers makes it degraded", async || {
        (phase_of(&session, &name).await? == TenantPhase::Degraded).then_some(())
    })
    .await;
    kubelet::set(&session, &pods[1], kubelet::ready("10.1.0.8")).await;
    let ready = until("both make it ready", async || {
        let tenant: AgentTenant = session.all().get(&name).await.ok()?;
        condition(&tenant, "Ready")?.starts_with("True").then_some(tenant)
    })
    .await;
    let status = ready.status.expect("it has one");
    assert_eq!(status.phase, Some(TenantPhase::Ready));
    assert_eq!(status.namespace, Some(namespace));
    assert_eq!(status.observed_generation, ready.metadata.generation);
    let workers = status.workers.expect("they are counted");
    assert_eq!((workers.desired, workers.ready), (2, 2));
}

#[tokio::test]
async fn every_part_is_owned_by_the_tenant_itself() {
    let session = World::shared().await;
    let made = session.settled_tenant("owner", json!({})).await;
    let namespace = made.namespace_name();
    let own: Namespace = session.all().get(&namespace).await.unwrap();
    let deployment: Deployment = session.within(&namespace).get("workers").await.unwrap();
    for owners in [own.owner_references(), deployment.owner_references()] {
        assert_eq!(owners.len(), 1);
        assert_eq!(Some(&owners[0].uid), made.uid().as_ref());
    }
}

#[tokio::test]
async fn only_restricted_pods_are_let_into_the_namespace() {
    let session = World::shared().await;
    let made = session.settled_tenant("restricted", json!({})).await;
    let pods = session.within::<Pod>(&made.namespace_name());
    let pod = |host_network: bool| -> Pod {
        let image = json!([{ "name": "c", "image": "x" }]);
        let spec = json!({ "hostNetwork": host_network, "serviceAccountName": "worker", "containers": image });
        serde_json::from_value(json!({ "metadata": { "generateName": "p-" }, "spec": spec })).unwrap()
    };
    for host_network in [false, true] {
        let refused = pods.create(&PostParams::default(), &pod(host_network)).await.unwrap_err();
        assert!(refused.to_string().contains("violates PodSecurity \"restricted"), "{refused}");
    }
}

#[tokio::test]
async fn a_hundred_passes_that_change_nothing_write_nothing() {
    let session = World::alone().await;
    let spec = json!({
        "owners": owners(),
        "quota": { "cpu": "3500m", "memory": "1.5Gi" },
        "egress": { "allow": [{ "cidr": "10.20.0.0/16", "ports": [{ "port": 5432 }] }] },
        "workers": { "resources": { "cpuLimit": "1000m" }, "nodeSelector": { "pool": "agents" } },
        "llm": { "providers": [{
            "name": "anthropic", "baseUrl": "https://llm.example.com",
            "apiKeySecretRef": { "name": "models", "key": "anthropic" },
        }] },
    });
    let made = session.settled_tenant("still", spec).await;
    let (name, namespace) = (made.name_any(), made.namespace_name());
    kubelet::pods(&session, &namespace, 2).await;
    session.quiet().await;

    let before = versions(&session, &namespace).await;
    let (writes, passes) = (session.world.writes(), session.world.passes("AgentTenant"));
    let tenants = session.all::<AgentTenant>();
    for number in 1..=100 {
        session.merge(&tenants, &name, json!({ "metadata": { "labels": { "touched": number.to_string() } } })).await;
        until("a pass follows each touch", async || {
            (session.world.passes("AgentTenant") >= passes + number).then_some(())
        })
        .await;
    }
    session.quiet().await;
    assert_eq!(session.world.writes() - writes, 0, "writes in {} passes", session.world.passes("AgentTenant") - passes);
    assert_eq!(versions(&session, &namespace).await, before);
}

#[tokio::test]
async fn a_new_tenant_costs_one_write_a_part() {
    let session = World::alone().await;
    session.quiet().await;
    let (writes, by_kind) = (session.world.writes(), |kind: &str| {
        session.world.count("croft_operator_api_writes_total", &[&format!("kind=\"{kind}\"")])
    });
    let (secrets, tenants) = (by_kind("Secret"), by_kind("AgentTenant"));
    let made = session.settled_tenant("thrifty", json!({})).await;
    kubelet::pods(&session, &made.namespace_name(), 2).await;
    session.quiet().await;
    // Ten parts, the finalizer, and the status once.
    assert_eq!(session.world.writes() - writes, 12);
    assert_eq!((by_kind("Secret") - secrets, by_kind("AgentTenant") - tenants), (1, 2));
}

#[tokio::test]
async fn what_a_part_no_longer_wants_goes_also_from_one_that_was_created() {
    /// How the API server holds us to own the object's fields.
    fn how_owned(object: &impl Resource) -> Vec<&str> {
        let entries = object.meta().managed_fields.iter().flatten();
        let ours = entries.filter(|entry| entry.manager.as_deref() == Some("croft-operator"));
        ours.filter_map(|entry| entry.operation.as_deref()).collect()
    }
    let session = World::alone().await;
    let spec = json!({ "workers": { "nodeSelector": { "pool": "agents", "zone": "east" } } });
    let made = session.settled_tenant("leaner", spec).await;
    let (name, namespace) = (made.name_any(), made.namespace_name());
    kubelet::pods(&session, &namespace, 2).await;
    session.quiet().await;
    let deployments: Api<Deployment> = session.within(&namespace);
    let selector = |deployment: &Deployment| {
        let pod = deployment.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
        pod.and_then(|pod| pod.node_selector.clone()).unwrap_or_default().into_keys().collect::<Vec<_>>()
    };
    let created = deployments.get("workers").await.expect("it is there");
    assert_eq!((how_owned(&created), selector(&created)), (vec!["Update"], vec!["pool".into(), "zone".into()]));

    let writes = session.world.writes();
    session
        .merge(
            &session.all::<AgentTenant>(),
            &name,
            json!({ "spec": { "workers": { "nodeSelector": { "zone": null } } } }),
        )
        .await;
    within(REPAIRED, "the workers want one label of their nodes", async || {
        let found = deployments.get("workers").await.ok()?;
        (selector(&found) == ["pool"] && how_owned(&found) == ["Apply"]).then_some(())
    })
    .await;
    session.quiet().await;
    let first = session.world.writes() - writes;
    session
        .merge(
            &session.all::<AgentTenant>(),
            &name,
            json!({ "spec": { "workers": { "nodeSelector": { "pool": null } } } }),
        )
        .await;
    within(REPAIRED, "the workers want no label of their nodes", async || {
        let found = deployments.get("workers").await.ok()?;
        (selector(&found).is_empty() && how_owned(&found) == ["Apply"]).then_some(())
    })
    .await;
    session.quiet().await;
    assert_eq!(session.world.writes() - writes - first, first - 1, "only the first apply takes ownership over");
}

#[tokio::test]
async fn a_foreign_namespace_is_never_adopted() {
    let session = World::shared().await;
    let name = format!("taken-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
    let namespaces = session.all::<Namespace>();
    // Labels that look like ours make it no more ours.
    let foreign: Namespace = serde_json::from_value(json!({ "metadata": {
        "name": format!("tenant-{name}"),
        "labels": {
            "croft.dev/tenant": name, "app.kubernetes.io/managed-by": "croft", "croft.dev/made-by-test": "true",
        },
    } }))
    .unwrap();
    let foreign = namespaces.create(&PostParams::default(), &foreign).await.unwrap();
    let tenants = session.all::<AgentTenant>();
    tenants.create(&PostParams::default(), &tenant(&name, &json!({}))).await.unwrap();
    let told = until("the condition says so", async || {
        let tenant = tenants.get(&name).await.ok()?;
        condition(&tenant, "Ready").filter(|told| told.contains("NamespaceTaken"))
    })
    .await;
    assert_eq!(told, format!("False NamespaceTaken: namespace tenant-{name} exists and belongs to someone else"));
    assert_eq!(phase_of(&session, &name).await, Some(TenantPhase::Failed));
    // Whoever has made it can make service accounts there, which must not speak for the tenant.
    let snapshot = snapshot(&session).await;
    let route = snapshot.tenants.iter().find(|route| route.name == name).expect("it has all tenants");
    assert_eq!(route.namespace, "");
    let deployments = session.within::<Deployment>(&foreign.name_any());
    assert_eq!(deployments.list(&ListParams::default()).await.unwrap().items.len(), 0);

    tenants.delete(&name, &DeleteParams::default()).await.unwrap();
    until("the tenant goes", async || tenants.get_opt(&name).await.ok()?.is_none().then_some(())).await;
    let left = namespaces.get(&foreign.name_any()).await.unwrap();
    assert_eq!(left.uid(), foreign.uid());
    assert_eq!(left.metadata.deletion_timestamp, None);
    assert_eq!(left.resource_version(), foreign.resource_version(), "it was not touched");
    namespaces.delete(&foreign.name_any(), &DeleteParams::default()).await.unwrap();
}

#[tokio::test]
async fn an_exhausted_quota_is_named_long_before_the_next_look() {
    let session = World::alone().await;
    let made = session.tenant("poor", json!({ "quota": { "cpu": "1500m" } })).await;
    let deployments = session.within::<Deployment>(&made.namespace_name());
    until("the workers are wanted", async || deployments.get_opt("workers").await.ok()?).await;
    let told = within(Duration::from_secs(20), "the condition says so", async || {
        let tenant: AgentTenant = session.all().get(&made.name_any()).await.ok()?;
        condition(&tenant, "WorkersReady").filter(|told| told.contains("QuotaExceeded"))
    })
    .await;
    assert!(told.starts_with("False QuotaExceeded: quota exceeded: tenant, requested: limits.cpu=1"), "{told}");
}

#[tokio::test]
async fn an_image_that_cannot_be_had_is_named() {
    let session = World::shared().await;
    let made = session.settled_tenant("imageless", json!({ "workers": { "replicas": 1 } })).await;
    let pods = kubelet::pods(&session, &made.namespace_name(), 1).await;
    let waiting = json!({ "phase": "Pending", "containerStatuses": [{
        "name": "worker", "image": "croft/worker:dev", "imageID": "", "ready": false, "restartCount": 0,
        "state": { "waiting": { "reason": "ErrImagePull", "message": "pull access denied" } },
    }] });
    kubelet::set(&session, &pods[0], waiting).await;
    let told = until("the condition says so", async || {
        let tenant: AgentTenant = session.all().get(&made.name_any()).await.ok()?;
        condition(&tenant, "Ready").filter(|told| told.contains("ImageUnavailable"))
    })
    .await;
    assert_eq!(told, "False ImageUnavailable: the image croft/worker:dev can't be had");
}

/// What a node or the scheduler tells of a worker that does not run; the reason that the tenant's people are given, and the sentence, which
/// callers are given too.
fn hindrances() -> [(Value, &'static str, &'static str); 3] {
    let unscheduled = json!({ "phase": "Pending", "conditions": [{
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available",
    }] });
    let waiting = |reason: &str, last: Value| {
        json!({ "phase": "Pending", "containerStatuses": [{
            "name": "worker", "image": "croft/worker:dev", "imageID": "", "ready": false, "restartCount": 3,
            "state": { "waiting": { "reason": reason } }, "lastState": last,
        }] })
    };
    let killed = json!({ "terminated": { "exitCode": 137 } });
    [
        (unscheduled, "Unschedulable", "no node takes the worker: 0/3 nodes are available"),
        (waiting("ErrImagePull", json!({})), "ImageUnavailable", "the image croft/worker:dev can't be had"),
        (waiting("CrashLoopBackOff", killed), "Crashing", "the worker ends again and again, last with code 137"),
    ]
}

#[tokio::test]
async fn why_a_worker_does_not_run_is_told_to_people_and_to_callers_mostly_within_a_second() {
    const ROUNDS: usize = 3;
    let session = World::alone().await;
    let made = session.settled_tenant("hindered", json!({ "workers": { "replicas": 1 } })).await;
    let pods = kubelet::pods(&session, &made.namespace_name(), 1).await;
    let mut stream = watch(&session).await;
    stream.message().await.unwrap().unwrap();
    let mut times = Vec::new();
    for (status, reason, message) in std::iter::repeat_n(hindrances(), ROUNDS).flatten() {
        session.quiet().await;
        let since = Instant::now();
        kubelet::set(&session, &pods[0], status).await;
        let people = async {
            until(&format!("{reason} is told"), async || {
                let tenant: AgentTenant = session.all().get(&made.name_any()).await.ok()?;
                (condition(&tenant, "WorkersReady")? == format!("False {reason}: {message}")).then_some(())
            })
            .await;
            since.elapsed()
        };
        let callers = async {
            next_where(&mut stream, &made, |route| route.workers_problem == message).await;
            since.elapsed()
        };
        times.extend(<[Duration; 2]>::from(tokio::join!(people, callers)));
        // As it is before anybody has begun with it.
        let untouched = json!({ "phase": "Pending", "conditions": null, "containerStatuses": null });
        kubelet::set(&session, &pods[0], untouched).await;
        next_where(&mut stream, &made, |route| route.workers_problem == "no worker is ready yet").await;
    }
    assert_mostly_within(Duration::from_secs(1), times);
}

#[tokio::test]
async fn a_rollout_whose_new_worker_never_starts_is_not_ready_from_its_first_word_on() {
    let session = World::shared().await;
    let made = session.settled_tenant("stuck", json!({ "workers": { "replicas": 1 } })).await;
    let (name, namespace) = (made.name_any(), made.namespace_name());
    let tenants = session.all::<AgentTenant>();
    let old = kubelet::pods(&session, &namespace, 1).await.remove(0);
    kubelet::set(&session, &old, kubelet::ready("10.1.0.17")).await;
    let ready = until("it is ready", async || {
        let tenant = tenants.get(&name).await.ok()?;
        condition(&tenant, "Ready")?.starts_with("True").then_some(tenant)
    })
    .await;

    let only = WatchParams::default().fields(&format!("metadata.name={name}")).timeout(120);
    let version = ready.resource_version().expect("it is stored");
    let mut changes = std::pin::pin!(tenants.watch(&only, &version).await.expect("it can be watched"));
    let image = json!({ "spec": { "workers": { "image": "registry.example.com/croft/worker:none" } } });
    session.merge(&tenants, &name, image).await;
    let pods = kubelet::pods(&session, &namespace, 2).await;
    let new = pods.into_iter().find(|pod| pod.uid() != old.uid()).expect("one is new");
    let waiting = json!({ "phase": "Pending", "containerStatuses": [{
        "name": "worker", "image": "registry.example.com/croft/worker:none", "imageID": "", "ready": false,
        "restartCount": 0, "state": { "waiting": { "reason": "ImagePullBackOff" } },
    }] });
    kubelet::set(&session, &new, waiting).await;
    let told = loop {
        let change = changes.next().await.expect("the image is named in time").expect("the watch holds");
        let WatchEvent::Modified(tenant) = change else { continue };
        let told = condition(&tenant, "Ready").expect("it was ready once");
        let of = tenant.status.as_ref().and_then(|status| status.observed_generation);
        assert!(of < tenant.metadata.generation || !told.starts_with("True"), "of the new spec: {told}");
        if told.contains("ImageUnavailable") {
            break told;
        }
    };
    assert_eq!(told, "False ImageUnavailable: the image registry.example.com/croft/worker:none can't be had");
    assert_eq!(phase_of(&session, &name).await, Some(TenantPhase::Degraded), "the old worker goes on");
}

#[tokio::test]
async fn a_suspended_tenant_has_no_workers_until_it_is_woken() {
    let session = World::shared().await;
    let made = session.settled_tenant("sleepy", json!({ "workers": { "replicas": 1 } })).await;
    let (name, namespace) = (made.name_any(), made.namespace_name());
    let tenants = session.all::<AgentTenant>();
    kubelet::pods(&session, &namespace, 1).await;
    session.merge(&tenants, &name, json!({ "spec": { "suspend": true } })).await;
    until("it is suspended", async || (phase_of(&session, &name).await? == TenantPhase::Suspended).then_some(())).await;
    kubelet::pods(&session, &namespace, 0).await;
    session.merge(&tenants, &name, json!({ "spec": { "suspend": false } })).await;
    kubelet::pods(&session, &namespace, 1).await;
}

#[tokio::test]
async fn workers_know_the_collector_and_their_fence_lets_them_go_there() {
    let session = World::shared().await;
    let namespace = session.settled_tenant("traced", json!({})).await.namespace_name();
    let fence: NetworkPolicy = session.within(&namespace).get("fence").await.unwrap();
    let egress = serde_json::to_value(fence.spec.unwrap().egress).unwrap();
    let rule = json!({
        "to": [{
            "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "tracing" } },
            "podSelector": { "matchLabels": { "app": "collector" } },
        }],
        "ports": [{ "protocol": "TCP", "port": 14317 }],
    });
    assert!(egress.as_array().unwrap().contains(&rule), "{egress}");
    let workers: Deployment = session.within(&namespace).get("workers").await.unwrap();
    let environment = serde_json::to_value(&workers.spec.unwrap().template.spec.unwrap().containers[0].env).unwrap();
    for (name, value) in [("CROFT_LOG", "debug"), ("CROFT_OTLP_ENDPOINT", "http://collector.tracing:4317")] {
        assert!(environment.as_array().unwrap().contains(&json!({ "name": name, "value": value })), "{environment}");
    }
}

#[tokio::test]
async fn the_internet_is_taken_from_a_tenant_and_given_back_while_its_workers_run_on() {
    let session = World::shared().await;
    let made = session.settled_tenant("secluded", json!({})).await;
    let (name, namespace) = (made.name_any(), made.namespace_name());
    let before: Deployment = session.within(&namespace).get("workers").await.unwrap();
    for (internet, is_open) in [("Deny", false), ("Allow", true)] {
        let wanted = json!({ "spec": { "egress": { "internet": internet } } });
        session.merge(&session.all::<AgentTenant>(), &name, wanted).await;
        within(REPAIRED, &format!("the fence is as {internet} wants it"), async || {
            let fence: NetworkPolicy = session.within(&namespace).get("fence").await.ok()?;
            let egress = serde_json::to_string(&fence.spec?.egress?).ok()?;
            (egress.contains("0.0.0.0/0") == is_open && egress.contains("kube-dns")).then_some(())
        })
        .await;
    }
    let after: Deployment = session.within(&namespace).get("workers").await.unwrap();
    assert_eq!(after.metadata.generation, before.metadata.generation);
}
