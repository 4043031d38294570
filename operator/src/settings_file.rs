//! Reads the files that the operator is given at its start, and tells every mistake in them in a sentence.

use std::fmt::Display;
use std::path::Path;

use croft_serve::settings::Release;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Reads `path`, which the flag called `flag` names, with `parse`, which is told who wrote it. Fails with sentences that name the file.
pub(crate) fn read<T>(
    path: &Path,
    flag: &str,
    parse: impl FnOnce(&str, &Release) -> Result<T, Vec<String>>,
) -> Result<T, Vec<String>> {
    let read = std::fs::read_to_string(path).map_err(|error| vec![format!("it can't be read: {error}.")]);
    let told = |mistakes: Vec<String>| {
        mistakes.into_iter().map(|mistake| format!("{} of {flag} is not usable: {mistake}", path.display())).collect()
    };
    read.and_then(|text| parse(&text, &Release::beside(path))).map_err(told)
}

/// Reads YAML. Of our own release a field that `T` doesn't know is a mistake however deep it lies: it is more likely a typing error than
/// meant for someone else. Of another's it is left out.
pub(crate) fn parse<T: DeserializeOwned + Serialize>(text: &str, release: &Release) -> Result<T, Vec<String>> {
    let unreadable = |error: &dyn Display| vec![format!("it can't be read: {error}.")];
    let told: Value = serde_yaml::from_str(text).map_err(|error| unreadable(&error))?;
    let read: T = release.read(text).map_err(|error| unreadable(&error))?;
    if *release != Release::Own {
        return Ok(read);
    }
    let known = serde_json::to_value(&read).map_err(|error| unreadable(&error))?;
    let mut unknown = Vec::new();
    compare(&told, &known, "", &mut unknown);
    let sentence = |path: String| format!("{path} is no field that is known here.");
    if unknown.is_empty() { Ok(read) } else { Err(unknown.into_iter().map(sentence).collect()) }
}

fn compare(told: &Value, known: &Value, path: &str, unknown: &mut Vec<String>) {
    match (told, known) {
        (Value::Object(told), Value::Object(known)) => {
            for (field, told) in told {
                let path = if path.is_empty() { field.clone() } else { format!("{path}.{field}") };
                match known.get(field) {
                    Some(known) => compare(told, known, &path, unknown),
                    None if is_empty(told) => {}
                    None => unknown.push(path),
                }
            }
        }
        (Value::Array(told), Value::Array(known)) => {
            for (index, (told, known)) in told.iter().zip(known).enumerate() {
                compare(told, known, &format!("{path}[{index}]"), unknown);
            }
        }
        _ => {}
    }
}

/// What says nothing is left out when it is written again.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}
