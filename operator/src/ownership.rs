//! Which fields the API server holds to be ours, and how an object that we created becomes one that we apply.
//!
//! To create costs the API server a fifth less than to apply, but leaves our fields under an entry for *updates*, from which no
//! apply ever takes one away: what we no longer want would stay for ever. So before an object is applied for the first
//! time, that entry is made one for *applies*. The API server takes such a list from whoever may change the object:
//! <https://kubernetes.io/docs/reference/using-api/server-side-apply/#upgrading-from-client-side-apply-to-server-side-apply>.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry};
use serde_json::Value;

use crate::writes::FIELD_MANAGER;

const APPLY: &str = "Apply";
const UPDATE: &str = "Update";

/// Whether the object was created by us and never applied since.
pub(crate) fn is_created(entries: &[ManagedFieldsEntry]) -> bool {
    entries.iter().any(is_ours_by_update)
}

/// Leaves of the list what [`is_created`] needs, as the rest is a third of an object or more.
pub(crate) fn keep_note(entries: &mut Option<Vec<ManagedFieldsEntry>>) {
    let note = |entry: ManagedFieldsEntry| {
        is_ours_by_update(&entry).then(|| ManagedFieldsEntry {
            manager: entry.manager,
            operation: entry.operation,
            ..ManagedFieldsEntry::default()
        })
    };
    *entries = entries.take().into_iter().flatten().find_map(note).map(|note| vec![note]);
}

/// The list as it would be had we applied rather than created; `None` if it is so already.
pub(crate) fn as_applied(mut entries: Vec<ManagedFieldsEntry>) -> Option<Vec<ManagedFieldsEntry>> {
    let at = entries.iter().position(is_ours_by_update)?;
    let mut created = entries.remove(at);
    if let Some(applied) = entries.iter_mut().find(|entry| is_ours(entry, APPLY)) {
        merge(applied.fields_v1.get_or_insert(FieldsV1(Value::Null)), created.fields_v1);
    } else {
        created.operation = Some(APPLY.to_owned());
        entries.push(created);
    }
    Some(entries)
}

fn is_ours_by_update(entry: &ManagedFieldsEntry) -> bool {
    is_ours(entry, UPDATE)
}

/// Of the object itself: a status is never applied.
fn is_ours(entry: &ManagedFieldsEntry, operation: &str) -> bool {
    entry.manager.as_deref() == Some(FIELD_MANAGER)
        && entry.operation.as_deref() == Some(operation)
        && entry.subresource.as_deref().unwrap_or_default().is_empty()
}

/// Both sets of fields as one. A set is a tree of objects, whose leaves are empty.
fn merge(into: &mut FieldsV1, other: Option<FieldsV1>) {
    fn add(into: &mut Value, other: Value) {
        match (into, other) {
            (Value::Object(into), Value::Object(other)) => {
                for (field, below) in other {
                    add(into.entry(field).or_insert(Value::Null), below);
                }
            }
            (into @ Value::Null, other) => *into = other,
            _ => {}
        }
    }
    add(&mut into.0, other.map_or(Value::Null, |other| other.0));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(manager: &str, operation: &str, subresource: Option<&str>, fields: Value) -> ManagedFieldsEntry {
        ManagedFieldsEntry {
            manager: Some(manager.to_owned()),
            operation: Some(operation.to_owned()),
            subresource: subresource.map(str::to_owned),
            fields_v1: Some(FieldsV1(fields)),
            ..ManagedFieldsEntry::default()
        }
    }

    #[test]
    fn what_was_created_is_as_if_it_had_been_applied() {
        let other = entry("kube-controller-manager", UPDATE, Some("status"), json!({ "f:status": {} }));
        let status = entry(FIELD_MANAGER, UPDATE, Some("status"), json!({ "f:status": {} }));
        let created = entry(FIELD_MANAGER, UPDATE, None, json!({ "f:spec": { "f:hard": {} } }));
        let applied = entry(FIELD_MANAGER, APPLY, None, json!({ "f:spec": { "f:hard": {} } }));
        let entries = vec![other.clone(), created, status.clone()];
        assert!(is_created(&entries));
        assert_eq!(as_applied(entries), Some(vec![other.clone(), status.clone(), applied.clone()]));
        let entries = vec![other, status, applied];
        assert!(!is_created(&entries));
        assert_eq!(as_applied(entries), None);
    }

    #[test]
    fn what_was_applied_over_a_creation_is_held_once() {
        let entries = vec![
            entry(FIELD_MANAGER, APPLY, None, json!({ "f:spec": { "f:a": {} } })),
            entry(FIELD_MANAGER, UPDATE, None, json!({ "f:spec": { "f:a": {}, "f:b": {} }, "f:data": {} })),
        ];
        let both = json!({ "f:spec": { "f:a": {}, "f:b": {} }, "f:data": {} });
        assert_eq!(as_applied(entries), Some(vec![entry(FIELD_MANAGER, APPLY, None, both)]));
    }

    #[test]
    fn a_note_says_the_same_as_the_whole_list() {
        let created = entry(FIELD_MANAGER, UPDATE, None, json!({ "f:spec": {} }));
        let applied = entry(FIELD_MANAGER, APPLY, None, json!({ "f:spec": {} }));
        for (entries, kept) in [(vec![applied.clone(), created], 1), (vec![applied], 0), (Vec::new(), 0)] {
            let mut note = Some(entries.clone());
            keep_note(&mut note);
            let note = note.unwrap_or_default();
            assert_eq!((is_created(&note), note.len()), (is_created(&entries), kept));
            assert!(note.iter().all(|entry| entry.fields_v1.is_none()));
        }
    }
}
