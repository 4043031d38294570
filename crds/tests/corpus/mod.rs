//! Objects and requests with what must become of them, for whoever judges: the rules in Rust, and a real API server.

pub(crate) mod requests;

use std::path::Path;

use serde_json::{Map, Value, json};

/// One object.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    /// `agenttenants` or `agentsessions`.
    pub(crate) plural: &'static str,
    /// The sentence that must be in the refusal; none if it must be taken.
    pub(crate) says: Option<String>,
    /// The field that must be named too.
    pub(crate) at: Option<String>,
    pub(crate) object: Value,
    /// What it is an update of.
    pub(crate) before: Option<Value>,
}

/// All that must be refused.
pub(crate) fn invalid() -> Vec<Case> {
    let both = [("agenttenants", "invalid-tenants.yaml"), ("agentsessions", "invalid-sessions.yaml")];
    let cases = both.into_iter().flat_map(|(plural, file)| read(plural, file)).collect::<Vec<_>>();
    assert!(cases.iter().all(|case| case.says.is_some()), "a sentence is expected of each");
    cases
}

/// All that must be taken.
pub(crate) fn valid() -> Vec<Case> {
    let both = [("agenttenants", "valid-tenants.yaml"), ("agentsessions", "valid-sessions.yaml")];
    both.into_iter().flat_map(|(plural, file)| read(plural, file)).collect()
}

/// Reads a file beside this one.
pub(crate) fn yaml(file: &str) -> Vec<Map<String, Value>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds/tests/corpus").join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn read(plural: &'static str, file: &str) -> Vec<Case> {
    let (kind, name, namespace) = match plural {
        "agenttenants" => ("AgentTenant", "heron", None),
        _ => ("AgentSession", "talk", Some("tenant-heron")),
    };
    let cases = yaml(file).into_iter().map(|mut case| {
        let name = case.remove("name").unwrap_or_else(|| json!(name));
        let object = |spec: Value| {
            let mut object = json!({
                "apiVersion": "croft.dev/v1alpha1", "kind": kind, "metadata": { "name": name }, "spec": spec,
            });
            if let Some(namespace) = namespace {
                object["metadata"]["namespace"] = namespace.into();
            }
            object
        };
        let text = |value: Option<Value>| value.map(|value| value.as_str().expect("a sentence").to_owned());
        let case_read = Case {
            plural,
            object: object(case.remove("spec").unwrap_or_else(|| json!({}))),
            before: case.remove("before").map(object),
            says: text(case.remove("says")),
            at: text(case.remove("at")),
        };
        assert!(case.is_empty(), "{file} has more than is read: {case:?}");
        case_read
    });
    cases.collect()
}
