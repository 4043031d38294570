//! A scanner in JSON: it sees texts as they are meant, not as they are escaped, and what it replaces leaves JSON behind.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::{Map, Value};

use super::scan::{Scanner, redacted};
use crate::tools::integers;

/// What is found in a key, a text or a number.
pub(super) fn find(value: &Value, scanner: &dyn Scanner) -> Option<&'static str> {
    let in_text = |text: &str| scanner.find(text, 0).map(|finding| finding.what);
    match value {
        Value::String(text) => in_text(text),
        Value::Number(number) => in_text(&integers::read(number)),
        Value::Array(items) => items.iter().find_map(|item| find(item, scanner)),
        Value::Object(fields) => fields.iter().find_map(|(key, value)| in_text(key).or_else(|| find(value, scanner))),
        Value::Null | Value::Bool(_) => None,
    }
}

/// Replaces what is found; whether anything was. A number in which something is found becomes a text.
pub(super) fn redact(value: &mut Value, scanner: &dyn Scanner) -> bool {
    match value {
        Value::String(text) => match redacted(scanner, text) {
            Cow::Borrowed(_) => false,
            Cow::Owned(replaced) => {
                *text = replaced;
                true
            }
        },
        Value::Number(number) => match redacted(scanner, &integers::read(number)) {
            Cow::Borrowed(_) => false,
            Cow::Owned(replaced) => {
                *value = Value::String(replaced);
                true
            }
        },
        Value::Array(items) => {
            let mut found = false;
            for item in items {
                found |= redact(item, scanner);
            }
            found
        }
        Value::Object(fields) => {
            let mut found = false;
            let mut renamed = Vec::new();
            for (key, mut value) in std::mem::take(fields) {
                found |= redact(&mut value, scanner);
                let new_key = match redacted(scanner, &key) {
                    Cow::Borrowed(_) => None,
                    Cow::Owned(new_key) => Some(new_key),
                };
                if let Some(new_key) = new_key {
                    renamed.push((new_key, value));
                } else {
                    fields.insert(key, value);
                }
            }
            found |= !renamed.is_empty();
            rename(renamed, fields);
            found
        }
        Value::Null | Value::Bool(_) => false,
    }
}

/// Adds entries whose keys were replaced. Two keys may come to the same, or to one that is there: each but the first then
/// counts on, since none of the values may be lost.
fn rename(renamed: Vec<(String, Value)>, fields: &mut Map<String, Value>) {
    let mut counts: HashMap<String, u64> = HashMap::new();
    for (key, value) in renamed {
        let count = counts.entry(key.clone()).or_insert(1);
        let mut free = key.clone();
        // Ends, as the fields do.
        while fields.contains_key(&free) {
            *count += 1;
            free = format!("{key}_{count}");
        }
        fields.insert(free, value);
    }
}
