//! What a tenant's owners may do in the cluster: the table of `kubectl auth can-i`, asked of a real API server.

use croft_crds::AgentTenant;
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::ResourceExt as _;
use kube::api::PostParams;
use serde_json::json;

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
