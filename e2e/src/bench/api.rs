//! The objects that benchmarks make and look at. They are untyped: what is measured is the programs, not our own types.

use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use serde_json::{Value, json};

/// What all children of tenants are found by.
pub const CHILDREN: &str = "app.kubernetes.io/managed-by=croft,croft.dev/tenant";

/// The kinds of which a tenant may have a child. A kind that isn't listed here isn't measured.
const CHILD_KINDS: [(&str, &str, &str); 12] = [
    ("", "Namespace", "namespaces"),
    ("", "ResourceQuota", "resourcequotas"),
    ("", "LimitRange", "limitranges"),
    ("", "ServiceAccount", "serviceaccounts"),
    ("", "ConfigMap", "configmaps"),
    ("", "Secret", "secrets"),
    ("", "Service", "services"),
    ("apps", "Deployment", "deployments"),
    ("networking.k8s.io", "NetworkPolicy", "networkpolicies"),
    ("policy", "PodDisruptionBudget", "poddisruptionbudgets"),
    ("rbac.authorization.k8s.io", "Role", "roles"),
    ("rbac.authorization.k8s.io", "RoleBinding", "rolebindings"),
];

/// The kinds of tenants' children.
pub fn child_kinds() -> Vec<ApiResource> {
    CHILD_KINDS.iter().map(|(group, kind, plural)| resource(group, "v1", kind, plural)).collect()
}

pub fn namespaces() -> ApiResource {
    resource("", "v1", "Namespace", "namespaces")
}

pub fn agent_tenants() -> ApiResource {
    resource("croft.dev", "v1alpha1", "AgentTenant", "agenttenants")
}

pub fn agent_sessions() -> ApiResource {
    resource("croft.dev", "v1alpha1", "AgentSession", "agentsessions")
}

fn resource(group: &str, version: &str, kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
}

/// All objects of a kind.
pub fn all(client: &Client, kind: &ApiResource) -> Api<DynamicObject> {
    Api::all_with(client.clone(), kind)
}

/// Those in a namespace.
pub fn within(client: &Client, namespace: &str, kind: &ApiResource) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), namespace, kind)
}

/// An AgentTenant.
pub fn tenant(name: &str, spec: &Value) -> DynamicObject {
    DynamicObject::new(name, &agent_tenants()).data(json!({ "spec": spec }))
}

/// An AgentSession of the scripted model.
pub fn session(name: &str, namespace: &str) -> DynamicObject {
    let spec = json!({ "agent": { "model": "scripted-1", "systemPrompt": "Be brief." } });
    DynamicObject::new(name, &agent_sessions()).within(namespace).data(json!({ "spec": spec }))
}

/// Whether the object's condition `kind` is `True`.
pub fn is_true(object: &DynamicObject, kind: &str) -> bool {
    let conditions = object.data["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|condition| condition["type"] == kind && condition["status"] == "True")
}
