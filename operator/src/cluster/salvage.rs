//! What this release can read of a tenant that a later one has written. Fronts must hear of such a tenant, as they would take it for removed,
//! and workers must be stopped where it says so.

use croft_crds::AgentTenant;
use serde_json::{Value, json};

use crate::mirror::{Unreadable, mark_in_part};

/// The tenant without the fields that can't be read, which are as in a spec that leaves them out. If there are some in the spec it takes no
/// new session: nobody knows what it should be allowed. A status is the operator's own, so that of it nothing is missed.
pub(super) fn salvage(unreadable: &Unreadable) -> Option<AgentTenant> {
    let mut content = unreadable.content.clone();
    let is_in_part = prune(&mut content, "spec");
    prune(&mut content, "status");
    let mut tenant: AgentTenant = serde_json::from_value(content).ok()?;
    tenant.metadata = unreadable.metadata.clone();
    if is_in_part {
        tenant.spec.cordon = true;
        mark_in_part(&mut tenant);
    }
    Some(tenant)
}

/// Takes out what can't be read of a part, and says whether there was anything.
fn prune(content: &mut Value, part: &str) -> bool {
    let Some(fields) = content.get_mut(part).and_then(Value::as_object_mut) else { return false };
    let before = fields.len();
    fields.retain(|field, value| {
        let mut alone = json!({ "metadata": {}, "spec": {} });
        alone[part] = json!({ field: value });
        serde_json::from_value::<AgentTenant>(alone).is_ok()
    });
    fields.len() < before
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::is_in_part;

    fn salvaged(spec: &Value, status: &Value) -> AgentTenant {
        let metadata = json!({ "name": "heron", "uid": "0c9e" });
        let content = json!({ "metadata": metadata, "spec": spec, "status": status });
        let metadata = serde_json::from_value(metadata).unwrap();
        salvage(&Unreadable { error: "unknown variant".to_owned(), metadata, content }).unwrap()
    }

    #[test]
    fn what_can_be_read_of_a_spec_holds_and_nothing_new_is_let_in() {
        let spec = json!({ "tier": "later", "emergencyStop": true, "limits": { "maxSessions": 7 } });
        let tenant = salvaged(&spec, &json!({ "phase": "Ready" }));
        assert!(is_in_part(&tenant) && tenant.spec.cordon && tenant.spec.emergency_stop);
        assert_eq!(tenant.spec.limits.max_sessions, Some(7));
        assert_eq!(tenant.metadata.uid.as_deref(), Some("0c9e"));
    }

    #[test]
    fn a_status_with_a_later_word_is_written_anew() {
        let tenant = salvaged(&json!({ "tier": "free" }), &json!({ "phase": "Hovering", "namespace": "tenant-heron" }));
        assert!(!is_in_part(&tenant) && !tenant.spec.cordon);
        let status = tenant.status.unwrap();
        assert_eq!((status.phase, status.namespace.as_deref()), (None, Some("tenant-heron")));
    }
}
