//! Watches that hear nothing for a while, as behind a network that swallows packets: what passes do until then.

use croft_crds::AgentTenant;
use http::Method;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::ResourceExt as _;
use kube::api::DeleteParams;
use serde_json::json;

use crate::proxy::{Injected, What};
use crate::world::{Session, World, condition, until};

/// Until this is dropped, the watches of a kind hear nothing; there are so many.
async fn deaf(session: &Session, plural: &str, watches: u32) -> Injected {
    let proxy = &session.world.proxy;
    let held = proxy.inject(Method::GET, &format!("/{plural}?"), What::Hold, None);
    proxy.cut_watches();
    until("the watches stand still", async || (held.hits() >= watches).then_some(())).await;
    held
}

/// Once, each pass made another, and exchanged all workers for its sake.
#[tokio::test]
async fn a_certificate_that_no_copy_tells_of_is_not_made_anew() {
    let session = World::alone().await;
    let deaf = deaf(&session, "secrets", 2).await;
    let lost = session.world.proxy.inject(Method::POST, "/secrets", What::LoseAnswer, Some(1));
    let held = session.world.proxy.inject(Method::PATCH, "/secrets/worker-tls", What::Hold, None);
    let made = session.tenant("unheard", json!({})).await;
    until("what was made is to be applied", async || (held.hits() > 0).then_some(())).await;
    assert_eq!(lost.hits(), 1);
    let secrets = session.within::<Secret>(&made.namespace_name());
    let first = secrets.get("worker-tls").await.unwrap().data;
    drop(held);
    until("the tenant is applied", async || {
        let tenant: AgentTenant = session.all().get(&made.name_any()).await.ok()?;
        condition(&tenant, "Applied")?.starts_with("True").then_some(())
    })
    .await;
    assert!(secrets.get("worker-tls").await.unwrap().data == first, "it is another");
    drop(deaf);
}

#[tokio::test]
async fn a_part_that_went_with_its_namespace_is_made_anew_before_its_watch_tells() {
    let session = World::alone().await;
    let made = session.settled_tenant("moulted", json!({})).await;
    let namespace = made.namespace_name();
    let (namespaces, config_maps) = (session.all::<Namespace>(), session.within::<ConfigMap>(&namespace));
    session.quiet().await;
    let _deaf = deaf(&session, "configmaps", 1).await;
    let before = config_maps.get("providers").await.unwrap();
    let made_at = before.creation_timestamp().expect("it is stored").0.as_second();
    until("its second is over", async || (jiff::Timestamp::now().as_second() > made_at).then_some(())).await;
    namespaces.delete(&namespace, &DeleteParams::default()).await.unwrap();
    until("it is there again", async || {
        let there = config_maps.get_opt("providers").await.ok()??;
        (there.uid() != before.uid()).then_some(())
    })
    .await;
}

/// Once, each pass wrote every part anew where the API server that had made the namespace had a clock ahead of the other's.
#[tokio::test]
async fn a_part_that_seems_older_than_its_namespace_is_written_once() {
    let session = World::alone().await;
    let made = session.settled_tenant("early", json!({})).await;
    let namespace = made.namespace_name();
    session.quiet().await;
    let ahead = session.world.proxy.inject(Method::GET, "/namespaces?", What::Ahead, None);
    session.world.proxy.cut_watches();
    until("another clock tells of namespaces", async || (ahead.hits() > 0).then_some(())).await;
    session.quiet().await;
    let tenants = session.all::<AgentTenant>();
    let touch = async |label: &str| {
        let passes = session.world.passes("AgentTenant");
        session.merge(&tenants, &made.name_any(), json!({ "metadata": { "labels": { label: "true" } } })).await;
        until("a pass follows", async || (session.world.passes("AgentTenant") > passes).then_some(())).await;
        session.quiet().await;
    };
    // The namespace is told of with another time once something in it is different.
    session
        .merge(&session.all::<Namespace>(), &namespace, json!({ "metadata": { "labels": { "touched": "true" } } }))
        .await;
    session.quiet().await;
    touch("first").await;
    let writes = session.world.writes();
    for label in ["second", "third"] {
        touch(label).await;
    }
    assert_eq!(session.world.writes(), writes, "nothing had changed");

    let config_maps = session.within::<ConfigMap>(&namespace);
    session.merge(&config_maps, "providers", json!({ "data": { "providers.json": "{}" } })).await;
    until("an edit is still undone", async || {
        let there = config_maps.get("providers").await.ok()?.data?;
        (there["providers.json"] != "{}").then_some(())
    })
    .await;
    drop(ahead);
    session.world.proxy.cut_watches();
    session.quiet().await;
}
