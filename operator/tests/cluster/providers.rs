//! Where a tenant's models are, and whose key they take: the four sources, and what becomes of keys.

use croft_crds::AgentTenant;
use croft_proto::v1::ProviderMode;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};

use crate::routes::{next_where, watch};
use crate::world::{Session, World, condition, until};

const KEY: &str = "sk-a-made-up-key-of-the-tenant";
pub(crate) const LENT: &str = "sk-a-made-up-key-of-the-platform";

pub(crate) fn one(provider: &Value) -> Value {
    json!({ "llm": { "providers": [provider] } })
}

fn own_key() -> Value {
    json!({ "name": "models", "key": "anthropic" })
}

pub(crate) async fn put_secret(session: &Session, namespace: &str, name: &str, data: Value) {
    let secret: Secret =
        serde_json::from_value(json!({ "metadata": { "name": name }, "stringData": data })).expect("it is a Secret");
    session.within::<Secret>(namespace).create(&PostParams::default(), &secret).await.expect("it can be made");
}

/// The file that the workers read.
pub(crate) async fn file(session: &Session, namespace: &str) -> Value {
    let providers: ConfigMap = session.within(namespace).get("providers").await.expect("it is there");
    serde_json::from_str(&providers.data.expect("it has data")["providers.json"]).expect("it is JSON")
}

pub(crate) async fn template(session: &Session, namespace: &str) -> Value {
    let deployment: Deployment = session.within(namespace).get("workers").await.expect("it is there");
    serde_json::to_value(deployment.spec.expect("it has one").template).expect("it is JSON")
}

pub(crate) async fn told(session: &Session, tenant: &AgentTenant, kind: &str, beginning: &str) -> String {
    until(&format!("{kind} is {beginning}"), async || {
        let tenant: AgentTenant = session.all().get(&tenant.name_any()).await.ok()?;
        condition(&tenant, kind).filter(|told| told.starts_with(beginning))
    })
    .await
}

#[tokio::test]
async fn the_tenants_own_key_is_used_once_it_is_there_and_another_in_its_place_rolls_nothing() {
    let session = World::shared().await;
    let provider = json!({ "name": "anthropic", "apiKeySecretRef": own_key() });
    let made = session.settled_tenant("keyed", one(&provider)).await;
    let (name, namespace) = (made.name_any(), made.namespace_name());
    let missing = told(&session, &made, "ProvidersReady", "False").await;
    assert_eq!(missing, format!("False KeysMissing: namespace {namespace} lacks models/anthropic"));
    assert_eq!(file(&session, &namespace).await, json!({ "providers": {} }));
    let without = template(&session, &namespace).await;

    // No touch of the tenant: the watch of Secrets tells.
    put_secret(&session, &namespace, "models", json!({ "anthropic": KEY })).await;
    told(&session, &made, "ProvidersReady", "True KeysFound").await;
    told(&session, &made, "Applied", "True").await;
    let expected = json!({ "providers": { "anthropic": { "api_key_file": "/etc/croft/keys/anthropic" } } });
    assert_eq!(file(&session, &namespace).await, expected);
    let with = template(&session, &namespace).await;
    assert_ne!(with, without, "workers start anew with it");

    // Neither is a reason to start anew: workers see another key in its file.
    let secrets = session.within::<Secret>(&namespace);
    session.merge(&secrets, "models", json!({ "metadata": { "labels": { "touched": "true" } } })).await;
    session.merge(&secrets, "models", json!({ "stringData": { "anthropic": format!("{KEY}-2") } })).await;
    session.quiet().await;
    assert_eq!(template(&session, &namespace).await, with);
    let deployment: Deployment = session.within(&namespace).get("workers").await.unwrap();
    assert_eq!(deployment.metadata.generation, Some(2), "once, when the key came");

    session.merge(&secrets, "models", json!({ "stringData": { "anthropic": "two words" } })).await;
    let unusable = told(&session, &made, "ProvidersReady", "False KeyUnusable").await;
    assert!(unusable.contains("models/anthropic"), "{unusable}");
    until("no worker goes on with what was taken back", async || {
        (template(&session, &namespace).await == without).then_some(())
    })
    .await;
    secrets.delete("models", &DeleteParams::default()).await.unwrap();
    told(&session, &made, "ProvidersReady", "False KeysMissing").await;

    let tenant: AgentTenant = session.all().get(&name).await.unwrap();
    let providers: ConfigMap = session.within(&namespace).get("providers").await.unwrap();
    for text in [serde_json::to_string(&tenant).unwrap(), serde_json::to_string(&providers).unwrap(), with.to_string()]
    {
        assert!(!text.contains("sk-a-made-up"));
    }
}

#[tokio::test]
async fn a_lent_key_is_copied_kept_and_taken_back() {
    let session = World::alone().await;
    let platform = session.world.namespace.clone();
    let secrets = session.within::<Secret>(&platform);
    let _ = secrets.delete("lent", &DeleteParams::default()).await;
    let made = session.settled_tenant("lent", one(&json!({ "name": "anthropic", "source": "Platform" }))).await;
    let (name, namespace) = (made.name_any(), made.namespace_name());
    let missing = told(&session, &made, "ProvidersReady", "False").await;
    assert_eq!(missing, "False PlatformKeyMissing: the platform's key for anthropic is not there");

    put_secret(&session, &platform, "lent", json!({ "api-key": LENT })).await;
    let copies = session.within::<Secret>(&namespace);
    let key = async || Some(copies.get_opt("platform-keys").await.ok()??.data?.remove("anthropic")?.0);
    until("the key is copied", async || (key().await? == LENT.as_bytes()).then_some(())).await;
    told(&session, &made, "ProvidersReady", "True").await;
    told(&session, &made, "Applied", "True").await;
    let lent = json!({ "api_key_file": "/etc/croft/keys/anthropic", "base_url": "https://lent.example.com" });
    assert_eq!(file(&session, &namespace).await, json!({ "providers": { "anthropic": lent } }));
    session.quiet().await;
    let version = copies.get("platform-keys").await.unwrap().resource_version();
    let before = template(&session, &namespace).await;
    let tenants = session.all::<AgentTenant>();
    for number in 0..5 {
        session.merge(&tenants, &name, json!({ "metadata": { "labels": { "touched": number.to_string() } } })).await;
        session.quiet().await;
    }
    assert_eq!(copies.get("platform-keys").await.unwrap().resource_version(), version, "no pass writes it again");

    session.merge(&copies, "platform-keys", json!({ "stringData": { "anthropic": "garbled" } })).await;
    until("an edit is undone", async || (key().await? == LENT.as_bytes()).then_some(())).await;
    copies.delete("platform-keys", &DeleteParams::default()).await.unwrap();
    until("it comes back", async || (key().await? == LENT.as_bytes()).then_some(())).await;
    session.quiet().await;
    assert_eq!(template(&session, &namespace).await, before, "the key was the same all along");

    session.merge(&secrets, "lent", json!({ "stringData": { "api-key": format!("{LENT}-2") } })).await;
    until("another key is copied too", async || (key().await?.ends_with(b"-2")).then_some(())).await;
    session.quiet().await;
    assert_eq!(template(&session, &namespace).await, before, "workers see it in its file");

    session.merge(&tenants, &name, json!({ "spec": { "llm": null } })).await;
    until("a tenant that borrows no more has none", async || {
        copies.get_opt("platform-keys").await.ok()?.is_none().then_some(())
    })
    .await;
    assert_eq!(file(&session, &namespace).await, json!({ "providers": {} }));
    secrets.delete("lent", &DeleteParams::default()).await.unwrap();
}

#[tokio::test]
async fn a_tenants_endpoint_is_where_the_workers_go_with_its_key() {
    let session = World::shared().await;
    let provider = json!({
        "name": "anthropic", "source": "TenantEndpoint", "baseUrl": "https://heron.example.com/claude",
        "apiKeySecretRef": own_key(),
    });
    let made = session.settled_tenant("endpoint", one(&provider)).await;
    let namespace = made.namespace_name();
    put_secret(&session, &namespace, "models", json!({ "anthropic": KEY })).await;
    told(&session, &made, "ProvidersReady", "True").await;
    told(&session, &made, "Applied", "True").await;
    let expected = json!({ "anthropic": {
        "api_key_file": "/etc/croft/keys/anthropic", "base_url": "https://heron.example.com/claude",
    } });
    assert_eq!(file(&session, &namespace).await["providers"], expected);
}

#[tokio::test]
async fn a_model_in_the_cluster_needs_no_key_and_opens_its_own_pods() {
    let session = World::shared().await;
    let provider = json!({ "name": "anthropic", "source": "InCluster", "service": {
        "namespace": "models", "name": "llama", "port": 80, "targetPort": 8000, "podSelector": { "app": "llama" },
    } });
    let made = session.settled_tenant("in-cluster", one(&provider)).await;
    let namespace = made.namespace_name();
    told(&session, &made, "ProvidersReady", "True").await;
    told(&session, &made, "Applied", "True").await;
    let expected = json!({ "providers": { "anthropic": { "base_url": "http://llama.models.svc:80" } } });
    assert_eq!(file(&session, &namespace).await, expected);
    let fence: NetworkPolicy = session.within(&namespace).get("fence").await.unwrap();
    let egress = serde_json::to_value(fence.spec.unwrap().egress.unwrap()).unwrap();
    let rule = json!({
        "to": [{
            "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "models" } },
            "podSelector": { "matchLabels": { "app": "llama" } },
        }],
        "ports": [{ "protocol": "TCP", "port": 8000 }],
    });
    assert!(egress.as_array().unwrap().contains(&rule), "{egress}");
}

#[tokio::test]
async fn fronts_are_told_which_providers_there_are_and_who_pays() {
    let session = World::shared().await;
    let mut stream = watch(&session).await;
    stream.message().await.unwrap().unwrap();
    let provider = json!({ "name": "anthropic", "apiKeySecretRef": own_key() });
    let made = session.settled_tenant("paying", one(&provider)).await;
    put_secret(&session, &made.namespace_name(), "models", json!({ "anthropic": KEY })).await;
    let route = next_where(&mut stream, &made, |route| !route.providers.is_empty()).await;
    assert_eq!(route.providers[0].name, "anthropic");
    assert_eq!(route.providers[0].mode(), ProviderMode::TenantKey);
}
