//! What this release can read of a tenant that a later one has written. Fronts must hear of such a tenant, as they would take it for removed,
//! and workers must be stopped where it says so.

use croft_crds::AgentTenant;
use serde_json::{Value, json};

use crate::mirror::{Unreadable, mark_in_part};

/// The tenant with what can be read of it. A field that can't is as it last could be, in the copy that is `known`, and else as in a spec
/// that leaves it out. If there are some in the spec it takes no new session: nobody knows what it should be allowed. A status is the
/// operator's own, so that of it nothing is missed.
pub(super) fn salvage(unreadable: &Unreadable, known: Option<&AgentTenant>) -> Option<AgentTenant> {
    let mut content = unreadable.content.clone();
    let known = known.and_then(|known| serde_json::to_value(&known.spec).ok()).unwrap_or_default();
    let is_in_part = mend(&mut content, "spec", |field, value| left_of(field, value, known.get(field)));
    mend(&mut content, "status", |_, _| None);
    let mut tenant: AgentTenant = serde_json::from_value(content).ok()?;
    tenant.metadata = unreadable.metadata.clone();
    if is_in_part {
        tenant.spec.cordon = true;
        mark_in_part(&mut tenant);
    }
    Some(tenant)
}

/// Puts what is `left` of it in the place of each field of a part that can't be read, and says whether there was any.
fn mend(content: &mut Value, part: &str, left: impl Fn(&str, Value) -> Option<Value>) -> bool {
    let Some(fields) = content.get_mut(part).and_then(Value::as_object_mut) else { return false };
    let mut is_in_part = false;
    for (field, value) in std::mem::take(fields) {
        let can_be_read = reads(part, json!({ &field: value }));
        is_in_part |= !can_be_read;
        if let Some(value) = if can_be_read { Some(value) } else { left(&field, value) } {
            fields.insert(field, value);
        }
    }
    is_in_part
}

/// Of a field of a spec. One word that can't be read takes neither the cap of its budget with it nor the other limits and providers, as
/// the sessions that run go on by them.
fn left_of(field: &str, value: Value, known: Option<&Value>) -> Option<Value> {
    let reads = |value: &Value| reads("spec", json!({ field: value }));
    let inside = match (field, value) {
        ("budget" | "limits", Value::Object(bounds)) => {
            let left = |(name, value): (String, Value)| {
                let value = if reads(&json!({ &name: value })) { value } else { known?.get(&name)?.clone() };
                Some((name, value))
            };
            Some(bounds.into_iter().filter_map(left).collect())
        }
        ("llm", Value::Object(mut llm)) => {
            if let Some(providers) = llm.get_mut("providers").and_then(Value::as_array_mut) {
                let known = known.and_then(|known| known.get("providers")).and_then(Value::as_array);
                let left = |provider: Value| {
                    let is_it = |known: &&Value| known.get("name") == provider.get("name");
                    if reads(&json!({ "providers": [&provider] })) {
                        Some(provider)
                    } else {
                        known?.iter().find(is_it).cloned()
                    }
                };
                *providers = std::mem::take(providers).into_iter().filter_map(left).collect();
            }
            Some(Value::Object(llm))
        }
        _ => None,
    };
    inside.filter(reads).or_else(|| known.cloned())
}

/// Whether a tenant can be read that has nothing but these fields of a part.
fn reads(part: &str, fields: Value) -> bool {
    let mut alone = json!({ "metadata": {}, "spec": {} });
    alone[part] = fields;
    serde_json::from_value::<AgentTenant>(alone).is_ok()
}

#[cfg(test)]
mod tests {
    use croft_crds::tenant::{OnExceeded, Tier};

    use super::*;
    use crate::mirror::is_in_part;

    fn salvaged(spec: &Value, status: &Value) -> AgentTenant {
        salvaged_with(spec, status, None)
    }

    fn salvaged_with(spec: &Value, status: &Value, known: Option<&AgentTenant>) -> AgentTenant {
        let metadata = json!({ "name": "heron", "uid": "0c9e" });
        let content = json!({ "metadata": metadata, "spec": spec, "status": status });
        let metadata = serde_json::from_value(metadata).unwrap();
        let unreadable = Unreadable { error: "unknown variant".to_owned(), metadata, content };
        salvage(&unreadable, known).unwrap()
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
    fn one_later_word_takes_neither_the_cap_nor_the_other_bounds_and_providers() {
        let spec = json!({
            "budget": { "monthlyUsd": "5", "onExceeded": "Haggle" },
            "limits": { "maxSessions": 7, "requestsPerMinute": "many" },
            "llm": { "providers": [{ "name": "openai" }, { "name": "later" }] },
        });
        let tenant = salvaged(&spec, &json!({}));
        assert!(is_in_part(&tenant) && tenant.spec.cordon);
        assert_eq!((tenant.spec.budget.monthly_usd.as_deref(), tenant.spec.budget.on_exceeded), (Some("5"), None));
        assert_eq!((tenant.spec.limits.max_sessions, tenant.spec.limits.requests_per_minute), (Some(7), None));
        let providers: Vec<_> = tenant.spec.llm.providers.iter().map(|provider| provider.name.as_str()).collect();
        assert_eq!(providers, ["openai"]);
    }

    #[test]
    fn what_cant_be_read_is_as_it_last_could_be() {
        let known = AgentTenant::new(
            "heron",
            serde_json::from_value(json!({
                "tier": "free",
                "budget": { "monthlyUsd": "5", "onExceeded": "Throttle" },
                "limits": { "maxSessions": 7 },
                "llm": { "providers": [{ "name": "openai", "source": "Platform" }, { "name": "anthropic" }] },
            }))
            .unwrap(),
        );
        let spec = json!({
            "tier": "later",
            "budget": { "monthlyUsd": "6", "onExceeded": "Haggle" },
            "limits": "none",
            "llm": { "providers": [{ "name": "openai", "source": "Later" }] },
        });
        let tenant = salvaged_with(&spec, &json!({}), Some(&known));
        assert!(is_in_part(&tenant) && tenant.spec.cordon);
        assert_eq!(tenant.spec.tier, Tier::Free);
        assert_eq!(tenant.spec.budget.monthly_usd.as_deref(), Some("6"));
        assert_eq!(tenant.spec.budget.on_exceeded, Some(OnExceeded::Throttle));
        assert_eq!(tenant.spec.limits.max_sessions, Some(7));
        assert_eq!(tenant.spec.llm.providers, known.spec.llm.providers[..1]);
    }

    #[test]
    fn a_status_with_a_later_word_is_written_anew() {
        let tenant = salvaged(&json!({ "tier": "free" }), &json!({ "phase": "Hovering", "namespace": "tenant-heron" }));
        assert!(!is_in_part(&tenant) && !tenant.spec.cordon);
        let status = tenant.status.unwrap();
        assert_eq!((status.phase, status.namespace.as_deref()), (None, Some("tenant-heron")));
    }
}
