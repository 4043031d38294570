//! How nodes get at the workers' images: the platform's pull secret, copied to where the pods are.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};

use crate::world::{Session, World, until};

const NAME: &str = "pull-credentials";

/// What nodes find for a registry.
async fn auth(session: &Session, namespace: &str, registry: &str) -> Option<Value> {
    let copy: Secret = session.within(namespace).get_opt(NAME).await.ok()??;
    let config: Value = serde_json::from_slice(&copy.data?[".dockerconfigjson"].0).expect("it is JSON");
    config["auths"].get(registry).cloned()
}

fn of(registry: &str, auth: &str) -> Value {
    let config = json!({ "auths": { registry: { "auth": auth } } });
    json!({ "stringData": { ".dockerconfigjson": serde_json::to_string_pretty(&config).expect("it is JSON") } })
}

/// Alone, as every tenant that there is gets its copy meanwhile.
#[tokio::test]
async fn workers_are_pulled_with_the_platforms_own_secret_wherever_they_are() {
    let session = World::alone().await;
    let made = session.settled_tenant("pulled", json!({})).await;
    let namespace = made.namespace_name();
    let copies = session.within::<Secret>(&namespace);
    assert!(copies.get_opt(NAME).await.unwrap().is_none(), "nothing to copy yet");
    let deployment: Deployment = session.within(&namespace).get("workers").await.unwrap();
    let pod = deployment.spec.unwrap().template.spec.unwrap();
    assert_eq!(pod.image_pull_secrets.unwrap()[0].name, NAME);

    let sources = session.within::<Secret>(&session.world.namespace);
    let mut source = of("registry.example.com", "bWFkZTp1cA==");
    source["metadata"] = json!({ "name": "registry" });
    source["type"] = "kubernetes.io/dockerconfigjson".into();
    sources.create(&PostParams::default(), &serde_json::from_value(source).unwrap()).await.unwrap();
    let found = until("it is copied", async || auth(&session, &namespace, "registry.example.com").await).await;
    assert_eq!(found, json!({ "auth": "bWFkZTp1cA==" }));
    session.quiet().await;
    let writes = session.world.writes();
    session.merge(&sources, "registry", of("registry.example.com", "YW5vdGhlcg==")).await;
    until("another is, too", async || {
        (auth(&session, &namespace, "registry.example.com").await? == json!({ "auth": "YW5vdGhlcg==" })).then_some(())
    })
    .await;
    session.quiet().await;
    let before = copies.get(NAME).await.unwrap().metadata.resource_version;
    assert!(session.world.writes() > writes);

    copies.delete(NAME, &DeleteParams::default()).await.unwrap();
    until("it comes back", async || {
        (copies.get_opt(NAME).await.ok()??.metadata.resource_version != before).then_some(())
    })
    .await;
    sources.delete("registry", &DeleteParams::default()).await.unwrap();
    until("it is taken back", async || copies.get_opt(NAME).await.ok()?.is_none().then_some(())).await;
    session.quiet().await;
}
