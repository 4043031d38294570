//! The arguments of a tool call on their way back to a model.

use serde_json::{Map, Value};

/// The arguments as the object that providers demand. What the model wrote and is none comes back to it as the text that
/// it was.
pub(crate) fn arguments(arguments_json: &str) -> Map<String, Value> {
    match serde_json::from_str(arguments_json) {
        Ok(Value::Object(arguments)) => arguments,
        _ => Map::from_iter([("unparsed".to_owned(), arguments_json.into())]),
    }
}
