//! What a container in the tenant's namespace gets that asks for nothing, so that the quota refuses no such pod.

use k8s_openapi::api::core::v1::{LimitRange, LimitRangeItem, LimitRangeSpec};

use super::wanted::Wanted;

/// See it with `kubectl -n tenant-acme describe limitrange tenant`.
pub(crate) fn limit_range(wanted: &Wanted) -> LimitRange {
    LimitRange {
        metadata: wanted.child_meta("tenant"),
        spec: Some(LimitRangeSpec {
            limits: vec![LimitRangeItem {
                type_: "Container".to_owned(),
                default: Some(wanted.workers.limits.to_map()),
                default_request: Some(wanted.workers.requests.to_map()),
                // No `max`: the quota is one already, and names itself when it refuses.
                ..LimitRangeItem::default()
            }],
        }),
    }
}
