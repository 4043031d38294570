//! What tests have mirrored.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::ObjectMeta;

/// An object in a tenant's namespace, as it is at this version.
pub(super) fn named(name: &str, version: &str) -> ConfigMap {
    let metadata = ObjectMeta {
        name: Some(name.into()),
        namespace: Some("tenant-heron".into()),
        resource_version: Some(version.into()),
        ..ObjectMeta::default()
    };
    ConfigMap { metadata, ..ConfigMap::default() }
}
