//! A model as a file for `croft-front models apply` names it.

use croft_proto::v1::Model;
use serde_json::Value;

/// One of a list of them. What it does not name stays as it is in the tables; no aliases at all are named by an empty list, which a
/// [`Model`] does not tell from none.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub model: Model,
    /// The model goes by its aliases alone from now on, be they none.
    pub names_aliases: bool,
}

impl Entry {
    /// Reads the protobuf JSON of a [`Model`]. Fails with what is wrong in it.
    pub fn read(json: Value) -> Result<Self, serde_json::Error> {
        let names_aliases = json.get("aliases").is_some_and(Value::is_array);
        serde_json::from_value(json).map(|model| Self { model, names_aliases })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_empty_list_of_aliases_is_not_none() {
        for (aliases, named) in [(json!({}), false), (json!({"aliases": []}), true), (json!({"aliases": ["m"]}), true)]
        {
            let mut json = json!({"modelId": "m-5", "provider": "openai"});
            json.as_object_mut().unwrap().extend(aliases.as_object().unwrap().clone());
            assert_eq!(Entry::read(json).unwrap().names_aliases, named, "{aliases}");
        }
    }
}
