//! What is taken from a tenant by hand, or changed, is put right.

use std::time::Duration;

use croft_crds::AgentTenant;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, LimitRange, Namespace, ResourceQuota, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Api, DeleteParams, PostParams};
use kube::core::DynamicObject;
use kube::{Resource, ResourceExt as _};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::kubelet;
use crate::providers::LENT;
use crate::tenants::owners;
use crate::world::{Session, World, assert_mostly_within, until, within};

/// Long before the next look at a tenant that nothing happened to, which is minutes away: here many tests share two cores.
pub(crate) const REPAIRED: Duration = Duration::from_mins(1);
/// How long most repairs take at the most here. That they take less than a second is for a benchmark to show.
const REPAIRED_MOSTLY: Duration = Duration::from_secs(5);

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
    assert_mostly_within(REPAIRED_MOSTLY, repairs);
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
    assert_mostly_within(REPAIRED_MOSTLY, repairs);
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
