//! Does for a structural schema what the API server does: types, bounds, patterns, fields that nobody knows, and lists in
//! which nothing may be twice.

use jsonschema::error::ValidationErrorKind;
use serde_json::{Value, json};

/// Finds what doesn't fit one schema.
pub(crate) struct Misfits {
    schema: Value,
    validator: jsonschema::Validator,
}

impl Misfits {
    pub(crate) fn of(schema: &Value) -> Self {
        let validator = jsonschema::validator_for(&closed(schema)).expect("the schema is one");
        Self { schema: schema.clone(), validator }
    }

    /// The field and what is wrong with it, for each.
    pub(crate) fn find(&self, object: &Value) -> Vec<String> {
        let mut object = object.clone();
        // Not in the schema: the API server judges them by itself.
        for field in ["apiVersion", "kind", "metadata"] {
            object.as_object_mut().expect("an object").remove(field);
        }
        let mut told: Vec<String> = self.validator.iter_errors(&object).flat_map(|error| named(&error)).collect();
        twice(&self.schema, &object, "", &mut told);
        told
    }
}

fn named(error: &jsonschema::ValidationError<'_>) -> Vec<String> {
    let path = dotted(error.instance_path().as_str());
    let fields = match error.kind() {
        ValidationErrorKind::Required { property } => vec![join(&path, property.as_str().unwrap_or_default())],
        ValidationErrorKind::AdditionalProperties { unexpected } => {
            unexpected.iter().map(|field| join(&path, field)).collect()
        }
        _ => vec![path],
    };
    fields.into_iter().map(|field| format!("{field}: {error}")).collect()
}

/// No fields but those that are listed, as strict field validation wants it.
fn closed(schema: &Value) -> Value {
    match schema {
        Value::Object(fields) => {
            let mut fields: serde_json::Map<_, _> =
                fields.iter().map(|(field, value)| (field.clone(), closed(value))).collect();
            let is_object =
                fields.get("properties").is_some_and(|properties| properties.get("type").is_none_or(Value::is_object));
            let is_open = fields.get("x-kubernetes-preserve-unknown-fields") == Some(&json!(true));
            if is_object && !is_open && fields.get("type") == Some(&json!("object")) {
                fields.entry("additionalProperties").or_insert(json!(false));
            }
            if fields.get("x-kubernetes-int-or-string") == Some(&json!(true)) {
                fields.insert("type".to_owned(), json!(["integer", "string"]));
            }
            Value::Object(fields)
        }
        Value::Array(items) => items.iter().map(closed).collect(),
        other => other.clone(),
    }
}

fn twice(schema: &Value, value: &Value, at: &str, told: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                twice(&schema["properties"][field], value, &join(at, field), told);
            }
        }
        Value::Array(items) => {
            let keys = schema["x-kubernetes-list-map-keys"].as_array();
            let key = |item: &Value| match keys {
                Some(keys) => keys.iter().map(|key| item[key.as_str().unwrap_or_default()].clone()).collect(),
                None => item.clone(),
            };
            for (index, item) in items.iter().enumerate() {
                let at = format!("{at}[{index}]");
                let unique = ["set", "map"].map(Value::from).contains(&schema["x-kubernetes-list-type"]);
                if unique && items[..index].iter().any(|earlier| key(earlier) == key(item)) {
                    told.push(format!("{at}: is there twice"));
                }
                twice(&schema["items"], item, &at, told);
            }
        }
        _ => {}
    }
}

/// `/spec/tools/0/name` as `spec.tools[0].name`.
fn dotted(pointer: &str) -> String {
    pointer.split('/').skip(1).fold(String::new(), |path, part| match part.parse::<usize>() {
        Ok(index) => format!("{path}[{index}]"),
        Err(_) => join(&path, part),
    })
}

fn join(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}
