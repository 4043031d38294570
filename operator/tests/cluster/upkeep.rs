//! A tenant whose spec can't be used any more goes on with what it has: its certificate is renewed, and what was taken back is gone.

use croft_crds::AgentTenant;
use croft_operator::authority::Authority;
use croft_operator::certificate::Subject;
use http::Method;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::ResourceExt as _;
use kube::api::DeleteParams;
use serde_json::{Value, json};

use crate::providers::{LENT, file, one, put_secret, template, told};
use crate::proxy::What;
use crate::world::{Session, World, condition, until};

/// As after a chart's edit that gives the tier less: the tenant's own request is more than a worker may use.
async fn becomes_unusable(session: &Session, tenant: &AgentTenant) {
    request(session, tenant, &json!("2")).await;
    told(session, tenant, "Applied", "False SpecNotUsable: spec.workers.resources is not usable").await;
    session.quiet().await;
}

async fn request(session: &Session, tenant: &AgentTenant, cpu: &Value) {
    let edit = json!({ "spec": { "workers": { "resources": { "cpuRequest": cpu } } } });
    session.merge(&session.all::<AgentTenant>(), &tenant.name_any(), edit).await;
}

fn certificate(secret: &Secret) -> Option<Vec<u8>> {
    Some(secret.data.as_ref()?.get("tls.crt")?.0.clone())
}

/// What a worker may use of CPU.
fn cpu_limit(template: &Value) -> &Value {
    &template["spec"]["containers"][0]["resources"]["limits"]["cpu"]
}

#[tokio::test]
async fn an_unusable_spec_lets_no_certificate_run_out() {
    const DAY: i64 = 24 * 60 * 60;
    let session = World::alone().await;
    let made = session.settled_tenant("ageing", json!({ "workers": { "replicas": 1 } })).await;
    let (name, namespace) = (made.name_any(), made.namespace_name());
    becomes_unusable(&session, &made).await;
    let (before, writes) = (template(&session, &namespace).await, session.world.writes());
    let touched = json!({ "metadata": { "labels": { "touched": "true" } } });
    session.merge(&session.all::<AgentTenant>(), &name, touched).await;
    session.quiet().await;
    assert_eq!(session.world.writes(), writes, "there is nothing to renew yet");

    // A good one that has less than a third of its ninety days left.
    let ca: Secret = session.within(&session.world.namespace).get("croft-ca").await.unwrap();
    let then = jiff::Timestamp::now().as_second() - 70 * DAY;
    let aged = Subject::workers(&name, &namespace).issue(&Authority::from_secret(&ca).unwrap(), then).unwrap();
    let secrets = session.within::<Secret>(&namespace);
    let data = json!({ "stringData": { "tls.crt": aged.cert, "tls.key": aged.key } });
    session.merge(&secrets, "worker-tls", data).await;
    let renewed = until("the certificate is renewed", async || {
        certificate(&secrets.get("worker-tls").await.ok()?).filter(|cert| cert != aged.cert.as_bytes())
    })
    .await;
    let rolled = until("workers begin anew with it", async || {
        Some(template(&session, &namespace).await).filter(|template| *template != before)
    })
    .await;
    assert_eq!(rolled["spec"], before["spec"], "nothing else is different");
    session.quiet().await;
    assert_eq!(certificate(&secrets.get("worker-tls").await.unwrap()), Some(renewed), "once");
    told(&session, &made, "Applied", "False SpecNotUsable").await;

    let mended = json!({ "spec": { "workers": { "resources": { "cpuRequest": null, "cpuLimit": "700m" } } } });
    session.merge(&session.all::<AgentTenant>(), &name, mended).await;
    until("all of the spec holds again", async || {
        (*cpu_limit(&template(&session, &namespace).await) == json!("700m")).then_some(())
    })
    .await;
    told(&session, &made, "Applied", "True").await;
    let deployment: Deployment = session.within(&namespace).get("workers").await.unwrap();
    assert_eq!(deployment.metadata.generation, Some(3), "made, rolled once for the certificate, mended");
}

/// Alone, as there is one Secret of that name for all tenants.
#[tokio::test]
async fn an_unusable_spec_keeps_no_lent_key() {
    let session = World::alone().await;
    let platform = session.world.namespace.clone();
    let secrets = session.within::<Secret>(&platform);
    let _ = secrets.delete("lent", &DeleteParams::default()).await;
    put_secret(&session, &platform, "lent", json!({ "api-key": LENT })).await;
    let made = session.settled_tenant("borrowing", one(&json!({ "name": "anthropic", "source": "Platform" }))).await;
    let namespace = made.namespace_name();
    let copies = session.within::<Secret>(&namespace);
    let key = async || Some(copies.get_opt("platform-keys").await.ok()??.data?.remove("anthropic")?.0);
    until("the key is copied", async || (key().await? == LENT.as_bytes()).then_some(())).await;
    told(&session, &made, "ProvidersReady", "True").await;
    told(&session, &made, "Applied", "True").await;
    becomes_unusable(&session, &made).await;
    let with = template(&session, &namespace).await;

    session.merge(&secrets, "lent", json!({ "stringData": { "api-key": format!("{LENT}-2") } })).await;
    until("another key takes its place", async || key().await?.ends_with(b"-2").then_some(())).await;
    session.quiet().await;
    assert_eq!(template(&session, &namespace).await, with, "workers see it in its file");

    secrets.delete("lent", &DeleteParams::default()).await.unwrap();
    until("it is taken back", async || copies.get_opt("platform-keys").await.ok()?.is_none().then_some(())).await;
    assert_eq!(file(&session, &namespace).await, json!({ "providers": {} }));
    let without = template(&session, &namespace).await;
    assert_ne!(without, with, "no worker goes on with what was taken back");
    assert_eq!(without["spec"], with["spec"], "nothing else is different");
    told(&session, &made, "Applied", "False SpecNotUsable").await;
    told(&session, &made, "ProvidersReady", "False PlatformKeyMissing").await;

    put_secret(&session, &platform, "lent", json!({ "api-key": LENT })).await;
    until("it is lent again", async || (key().await? == LENT.as_bytes()).then_some(())).await;
    request(&session, &made, &Value::Null).await;
    told(&session, &made, "Applied", "True").await;
    assert_eq!(template(&session, &namespace).await, with);
    secrets.delete("lent", &DeleteParams::default()).await.unwrap();
}

/// What the workers have not mounted would be missing in their file, and one key could be taken for another.
#[tokio::test]
async fn a_key_that_comes_with_an_unusable_spec_waits_until_it_is_mended() {
    let session = World::shared().await;
    let made = session.settled_tenant("waiting", json!({ "workers": { "replicas": 1 } })).await;
    let namespace = made.namespace_name();
    let own = json!({ "name": "models", "key": "anthropic" });
    put_secret(&session, &namespace, "models", json!({ "anthropic": "sk-a-made-up-key" })).await;
    let mut edit = one(&json!({ "name": "anthropic", "apiKeySecretRef": own }));
    edit["workers"] = json!({ "resources": { "cpuRequest": "2" } });
    session.merge(&session.all::<AgentTenant>(), &made.name_any(), json!({ "spec": edit })).await;
    told(&session, &made, "Applied", "False SpecNotUsable").await;
    assert_eq!(file(&session, &namespace).await, json!({ "providers": {} }));
    request(&session, &made, &Value::Null).await;
    told(&session, &made, "Applied", "True").await;
    let expected = json!({ "anthropic": { "api_key_file": "/etc/croft/keys/anthropic" } });
    assert_eq!(file(&session, &namespace).await["providers"], expected);
}

/// Where the workers connect to is as it was: the fence need not let them go anywhere else.
#[tokio::test]
async fn an_unusable_spec_moves_no_provider_and_brings_none() {
    let session = World::shared().await;
    let own = json!({ "name": "models", "key": "anthropic" });
    let provider = |url: &str| json!({ "name": "anthropic", "baseUrl": url, "apiKeySecretRef": own });
    let server = |name: &str| json!({ "name": name, "url": format!("https://{name}.example.com/mcp") });
    let mut spec = one(&provider("https://one.example.com"));
    spec["mcpServers"] = json!([server("maps"), server("tickets")]);
    let made = session.settled_tenant("moving", spec).await;
    let namespace = made.namespace_name();
    put_secret(&session, &namespace, "models", json!({ "anthropic": "sk-a-made-up-key" })).await;
    told(&session, &made, "ProvidersReady", "True").await;
    told(&session, &made, "Applied", "True").await;
    becomes_unusable(&session, &made).await;
    let before = (file(&session, &namespace).await, template(&session, &namespace).await);
    assert_eq!(before.0["providers"]["anthropic"]["base_url"], "https://one.example.com");

    let mut edit = one(&provider("https://two.example.com"));
    edit["llm"]["providers"].as_array_mut().unwrap().push(json!({
        "name": "openai", "source": "InCluster",
        "service": { "namespace": "models", "name": "llama", "port": 80, "podSelector": { "app": "llama" } },
    }));
    let mut moved = server("maps");
    moved["url"] = "https://elsewhere.example.com/mcp".into();
    edit["mcpServers"] = json!([moved, server("tickets"), server("mail")]);
    edit["owners"] = json!([{ "kind": "User", "name": "ada@example.com" }]);
    session.merge(&session.all::<AgentTenant>(), &made.name_any(), json!({ "spec": edit })).await;
    let bindings = session.within::<RoleBinding>(&namespace);
    until("the edit is seen", async || bindings.get_opt("owners").await.ok()?.map(drop)).await;
    session.quiet().await;
    assert_eq!((file(&session, &namespace).await, template(&session, &namespace).await), before);

    let fewer = json!({ "spec": { "mcpServers": [server("maps")] } });
    session.merge(&session.all::<AgentTenant>(), &made.name_any(), fewer).await;
    until("whom the spec names no more is gone", async || {
        (file(&session, &namespace).await["mcp_servers"] == json!([server("maps")])).then_some(())
    })
    .await;
    until("workers forget it", async || (template(&session, &namespace).await != before.1).then_some(())).await;
}

#[tokio::test]
async fn an_unusable_spec_keeps_nobodys_rights_and_no_way_out_that_was_taken_back() {
    let session = World::shared().await;
    let owner = |name: &str| json!({ "kind": "User", "name": name });
    let range = |cidr: &str| json!({ "cidr": cidr });
    let spec = json!({
        "owners": [owner("ada@example.com"), owner("bob@example.com")],
        "egress": { "allow": [range("10.1.0.0/16"), range("10.2.0.0/16")] },
    });
    let made = session.settled_tenant("narrowing", spec).await;
    let namespace = made.namespace_name();
    let bound = async || {
        let binding: RoleBinding = session.within(&namespace).get("owners").await.expect("it is there");
        serde_json::to_string(&binding.subjects).expect("it is JSON")
    };
    let open = async || {
        let fence: NetworkPolicy = session.within(&namespace).get("fence").await.expect("it is there");
        serde_json::to_string(&fence.spec).expect("it is JSON")
    };
    assert!(bound().await.contains("bob@") && open().await.contains("10.2.0.0/16"));
    becomes_unusable(&session, &made).await;
    let edit =
        json!({ "spec": { "owners": [owner("ada@example.com")], "egress": { "allow": [range("10.1.0.0/16")] } } });
    session.merge(&session.all::<AgentTenant>(), &made.name_any(), edit).await;
    until("both are gone", async || {
        let (bound, open) = (bound().await, open().await);
        assert!(bound.contains("ada@") && open.contains("10.1.0.0/16"), "the rest stays");
        (!bound.contains("bob@") && !open.contains("10.2.0.0/16")).then_some(())
    })
    .await;
    told(&session, &made, "Applied", "False SpecNotUsable").await;
    told(&session, &made, "OwnersBound", "True").await;
}

#[tokio::test]
async fn what_cant_be_kept_up_hides_not_what_is_wrong_with_the_spec() {
    let session = World::shared().await;
    let spec = |name: &str, ranges: &[&str]| {
        let allow: Vec<_> = ranges.iter().map(|cidr| json!({ "cidr": cidr })).collect();
        json!({ "owners": [{ "kind": "User", "name": name }], "egress": { "allow": allow } })
    };
    let ranges = ["10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16"];
    let made = session.settled_tenant("hampered", spec("ada@example.com", &ranges)).await;
    becomes_unusable(&session, &made).await;
    let bindings = format!("/namespaces/{}/rolebindings", made.namespace_name());
    for (what, left, name, reason) in [
        (What::Answer(500), 2, "bob@example.com", "False ApiFailed"),
        (What::Stall, 1, "eve@example.com", "False DeadlineExceeded"),
    ] {
        let fault = session.world.proxy.inject(Method::PATCH, &bindings, what, None);
        session
            .merge(&session.all::<AgentTenant>(), &made.name_any(), json!({ "spec": spec(name, &ranges[..left]) }))
            .await;
        until("the way out is closed all the same", async || {
            let fence: NetworkPolicy = session.within(&made.namespace_name()).get("fence").await.ok()?;
            (!serde_json::to_string(&fence.spec).ok()?.contains(ranges[left])).then_some(())
        })
        .await;
        told(&session, &made, "OwnersBound", reason).await;
        for part in ["FenceApplied", "WorkersApplied"] {
            told(&session, &made, part, "True").await;
        }
        let tenant: AgentTenant = session.all().get(&made.name_any()).await.unwrap();
        let applied = condition(&tenant, "Applied").unwrap();
        assert!(applied.starts_with("False SpecNotUsable"), "{applied}");
        drop(fault);
        until("it is tried again, and told", async || {
            let tenant: AgentTenant = session.all().get(&made.name_any()).await.ok()?;
            (!condition(&tenant, "OwnersBound")?.starts_with("False")).then_some(())
        })
        .await;
        let binding: RoleBinding = session.within(&made.namespace_name()).get("owners").await.unwrap();
        assert_eq!(binding.subjects.unwrap()[0].name, name);
    }
}
