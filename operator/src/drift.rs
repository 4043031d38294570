//! Whether an object in the cluster is still what we want it to be.
//!
//! Two questions, because neither answers alone. The *hash* of what we want, kept in an annotation, tells that our mind
//! has changed, also when it no longer wants a field. *Covering* tells that someone else changed a field of ours. What
//! others add, and what the API server fills in, is none of our business: server-side apply would not remove it either.

use croft_crds::quantity;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The SHA-256 of `wanted` as JSON, in hex. The kinds of `k8s_openapi` write their fields in a fixed order.
pub fn hash(wanted: &impl Serialize) -> String {
    let json = serde_json::to_vec(wanted).expect("an object of Kubernetes is plain data");
    hex::encode(Sha256::digest(json))
}

/// Whether everything in `wanted` is in `live` with the same value.
pub fn covers(live: &impl Serialize, wanted: &impl Serialize) -> bool {
    value_covers(&json(live), &json(wanted), Meaning::Plain)
}

fn json(object: &impl Serialize) -> Value {
    serde_json::to_value(object).expect("an object of Kubernetes is plain data")
}

/// What the strings right below a field mean.
#[derive(Clone, Copy, PartialEq)]
enum Meaning {
    Plain,
    /// Amounts, which the API server rewrites: `1000m` comes back as `1`.
    Amounts,
}

impl Meaning {
    fn below(field: &str) -> Self {
        match field {
            "hard" | "requests" | "limits" | "default" | "defaultRequest" | "max" | "min" => Self::Amounts,
            _ => Self::Plain,
        }
    }
}

fn value_covers(live: &Value, wanted: &Value, meaning: Meaning) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => wanted.iter().all(|(field, wanted)| match live.get(field) {
            Some(live) if merges(field) => list_holds(live, wanted),
            // An amount sits right below its field; objects below keep their own meaning.
            Some(live) if wanted.is_string() => value_covers(live, wanted, meaning),
            Some(live) => value_covers(live, wanted, Meaning::below(field)),
            // The API server leaves out what says nothing.
            None => is_empty(wanted),
        }),
        (Value::Array(live), Value::Array(wanted)) => {
            live.len() == wanted.len()
                && live.iter().zip(wanted).all(|(live, wanted)| value_covers(live, wanted, Meaning::Plain))
        }
        (Value::String(live), Value::String(wanted)) if meaning == Meaning::Amounts => {
            live == wanted || quantity::nanos(live).is_some_and(|amount| quantity::nanos(wanted) == Some(amount))
        }
        _ => live == wanted,
    }
}

/// Lists that server-side apply merges item by item, so that others may have added to them.
fn merges(field: &str) -> bool {
    matches!(field, "containers" | "env" | "volumes" | "volumeMounts" | "ownerReferences" | "finalizers")
}

fn list_holds(live: &Value, wanted: &Value) -> bool {
    let (Some(live), Some(wanted)) = (live.as_array(), wanted.as_array()) else { return live == wanted };
    wanted.iter().all(|wanted| live.iter().any(|live| value_covers(live, wanted, Meaning::Plain)))
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.values().all(is_empty),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_api_server_fills_in_is_no_drift() {
        let wanted = json!({ "spec": { "ports": [{ "port": 50052 }], "selector": { "a": "b" }, "podSelector": {} } });
        let live = json!({
            "metadata": { "resourceVersion": "7" },
            "spec": { "ports": [{ "port": 50052, "protocol": "TCP" }], "selector": { "a": "b" }, "type": "ClusterIP" },
        });
        assert!(covers(&live, &wanted));
    }

    #[test]
    fn an_amount_in_another_spelling_is_no_drift() {
        let wanted = json!({ "hard": { "limits.cpu": "1000m", "limits.memory": "1.5Gi" } });
        assert!(covers(&json!({ "hard": { "limits.cpu": "1", "limits.memory": "1536Mi", "pods": "3" } }), &wanted));
        assert!(!covers(&json!({ "hard": { "limits.cpu": "2", "limits.memory": "1536Mi" } }), &wanted));
    }

    #[test]
    fn a_text_that_looks_like_an_amount_is_a_text() {
        let wanted = json!({ "data": { "version": "1000m" } });
        assert!(!covers(&json!({ "data": { "version": "1" } }), &wanted));
    }

    #[test]
    fn an_edited_removed_or_added_rule_is_drift() {
        let wanted = json!({ "egress": [{ "to": [{ "ipBlock": { "cidr": "10.0.0.0/8" } }] }] });
        for live in [
            json!({ "egress": [{ "to": [{ "ipBlock": { "cidr": "0.0.0.0/0" } }] }] }),
            json!({ "egress": [] }),
            json!({}),
            json!({ "egress": [{ "to": [{ "ipBlock": { "cidr": "10.0.0.0/8" } }] }, {}] }),
            json!({ "egress": [{ "to": [{ "ipBlock": { "cidr": "10.0.0.0/8" } }, {}] }] }),
        ] {
            assert!(!covers(&live, &wanted), "{live}");
        }
    }

    #[test]
    fn an_entry_that_others_added_to_a_merged_list_is_theirs() {
        let wanted = json!({ "containers": [{ "name": "worker", "env": [{ "name": "A", "value": "1" }] }] });
        let live = json!({ "containers": [
            { "name": "sidecar" },
            { "name": "worker", "image": "x", "env": [{ "name": "B" }, { "name": "A", "value": "1" }] },
        ] });
        assert!(covers(&live, &wanted));
        let edited = json!({ "containers": [{ "name": "worker", "env": [{ "name": "A", "value": "2" }] }] });
        assert!(!covers(&edited, &wanted));
    }

    #[test]
    fn the_hash_tells_that_a_field_is_no_longer_wanted() {
        assert_eq!(hash(&json!({ "a": 1 })), hash(&json!({ "a": 1 })));
        assert_ne!(hash(&json!({ "a": 1 })), hash(&json!({ "a": 1, "b": 2 })));
    }
}
