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
use kube::core::DynamicObject;
use kube::{Resource, ResourceExt as _};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::kubelet;
use crate::providers::LENT;
use crate::world::{Session, World, condition, tenant, until, within};

/// Long before the next look at a tenant that nothing happened to, which is minutes away: here many tests share two cores.
const REPAIRED: Duration = Duration::from_mins(1);
/// How long most repairs take at the most here. That they take less than a second is for a benchmark to show.
const REPAIRED_MOSTLY: Duration = Duration::from_secs(5);

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

fn owners() -> Value {
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

/// A tenant that has every part there is, with what the platform lends it; no other test may run meanwhile.
async fn full_tenant(session: &Session, name: &str) -> AgentTenant {
    take_back(session).await;
    let platform = session.within::<Secret>(&session.world.namespace);
    let registries = json!({ "auths": { "registry.example.com": { "auth": "bWFkZTp1cA==" } } }).to_string();
    for lent in [
        json!({ "metadata": { "name": "lent" }, "stringData": { "api-key": LENT } }),
        json!({
            "metadata": { "name": "registry" }, "type": "kubernetes.io/dockerconfigjson",
            "stringData": { ".dockerconfigjson": registries },
        }),
    ] {
        let lent = serde_json::from_value(lent).expect("it is a Secret");
        platform.create(&PostParams::default(), &lent).await.expect("it can be made");
    }
    let providers = json!([{ "name": "anthropic", "source": "Platform" }]);
    let spec = json!({ "owners": owners(), "llm": { "providers": providers } });
    let made = session.settled_tenant(name, spec).await;
    let copies = session.within::<Secret>(&made.namespace_name());
    for name in ["platform-keys", "pull-credentials"] {
        until(&format!("{name} is copied"), async || copies.get_opt(name).await.ok()?).await;
    }
    kubelet::pods(session, &made.namespace_name(), 2).await;
    session.quiet().await;
    made
}

/// Takes back what [`full_tenant`] lent.
async fn take_back(session: &Session) {
    let platform = session.within::<Secret>(&session.world.namespace);
    for name in ["lent", "registry"] {
        // It may not be there.
        let _ = platform.delete(name, &DeleteParams::default()).await;
    }
    session.quiet().await;
}

fn assert_mostly_quick(mut repairs: Vec<Duration>) {
    repairs.sort();
    let median = repairs[repairs.len() / 2];
    assert!(median < REPAIRED_MOSTLY, "half of them took {median:?} and more: {repairs:?}");
}

#[tokio::test]
async fn a_part_that_is_deleted_comes_back() {
    async fn deleted<K>(api: Api<K>, name: &str) -> Duration
    where
        K: Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        let before = api.get(name).await.expect("it is there").uid();
        let since = Instant::now();
        api.delete(name, &DeleteParams::background()).await.expect("it can be deleted");
        within(REPAIRED, &format!("{} {name} is back", K::kind(&())), async || {
            let found = api.get_opt(name).await.ok()??;
            (found.uid() != before && found.meta().deletion_timestamp.is_none()).then_some(())
        })
        .await;
        since.elapsed()
    }
    let session = World::alone().await;
    let made = full_tenant(&session, "deleted").await;
    let namespace = made.namespace_name();
    let repairs = vec![
        deleted::<NetworkPolicy>(session.within(&namespace), "fence").await,
        deleted::<ResourceQuota>(session.within(&namespace), "tenant").await,
        deleted::<LimitRange>(session.within(&namespace), "tenant").await,
        deleted::<ServiceAccount>(session.within(&namespace), "worker").await,
        deleted::<Role>(session.within(&namespace), "owners").await,
        deleted::<RoleBinding>(session.within(&namespace), "owners").await,
        deleted::<ConfigMap>(session.within(&namespace), "providers").await,
        deleted::<Secret>(session.within(&namespace), "worker-tls").await,
        deleted::<Service>(session.within(&namespace), "workers").await,
        deleted::<Deployment>(session.within(&namespace), "workers").await,
        deleted::<PodDisruptionBudget>(session.within(&namespace), "workers").await,
        deleted::<Secret>(session.within(&namespace), "platform-keys").await,
        deleted::<Secret>(session.within(&namespace), "pull-credentials").await,
    ];
    take_back(&session).await;
    assert_mostly_quick(repairs);
}

#[tokio::test]
async fn an_edit_of_a_part_is_undone() {
    let session = World::alone().await;
    let made = full_tenant(&session, "edited").await;
    let namespace = made.namespace_name();
    let stranger = json!({ "subjects": [
        { "kind": "User", "name": "eve", "apiGroup": "rbac.authorization.k8s.io" },
    ] });
    let everything = json!({ "rules": [{ "apiGroups": ["*"], "resources": ["*"], "verbs": ["*"] }] });
    // Of the copy for registries only what is on it is looked at.
    let unlabelled = json!({ "metadata": { "labels": { "app.kubernetes.io/name": null } } });
    let edits: [(&str, &str, Value, &str); 13] = [
        ("RoleBinding", "owners", stranger, "/subjects"),
        ("Role", "owners", everything, "/rules"),
        ("Deployment", "workers", json!({ "spec": { "replicas": 7 } }), "/spec/replicas"),
        ("NetworkPolicy", "fence", json!({ "spec": { "egress": [{}] } }), "/spec/egress"),
        ("ResourceQuota", "tenant", json!({ "spec": { "hard": { "limits.cpu": "64" } } }), "/spec/hard/limits.cpu"),
        ("LimitRange", "tenant", json!({ "spec": { "limits": [] } }), "/spec/limits"),
        ("ServiceAccount", "worker", json!({ "automountServiceAccountToken": true }), "/automountServiceAccountToken"),
        ("ConfigMap", "providers", json!({ "data": { "providers.json": "{}" } }), "/data/providers.json"),
        ("Service", "workers", json!({ "spec": { "selector": { "croft.dev/tenant": "egret" } } }), "/spec/selector"),
        ("PodDisruptionBudget", "workers", json!({ "spec": { "maxUnavailable": 9 } }), "/spec/maxUnavailable"),
        ("Secret", "platform-keys", json!({ "stringData": { "anthropic": "garbled" } }), "/data/anthropic"),
        ("Secret", "pull-credentials", unlabelled, "/metadata/labels"),
        (
            "NetworkPolicy",
            "fence",
            json!({ "metadata": { "labels": { "croft.dev/tenant": null } } }),
            "/metadata/labels",
        ),
    ];
    let mut repairs = Vec::new();
    for (kind, name, edit, field) in edits {
        let api = dynamic(&session, kind, &namespace);
        let read = async || {
            let object = serde_json::to_value(api.get(name).await.expect("it is there")).expect("it is JSON");
            object.pointer(field).cloned()
        };
        let before = read().await;
        let since = Instant::now();
        session.merge(&api, name, edit).await;
        within(REPAIRED, &format!("{kind} {name} has its {field} back"), async || {
            (read().await == before).then_some(())
        })
        .await;
        repairs.push(since.elapsed());
    }
    take_back(&session).await;
    assert_mostly_quick(repairs);
    let namespaces = session.all::<Namespace>();
    let weakened = json!({ "metadata": { "labels": {
        "pod-security.kubernetes.io/enforce": "privileged", "croft.dev/tenant": null,
    } } });
    session.merge(&namespaces, &namespace, weakened).await;
    within(REPAIRED, "the namespace is restricted again", async || {
        let labels = namespaces.get(&namespace).await.ok()?.metadata.labels?;
        (labels["pod-security.kubernetes.io/enforce"] == "restricted" && labels.contains_key("croft.dev/tenant"))
            .then_some(())
    })
    .await;
}

fn dynamic(session: &Session, kind: &str, namespace: &str) -> Api<DynamicObject> {
    let (group, plural) = match kind {
        "Deployment" => ("apps", "deployments"),
        "NetworkPolicy" => ("networking.k8s.io", "networkpolicies"),
        "PodDisruptionBudget" => ("policy", "poddisruptionbudgets"),
        "ResourceQuota" => ("", "resourcequotas"),
        "LimitRange" => ("", "limitranges"),
        "ServiceAccount" => ("", "serviceaccounts"),
        "ConfigMap" => ("", "configmaps"),
        "Secret" => ("", "secrets"),
        "Service" => ("", "services"),
        "Role" => ("rbac.authorization.k8s.io", "roles"),
        "RoleBinding" => ("rbac.authorization.k8s.io", "rolebindings"),
        _ => panic!("{kind} is no part"),
    };
    let kind = kube::core::GroupVersionKind::gvk(group, "v1", kind);
    let resource = kube::core::ApiResource::from_gvk_with_plural(&kind, plural);
    Api::namespaced_with(session.client.clone(), namespace, &resource)
}

#[tokio::test]
async fn a_garbled_key_of_the_workers_is_replaced() {
    let session = World::alone().await;
    let made = session.settled_tenant("garbled", json!({})).await;
    session.quiet().await;
    let secrets = session.within::<Secret>(&made.namespace_name());
    let before = secrets.get("worker-tls").await.unwrap().data.unwrap();
    session.merge(&secrets, "worker-tls", json!({ "stringData": { "tls.key": "garbled" } })).await;
    let after = within(REPAIRED, "there is a new key", async || {
        let data = secrets.get("worker-tls").await.ok()?.data?;
        (data["tls.key"].0 != b"garbled").then_some(data)
    })
    .await;
    assert_ne!(after["tls.key"], before["tls.key"]);
    assert_ne!(after["tls.crt"], before["tls.crt"], "a certificate goes with its key");
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
async fn a_namespace_that_is_deleted_by_hand_is_made_anew() {
    let session = World::shared().await;
    let made = session.settled_tenant("phoenix", json!({})).await;
    let namespaces = session.all::<Namespace>();
    let before = namespaces.get(&made.namespace_name()).await.unwrap().uid();
    namespaces.delete(&made.namespace_name(), &DeleteParams::default()).await.unwrap();
    until("it is there again, with its workers", async || {
        let namespace = namespaces.get_opt(&made.namespace_name()).await.ok()??;
        let is_new = namespace.uid() != before && namespace.metadata.deletion_timestamp.is_none();
        let workers = session.within::<Deployment>(&made.namespace_name()).get_opt("workers").await.ok()?;
        (is_new && workers.is_some()).then_some(())
    })
    .await;
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
