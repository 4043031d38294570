//! What a tenant's owners and the platform's people may do in the cluster: the table of `kubectl auth can-i`, asked of a real API server.

use croft_crds::AgentTenant;
use http::Method;
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde::Deserialize as _;
use serde_json::{Value, json};

use crate::proxy::{Injected, What};
use crate::world::{Session, World, until};

/// Who asks: a user and the groups that authentication would give it.
#[derive(Clone, Copy)]
struct Who(&'static str, &'static [&'static str]);

const ADA: Who = Who("ada@example.com", &[]);
const MEMBER: Who = Who("someone@example.com", &["heron-admins"]);
const DEPLOYER: Who =
    Who("system:serviceaccount:ci:deployer", &["system:serviceaccounts", "system:serviceaccounts:ci"]);
const STRANGER: Who = Who("eve@example.com", &["others"]);

/// `kubectl auth can-i VERB RESOURCE -n NAMESPACE --as WHO`.
async fn can(session: &Session, who: Who, verb: &str, resource: &str, namespace: &str) -> bool {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let group = match resource {
        "agentsessions" | "agenttenants" => "croft.dev",
        "deployments" => "apps",
        "networkpolicies" => "networking.k8s.io",
        "roles" | "rolebindings" => "rbac.authorization.k8s.io",
        _ => "",
    };
    let groups = [who.1, &["system:authenticated"]].concat();
    let review: SubjectAccessReview = serde_json::from_value(json!({ "spec": {
        "user": who.0, "groups": groups,
        "resourceAttributes": {
            "verb": verb, "group": group, "resource": resource, "subresource": subresource, "namespace": namespace,
        },
    } }))
    .expect("it is one");
    let reviews = session.all::<SubjectAccessReview>();
    let answer = reviews.create(&PostParams::default(), &review).await.expect("the question is taken");
    answer.status.expect("there is an answer").allowed
}

#[tokio::test]
async fn owners_manage_the_declared_sessions_of_their_tenant_and_nothing_else() {
    let session = World::shared().await;
    let owners = json!([
        { "kind": "User", "name": ADA.0 },
        { "kind": "Group", "name": "heron-admins" },
        { "kind": "ServiceAccount", "name": "deployer", "namespace": "ci" },
    ]);
    let made = session.settled_tenant("owned", json!({ "owners": owners })).await;
    let other = session.settled_tenant("others", json!({})).await;
    let (own, others) = (made.namespace_name(), other.namespace_name());
    until("the API server has heard of the binding", async || {
        can(&session, ADA, "create", "agentsessions", &own).await.then_some(())
    })
    .await;

    let mut wrong = Vec::new();
    for who in [ADA, MEMBER, DEPLOYER, STRANGER] {
        let is_owner = who.0 != STRANGER.0;
        for (verb, resource, namespace, may) in [
            ("get", "agentsessions", &own, true),
            ("list", "agentsessions", &own, true),
            ("watch", "agentsessions", &own, true),
            ("create", "agentsessions", &own, true),
            ("update", "agentsessions", &own, true),
            ("patch", "agentsessions", &own, true),
            ("delete", "agentsessions", &own, true),
            ("deletecollection", "agentsessions", &own, true),
            ("get", "agentsessions/status", &own, true),
            ("patch", "agentsessions/status", &own, false),
            ("update", "agentsessions/status", &own, false),
            ("get", "agentsessions", &others, false),
            ("create", "agentsessions", &others, false),
            ("list", "agentsessions", &String::new(), false),
            ("get", "agenttenants", &String::new(), false),
            ("patch", "agenttenants", &String::new(), false),
            ("get", "secrets", &own, false),
            ("list", "secrets", &own, false),
            ("create", "secrets", &own, false),
            ("get", "pods", &own, false),
            ("create", "pods", &own, false),
            ("get", "pods/log", &own, false),
            ("create", "pods/exec", &own, false),
            ("create", "pods/portforward", &own, false),
            ("get", "configmaps", &own, false),
            ("patch", "deployments", &own, false),
            ("delete", "networkpolicies", &own, false),
            ("create", "rolebindings", &own, false),
            ("patch", "roles", &own, false),
            ("create", "serviceaccounts/token", &own, false),
            ("delete", "namespaces", &String::new(), false),
            ("impersonate", "users", &String::new(), false),
        ] {
            let expected = may && is_owner;
            if can(&session, who, verb, resource, namespace).await != expected {
                wrong.push(format!("{} {verb} {resource} in {namespace:?} must be {expected}", who.0));
            }
        }
    }
    assert_eq!(wrong, [""; 0]);
}

#[tokio::test]
async fn an_owner_who_is_one_no_more_may_nothing_and_leaves_no_role() {
    let session = World::shared().await;
    let made = session.settled_tenant("disowned", json!({ "owners": [{ "kind": "User", "name": ADA.0 }] })).await;
    let (name, namespace) = (made.name_any(), made.namespace_name());
    until("the owner may", async || can(&session, ADA, "list", "agentsessions", &namespace).await.then_some(())).await;
    let tenants = session.all::<AgentTenant>();
    session.merge(&tenants, &name, json!({ "spec": { "owners": null } })).await;
    let (roles, bindings) = (session.within::<Role>(&namespace), session.within::<RoleBinding>(&namespace));
    until("both are gone", async || {
        let role = roles.get_opt("owners").await.ok()?;
        let binding = bindings.get_opt("owners").await.ok()?;
        (role.is_none() && binding.is_none()).then_some(())
    })
    .await;
    until("the owner may no more", async || {
        (!can(&session, ADA, "list", "agentsessions", &namespace).await).then_some(())
    })
    .await;
}

/// Once, it took ten minutes: the copy had no binding to take away, and the watch's word of our own write woke nobody.
#[tokio::test]
async fn an_owner_who_is_one_no_more_before_the_watch_tells_of_the_binding_may_nothing() {
    let session = World::alone().await;
    let made = session.settled_tenant("fleeting", json!({})).await;
    let (name, namespace) = (made.name_any(), made.namespace_name());
    let stalled = session.world.proxy.inject(Method::GET, "/rolebindings?", What::Stall, None);
    session.world.proxy.cut_watches();
    until("the watch stands still", async || (stalled.hits() > 0).then_some(())).await;
    let tenants = session.all::<AgentTenant>();
    let owners = json!([{ "kind": "User", "name": ADA.0 }]);
    session.merge(&tenants, &name, json!({ "spec": { "owners": owners } })).await;
    until("the owner may", async || can(&session, ADA, "list", "agentsessions", &namespace).await.then_some(())).await;
    session.merge(&tenants, &name, json!({ "spec": { "owners": null } })).await;
    until("the owner may no more", async || {
        (!can(&session, ADA, "list", "agentsessions", &namespace).await).then_some(())
    })
    .await;
    drop(stalled);
}

/// Once, the operator's own write was forgotten long before the watches were given up that did not tell of it.
#[tokio::test]
async fn an_owner_who_is_one_no_more_may_nothing_however_long_the_watches_are_deaf() {
    let session = World::alone().await;
    let made = session.settled_tenant("lingering", json!({})).await;
    let (name, namespace) = (made.name_any(), made.namespace_name());
    let deaf =
        ["/roles?", "/rolebindings?"].map(|path| session.world.proxy.inject(Method::GET, path, What::Hold, None));
    session.world.proxy.cut_watches();
    until("the watches stand still", async || deaf.iter().all(|watch| watch.hits() > 0).then_some(())).await;
    let tenants = session.all::<AgentTenant>();
    let owners = json!([{ "kind": "User", "name": ADA.0 }]);
    session.merge(&tenants, &name, json!({ "spec": { "owners": owners } })).await;
    until("the owner may", async || can(&session, ADA, "list", "agentsessions", &namespace).await.then_some(())).await;
    let before = deaf.each_ref().map(Injected::hits);
    until("the watches are given up", async || (0..2).all(|watch| deaf[watch].hits() > before[watch]).then_some(()))
        .await;
    session.merge(&tenants, &name, json!({ "spec": { "owners": null } })).await;
    let (roles, bindings) = (session.within::<Role>(&namespace), session.within::<RoleBinding>(&namespace));
    until("both are gone", async || {
        let role = roles.get_opt("owners").await.ok()?;
        let binding = bindings.get_opt("owners").await.ok()?;
        (role.is_none() && binding.is_none()).then_some(())
    })
    .await;
    until("the owner may no more", async || {
        (!can(&session, ADA, "list", "agentsessions", &namespace).await).then_some(())
    })
    .await;
    drop(deaf);
}

/// The chart's roles for people, with what Helm would fill in left out: labels that no rule looks at.
fn roles_of_the_chart() -> Vec<Value> {
    let template = include_str!("../../../charts/croft/templates/people.yaml");
    let text = template.replace("{{- include \"croft.labels\" . | nindent 4 }}", "");
    assert!(!text.contains("{{"), "Helm fills in more than this test knows of");
    let roles = serde_yaml::Deserializer::from_str(&text).map(|role| Value::deserialize(role).expect("it is YAML"));
    roles.collect()
}

const VERA: Who = Who("vera@example.com", &[]);
const ED: Who = Who("ed@example.com", &[]);
const ADAM: Who = Who("adam@example.com", &[]);
const PAT: Who = Who("pat@example.com", &[]);

/// Each word is who may: v(iew), e(dit) and a(dmin) of the tenant's namespace, p(latform admin) of the cluster.
#[tokio::test]
async fn kubernetes_own_roles_and_the_platform_admins_reach_as_far_as_the_chart_says() {
    let session = World::shared().await;
    let made = session.settled_tenant("peopled", json!({})).await;
    let other = session.settled_tenant("unpeopled", json!({})).await;
    let (own, others) = (made.namespace_name(), other.namespace_name());
    let roles = session.all::<ClusterRole>();
    for role in roles_of_the_chart() {
        let name = role["metadata"]["name"].as_str().expect("it has a name").to_owned();
        roles.patch(&name, &PatchParams::apply("croft-test").force(), &Patch::Apply(&role)).await.expect("it is taken");
    }
    let subject = |who: Who| json!([{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": who.0 }]);
    let role = |name: &str| json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name });
    for (who, name) in [(VERA, "view"), (ED, "edit"), (ADAM, "admin")] {
        let binding = json!({ "metadata": { "name": name }, "roleRef": role(name), "subjects": subject(who) });
        let binding: RoleBinding = serde_json::from_value(binding).expect("it is one");
        session.within(&own).create(&PostParams::default(), &binding).await.expect("it can be bound");
    }
    let platform = json!({
        "metadata": { "name": own, "labels": { crate::world::TEST_LABEL: "true" } },
        "roleRef": role("croft-platform-admin"), "subjects": subject(PAT),
    });
    let platform: ClusterRoleBinding = serde_json::from_value(platform).expect("it is one");
    let bindings = session.all::<ClusterRoleBinding>();
    bindings.create(&PostParams::default(), &platform).await.expect("it can be bound");
    until("the API server has heard of the bindings, and the roles are added up", async || {
        let all = can(&session, ADAM, "deletecollection", "agentsessions", &own).await
            && can(&session, ED, "create", "agentsessions", &own).await
            && can(&session, VERA, "get", "agentsessions", &own).await
            && can(&session, PAT, "create", "agenttenants", "").await;
        all.then_some(())
    })
    .await;

    let mut wrong = Vec::new();
    for (verb, resource, namespace, may) in [
        ("get", "agentsessions", own.as_str(), "veap"),
        ("list", "agentsessions", &own, "veap"),
        ("watch", "agentsessions", &own, "veap"),
        ("get", "agentsessions/status", &own, "veap"),
        ("create", "agentsessions", &own, "eap"),
        ("update", "agentsessions", &own, "eap"),
        ("patch", "agentsessions", &own, "eap"),
        ("delete", "agentsessions", &own, "eap"),
        ("deletecollection", "agentsessions", &own, "ap"),
        ("patch", "agentsessions/status", &own, ""),
        ("update", "agentsessions/status", &own, ""),
        ("get", "agentsessions", &others, "p"),
        ("create", "agentsessions", &others, "p"),
        ("list", "agentsessions", "", "p"),
        ("get", "agenttenants", "", "p"),
        ("list", "agenttenants", "", "p"),
        ("create", "agenttenants", "", "p"),
        ("patch", "agenttenants", "", "p"),
        ("delete", "agenttenants", "", "p"),
        ("get", "agenttenants/status", "", "p"),
        ("patch", "agenttenants/status", "", ""),
        ("update", "agenttenants/finalizers", "", ""),
        ("get", "secrets", &others, ""),
        ("create", "pods", &others, ""),
        ("delete", "namespaces", "", ""),
    ] {
        for (letter, who) in [('v', VERA), ('e', ED), ('a', ADAM), ('p', PAT)] {
            let expected = may.contains(letter);
            if can(&session, who, verb, resource, namespace).await != expected {
                wrong.push(format!("{} {verb} {resource} in {namespace:?} must be {expected}", who.0));
            }
        }
    }
    bindings.delete(&own, &DeleteParams::default()).await.expect("it can be taken back");
    assert_eq!(wrong, [""; 0]);
}
