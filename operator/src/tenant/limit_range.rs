//! What a container in the tenant's namespace gets that asks for nothing, so that the quota refuses no such pod.

use k8s_openapi::api::core::v1::{LimitRange, LimitRangeItem, LimitRangeSpec};

use super::wanted::{Resources, Wanted};

/// See it with `kubectl -n tenant-acme describe limitrange tenant`.
pub(crate) fn limit_range(wanted: &Wanted) -> LimitRange {
    let most = Resources { cpu: wanted.quota.cpu.clone(), memory: wanted.quota.memory.clone() };
    LimitRange {
        metadata: wanted.child_meta("tenant"),
        spec: Some(LimitRangeSpec {
            limits: vec![LimitRangeItem {
                type_: "Container".to_owned(),
                default: Some(wanted.workers.limits.to_map()),
                default_request: Some(wanted.workers.requests.to_map()),
                max: Some(most.to_map()),
                ..LimitRangeItem::default()
            }],
        }),
    }
}
