//! The configuration snapshot: what a session runs is fixed when it is created, and its hash says so.

use croft_proto::v1::AgentSpec;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::Error;

/// Hex of the SHA-256 of the agent's canonical form.
///
/// Two specs that mean the same have the same hash: keys are sorted, also inside JSON schemas of tools and guardrails, and white space
/// doesn't count. Fields that are at their default don't count either (protobuf JSON leaves them out), so a field that a
/// later version adds changes no hash.
pub fn config_hash(agent: &AgentSpec) -> Result<String, Error> {
    let mut value = serde_json::to_value(agent).map_err(Error::internal)?;
    parse_schemas(&mut value);
    for sub_agent in value.get_mut("subAgents").and_then(Value::as_array_mut).into_iter().flatten() {
        parse_schemas(sub_agent);
    }
    Ok(hex::encode(canonical_hash(&value)))
}

fn parse_schemas(agent: &mut Value) {
    parse_within(agent, "tools", "/inputSchemaJson");
    parse_within(agent, "guardrails", "/jsonSchema/schemaJson");
}

/// Puts what a text of JSON says in the text's place, in each item of a list.
fn parse_within(value: &mut Value, list: &str, pointer: &str) {
    for item in value.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(text) = item.pointer_mut(pointer) else { continue };
        if let Some(parsed) = text.as_str().and_then(|text| serde_json::from_str(text).ok()) {
            *text = parsed;
        }
    }
}

/// SHA-256 of a JSON value, whatever the order of its keys.
pub fn canonical_hash(value: &Value) -> [u8; 32] {
    let mut canonical = String::new();
    write_canonical(value, &mut canonical);
    Sha256::digest(canonical.as_bytes()).into()
}

/// Sorts keys itself: whether `serde_json::Map` does is a feature that any crate in the build may switch.
fn write_canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<_> = map.keys().collect();
            keys.sort();
            out.push('{');
            for (position, key) in keys.into_iter().enumerate() {
                if position > 0 {
                    out.push(',');
                }
                out.push_str(&Value::String(key.clone()).to_string());
                out.push(':');
                write_canonical(&map[key], out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (position, item) in items.iter().enumerate() {
                if position > 0 {
                    out.push(',');
                }
                write_canonical(item, out);
            }
            out.push(']');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use croft_proto::v1::guardrail_spec::Check;
    use croft_proto::v1::{AgentLimits, GuardrailSpec, JsonSchemaCheck, ToolSpec};
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    fn agent(schema: &str) -> AgentSpec {
        AgentSpec {
            name: "helper".into(),
            model: "scripted-1".into(),
            tools: vec![ToolSpec { name: "clock".into(), input_schema_json: schema.into(), ..ToolSpec::default() }],
            ..AgentSpec::default()
        }
    }

    #[test]
    fn order_and_white_space_of_a_schema_do_not_count() {
        let one = config_hash(&agent(r#"{"type":"object","properties":{"a":{},"b":{}}}"#)).unwrap();
        let other = config_hash(&agent(r#"{ "properties": {"b": {}, "a": {}}, "type": "object" }"#)).unwrap();
        assert_eq!(one, other);
        assert_eq!(one.len(), 64);
    }

    #[test]
    fn sub_agents_count_and_the_order_in_their_schemas_does_not() {
        let over = |schema: &str| AgentSpec { sub_agents: vec![agent(schema)], ..agent("{}") };
        let one = config_hash(&over(r#"{"type":"object","required":["a"]}"#)).unwrap();
        assert_eq!(one, config_hash(&over(r#"{ "required": ["a"], "type": "object" }"#)).unwrap());
        assert_ne!(one, config_hash(&over("{}")).unwrap());
        assert_ne!(one, config_hash(&agent("{}")).unwrap());
    }

    fn stored(file: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto/tests/stored").join(file);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn stored_agent(file: &str) -> AgentSpec {
        AgentSpec::decode(STANDARD.decode(stored(file).trim()).unwrap().as_slice()).unwrap()
    }

    /// Both hashes are in databases and audit logs. A field that is renamed, or written at its default, would change them.
    #[test]
    fn what_an_earlier_release_stored_is_the_same_agent_with_the_same_hash() {
        let agent = stored_agent("agent.base64");
        let json: Value = serde_json::from_str(&stored("agent.json")).unwrap();
        assert_eq!(serde_json::to_value(&agent).unwrap(), json);
        assert_eq!(serde_json::from_value::<AgentSpec>(json).unwrap(), agent);
        assert_eq!(config_hash(&agent).unwrap(), "bf8b770847f1c3ce891d1b8be2889cb067dd08626228770e84618c7b75c39ab9");
        assert_eq!(
            config_hash(&stored_agent("digger.base64")).unwrap(),
            "3079ec6cb3d050d851cda80493e710d848b0a2860b7a3a05b16272c20549e968"
        );
    }

    #[test]
    fn what_an_agent_does_counts() {
        let one = config_hash(&agent("{}")).unwrap();
        let mut changed = agent("{}");
        changed.system_prompt = "Be brief.".into();
        assert_ne!(one, config_hash(&changed).unwrap());
    }

    #[test]
    fn guardrails_and_budgets_count_and_the_order_in_their_schemas_does_not() {
        let guarded = |schema: &str| {
            let check = Some(Check::JsonSchema(JsonSchemaCheck { schema_json: schema.into() }));
            AgentSpec { guardrails: vec![GuardrailSpec { check, ..GuardrailSpec::default() }], ..agent("{}") }
        };
        let one = config_hash(&guarded(r#"{"type":"object","required":["a"]}"#)).unwrap();
        assert_eq!(one, config_hash(&guarded(r#"{ "required": ["a"], "type": "object" }"#)).unwrap());
        assert_ne!(one, config_hash(&guarded(r#"{"type":"object"}"#)).unwrap());
        let limits = Some(AgentLimits { budget_tokens: 5, ..AgentLimits::default() });
        let plain = config_hash(&agent("{}")).unwrap();
        assert_ne!(plain, config_hash(&AgentSpec { limits, ..agent("{}") }).unwrap());
    }

    fn shuffled(value: &Value, seed: u64) -> String {
        match value {
            Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                if !entries.is_empty() {
                    let turn = usize::try_from(seed).unwrap_or(0) % entries.len();
                    entries.rotate_left(turn);
                }
                let body: Vec<_> = entries
                    .into_iter()
                    .map(|(key, value)| format!("{} : {}", Value::String(key.clone()), shuffled(value, seed / 2)))
                    .collect();
                format!("{{ {} }}", body.join(" , "))
            }
            Value::Array(items) => {
                format!("[{}]", items.iter().map(|item| shuffled(item, seed)).collect::<Vec<_>>().join(", "))
            }
            scalar => scalar.to_string(),
        }
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-z\"\\\\]{0,6}".prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 24, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-z]{1,4}", inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_order_of_any_schema_has_one_hash(schema in json(), seed in 0_u64..64) {
            let straight = config_hash(&agent(&schema.to_string())).unwrap();
            prop_assert_eq!(straight, config_hash(&agent(&shuffled(&schema, seed))).unwrap());
        }
    }
}
