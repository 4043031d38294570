//! The corpus, judged in Rust by the schemas and rules that the API server gets, and requests by the same policies.

mod columns;
#[path = "../corpus/mod.rs"]
mod corpus;
mod policies;
mod schema;

use std::sync::LazyLock;

use croft_crds::generate::definitions;
use kube::core::cel::Validator;
use serde_json::{Value, json};

use corpus::Case;

/// Judges objects of one kind.
struct Judge {
    schema: Value,
    misfits: schema::Misfits,
}

impl Judge {
    fn of(plural: &str) -> Self {
        let definition = definitions().into_iter().find(|kind| kind.spec.names.plural == plural).expect("our kind");
        let schema = definition.spec.versions[0].schema.clone().and_then(|schema| schema.open_api_v3_schema);
        let schema = serde_json::to_value(schema).expect("plain data");
        Self { misfits: schema::Misfits::of(&schema), schema }
    }

    /// What is said against an object; nothing if it is taken.
    fn refusals(&self, case: &Case) -> Vec<String> {
        // The API server runs no rule on what doesn't fit the schema.
        let misfits = self.misfits.find(&case.object);
        if !misfits.is_empty() {
            return misfits;
        }
        let judged = Validator::new().validate_with_defaults(&self.schema, &case.object, case.before.as_ref());
        judged.err().map(|errors| errors.as_slice().iter().map(ToString::to_string).collect()).unwrap_or_default()
    }
}

fn refusals(case: &Case) -> Vec<String> {
    static TENANTS: LazyLock<Judge> = LazyLock::new(|| Judge::of("agenttenants"));
    static SESSIONS: LazyLock<Judge> = LazyLock::new(|| Judge::of("agentsessions"));
    if case.plural == "agenttenants" { TENANTS.refusals(case) } else { SESSIONS.refusals(case) }
}

#[test]
fn what_is_nonsense_is_refused_with_a_sentence() {
    let cases = corpus::invalid();
    assert!(cases.len() >= 60, "{} are too few", cases.len());
    for case in cases {
        let said = refusals(&case).join("\n");
        // What the schema says is in the API server's words there and not here, so here the field must do.
        let wanted = case.at.clone().or(case.says.clone()).expect("a sentence or a field");
        assert!(said.contains(&wanted), "{}: wanted {wanted:?}, got {said:?}", case.object);
    }
}

#[test]
fn what_is_sound_is_taken() {
    for case in corpus::valid() {
        let said = refusals(&case);
        assert!(said.is_empty(), "{}: {said:?}", case.object);
    }
}

#[test]
fn the_types_read_and_keep_all_that_is_sound() {
    for case in corpus::valid() {
        let read_and_written = match case.plural {
            "agenttenants" => {
                serde_json::to_value(serde_json::from_value::<croft_crds::AgentTenant>(case.object.clone()).unwrap())
            }
            _ => serde_json::to_value(serde_json::from_value::<croft_crds::AgentSession>(case.object.clone()).unwrap()),
        }
        .unwrap();
        missing(&case.object["spec"], &read_and_written["spec"], "spec");
    }
}

/// Fails if something of `before` is not in `after`, other than what says no more than its absence.
fn missing(before: &Value, after: &Value, at: &str) {
    match (before, after) {
        (Value::Object(before), after) => {
            for (field, value) in before {
                let empty = [json!({}), json!([]), json!(false)].contains(value);
                assert!(empty || after.get(field).is_some(), "{at}.{field} is lost");
                if let Some(after) = after.get(field) {
                    missing(value, after, &format!("{at}.{field}"));
                }
            }
        }
        (Value::Array(before), Value::Array(after)) => {
            assert_eq!(before.len(), after.len(), "{at}");
            before.iter().zip(after).for_each(|(before, after)| missing(before, after, at));
        }
        // Amounts are kept as text.
        (Value::Number(before), Value::String(after)) => assert_eq!(&before.to_string(), after, "{at}"),
        (Value::Number(before), Value::Number(after)) => assert_eq!(before.as_f64(), after.as_f64(), "{at}"),
        _ => assert_eq!(before, after, "{at}"),
    }
}
