//! The tenant's owners in the cluster: they may manage its declared sessions, and nothing else.

use croft_crds::GROUP;
use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};

use super::wanted::Wanted;

/// The Role's name, and the RoleBinding's.
pub(crate) const NAME: &str = "owners";
/// The API group of both.
const RBAC: &str = "rbac.authorization.k8s.io";

/// See it with `kubectl -n tenant-acme describe role owners`. None without owners.
pub(crate) fn role(wanted: &Wanted) -> Option<Role> {
    let rule = |resource: &str, verbs: &[&str]| PolicyRule {
        api_groups: Some(vec![GROUP.to_owned()]),
        resources: Some(vec![resource.to_owned()]),
        verbs: verbs.iter().map(|&verb| verb.to_owned()).collect(),
        ..PolicyRule::default()
    };
    (!wanted.owners.is_empty()).then(|| Role {
        metadata: wanted.child_meta(NAME),
        rules: Some(vec![
            rule("agentsessions", &["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"]),
            // The status is the operator's to write.
            rule("agentsessions/status", &["get"]),
        ]),
    })
}

/// See it with `kubectl -n tenant-acme describe rolebinding owners`. None without owners.
pub(crate) fn role_binding(wanted: &Wanted) -> Option<RoleBinding> {
    let subjects = wanted.owners.iter().map(|owner| Subject {
        // A ServiceAccount is of the core group, which the API server writes as nothing at all.
        api_group: owner.namespace.is_none().then(|| RBAC.to_owned()),
        kind: owner.kind.as_str().to_owned(),
        name: owner.name.clone(),
        namespace: owner.namespace.clone(),
    });
    (!wanted.owners.is_empty()).then(|| RoleBinding {
        metadata: wanted.child_meta(NAME),
        role_ref: RoleRef { api_group: Some(RBAC.to_owned()), kind: "Role".to_owned(), name: NAME.to_owned() },
        subjects: Some(subjects.collect()),
    })
}
