//! The tenant's namespace, in which only pods under the `restricted` standard may run.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Namespace;
use kube::api::ObjectMeta;

use super::wanted::Wanted;

/// See it with `kubectl get namespace tenant-acme -o yaml`.
pub(crate) fn namespace(wanted: &Wanted) -> Namespace {
    let mut labels = wanted.labels();
    labels.extend(pod_security());
    Namespace {
        metadata: ObjectMeta {
            name: Some(wanted.namespace.clone()),
            labels: Some(labels),
            owner_references: Some(vec![wanted.owner.clone()]),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    }
}

/// <https://kubernetes.io/docs/concepts/security/pod-security-admission/>
fn pod_security() -> BTreeMap<String, String> {
    ["enforce", "audit", "warn"]
        .map(|mode| (format!("pod-security.kubernetes.io/{mode}"), "restricted".to_owned()))
        .into()
}
