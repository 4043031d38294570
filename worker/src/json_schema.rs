//! A JSON Schema of an agent, and values held to it. Tenants write both, so neither opening a schema nor holding a value to one
//! takes a worker's threads, its memory or its time from other sessions.

mod extent;

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use jsonschema::{PatternOptions, Validator};
use serde_json::Value;
use tokio::sync::Semaphore;

/// How long one value may take. At the bound it counts as one that does not fit.
const TIME_MAX: Duration = Duration::from_secs(1);
/// Values that are looked at at a time. One that takes too long keeps its place until it is through, since nothing can end it.
const AT_A_TIME_MAX: usize = 8;
/// A schema that is as deep as it may be, over a value that is as deep as JSON is read.
const STACK_BYTES: usize = 64 * 1024 * 1024;
/// Bytes of one compiled pattern, and of the cache that a search with it may use.
const PATTERN_BYTES_MAX: usize = 256 * 1024;
/// Steps back of one search. At the bound the pattern does not match.
const STEPS_BACK_MAX: usize = 100_000;

static PLACES: Semaphore = Semaphore::const_new(AT_A_TIME_MAX);

/// See the module.
pub(crate) struct JsonSchema {
    validator: Arc<Validator>,
}

impl JsonSchema {
    /// Fails with what is wrong with the schema, after "its schema".
    pub(crate) fn open(schema: &Value) -> Result<Self, String> {
        extent::check(schema)?;
        let patterns = PatternOptions::fancy_regex()
            .size_limit(PATTERN_BYTES_MAX)
            .dfa_size_limit(PATTERN_BYTES_MAX)
            .backtrack_limit(STEPS_BACK_MAX);
        let validator = jsonschema::options()
            .with_pattern_options(patterns)
            .build(schema)
            .map_err(|error| format!("is no JSON Schema: {error}"))?;
        Ok(Self { validator: Arc::new(validator) })
    }

    /// The value, if it fits; otherwise what does not.
    pub(crate) async fn hold(&self, value: Value) -> Result<Value, String> {
        let late = || format!("it took longer than {} ms to look at", TIME_MAX.as_millis());
        let place = tokio::time::timeout(TIME_MAX, PLACES.acquire()).await;
        let Ok(Ok(place)) = place else { return Err(late()) };
        let validator = Arc::clone(&self.validator);
        let waiting = move || {
            let (sender, outcome) = mpsc::sync_channel(1);
            // One of the runtime's own would be waited for at the end of the process.
            let held = thread::Builder::new().name("json-schema".to_owned()).stack_size(STACK_BYTES).spawn(move || {
                let problem = fault(&validator, &value);
                drop(place);
                // Nobody waits any more once the time is up.
                drop(sender.send(problem.map_or(Ok(value), Err)));
            });
            held.is_ok().then(|| outcome.recv_timeout(TIME_MAX).ok()).flatten()
        };
        tokio::task::spawn_blocking(waiting).await.ok().flatten().unwrap_or_else(|| Err(late()))
    }
}

fn fault(validator: &Validator, value: &Value) -> Option<String> {
    // The other way to look remembers nothing of what it saw before.
    if validator.is_valid(value) {
        return None;
    }
    Some(validator.validate(value).err().map_or_else(|| "it does not fit".to_owned(), |error| error.to_string()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// So many definitions, each of which is two of the one before.
    fn doubling(definitions: usize) -> Value {
        let twice = |number: usize| json!({"allOf": [{"$ref": format!("#/$defs/{number}")}, {"$ref": format!("#/$defs/{number}")}]});
        let mut defs = serde_json::Map::new();
        defs.insert("0".to_owned(), json!({"type": "string"}));
        for number in 1..=definitions {
            defs.insert(number.to_string(), twice(number - 1));
        }
        json!({"$defs": defs, "$ref": format!("#/$defs/{definitions}")})
    }

    #[test]
    fn a_schema_that_unfolds_without_measure_is_refused_before_it_is_compiled() {
        let refused = JsonSchema::open(&doubling(60)).err().unwrap();
        assert_eq!(refused, "unfolds to more than 10000 parts");
        assert!(JsonSchema::open(&doubling(8)).is_ok());
    }

    #[tokio::test]
    async fn a_value_fits_or_is_told_what_is_wrong_with_it() {
        let tree = json!({"type": "object", "properties": {"next": {"$ref": "#"}, "name": {"type": "string"}}});
        let schema = JsonSchema::open(&tree).unwrap();
        let fits = json!({"next": {"next": {"name": "leaf"}}});
        assert_eq!(schema.hold(fits.clone()).await, Ok(fits));
        let problem = schema.hold(json!({"next": {"next": {"name": 7}}})).await.unwrap_err();
        assert_eq!(problem, "7 is not of type \"string\"");
    }

    #[tokio::test]
    async fn a_value_that_takes_too_long_does_not_fit_and_others_are_looked_at_meanwhile() {
        let many: Vec<_> = (0..2_000).map(|least| json!({"minLength": least % 3})).collect();
        let schema = JsonSchema::open(&json!({"items": {"allOf": many}})).unwrap();
        let problem = schema.hold(vec!["abc"; 50_000].into()).await.unwrap_err();
        assert_eq!(problem, "it took longer than 1000 ms to look at");
        assert_eq!(schema.hold(json!(["abc"])).await, Ok(json!(["abc"])));
    }

    #[tokio::test]
    async fn a_schema_as_deep_as_it_may_be_takes_a_value_as_deep_as_it_may_be() {
        let mut defs = serde_json::Map::new();
        for number in 0..100 {
            defs.insert(number.to_string(), json!({"$ref": format!("#/$defs/{}", number + 1)}));
        }
        defs.insert("100".to_owned(), json!({"items": {"$ref": "#"}}));
        let schema = JsonSchema::open(&json!({"$defs": defs, "$ref": "#/$defs/0"})).unwrap();
        let deep: Value = serde_json::from_str(&format!("{}{}", "[".repeat(127), "]".repeat(127))).unwrap();
        assert_eq!(schema.hold(deep.clone()).await, Ok(deep));
    }
}
