//! A JSON Schema of an agent, and values held to it. Tenants write both, so neither opening a schema nor holding a value to one
//! takes a worker's threads, its memory or its time from other sessions.

mod extent;

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use jsonschema::{PatternOptions, Validator};
use serde_json::Value;
use tokio::sync::{Semaphore, SemaphorePermit};

/// How long one value may take. At the bound nobody waits for it any more.
const TIME_MAX: Duration = Duration::from_secs(1);
/// The time is waited for in so many parts: of one in which the whole process stood still no more than that part is lost.
const TIME_PARTS: u32 = 20;
/// How long a value may wait for its place, and then for its thread. At the bound it counts as one that took too long.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// Values that are looked at at a time. One that takes too long keeps its place until it is through, since nothing can end it.
const AT_A_TIME_MAX: usize = 8;
/// A schema that is as deep as it may be, over a value that is as deep as JSON is read.
const STACK_BYTES: usize = 64 * 1024 * 1024;
/// Bytes of one compiled pattern, and of the cache that a search with it may use.
const PATTERN_BYTES_MAX: usize = 256 * 1024;
/// Steps back of one search. At the bound the pattern does not match.
const STEPS_BACK_MAX: usize = 100_000;

static PLACES: Semaphore = Semaphore::const_new(AT_A_TIME_MAX);

/// Why a value is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unfit {
    /// Nobody knows whether it fits.
    #[error("it took longer than {} ms to look at", TIME_MAX.as_millis())]
    Late,
    /// It does not, for this reason.
    #[error("{0}")]
    Fault(String),
}

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

    /// The value, if it fits; otherwise why it is not taken.
    pub(crate) async fn hold(&self, value: Value) -> Result<Value, Unfit> {
        // One that is free is taken however late it is.
        let place = match PLACES.try_acquire() {
            Ok(place) => place,
            Err(_) => match tokio::time::timeout(WAIT_MAX, PLACES.acquire()).await {
                Ok(Ok(place)) => place,
                Ok(Err(_)) | Err(_) => return Err(Unfit::Late),
            },
        };
        let validator = Arc::clone(&self.validator);
        tokio::task::spawn_blocking(move || looked_at(validator, value, place)).await.unwrap_or(Err(Unfit::Late))
    }
}

/// Has another thread look, which is left behind when the time is up.
fn looked_at(validator: Arc<Validator>, value: Value, place: SemaphorePermit<'static>) -> Result<Value, Unfit> {
    let (begin, running) = mpsc::channel::<()>();
    let (end, outcome) = mpsc::sync_channel(1);
    let look = move || {
        drop(begin);
        let fault = fault(&validator, &value);
        drop(place);
        // Nobody waits any more once the time is up.
        drop(end.send(fault.map_or(Ok(value), |fault| Err(Unfit::Fault(fault)))));
    };
    // One of the runtime's own would be waited for at the end of the process.
    let thread = thread::Builder::new().name("json-schema".to_owned()).stack_size(STACK_BYTES).spawn(look);
    // The time is the validator's own: a machine that has none to spare says nothing of the value.
    if thread.is_err() || running.recv_timeout(WAIT_MAX) == Err(RecvTimeoutError::Timeout) {
        return Err(Unfit::Late);
    }
    (0..TIME_PARTS).find_map(|_| outcome.recv_timeout(TIME_MAX / TIME_PARTS).ok()).unwrap_or(Err(Unfit::Late))
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

    #[test]
    fn a_reference_to_nothing_is_refused_where_it_counts() {
        for schema in [json!({"items": {"$ref": "#/$defs/none"}}), json!({"$ref": "https://elsewhere.test/schema"})] {
            assert!(JsonSchema::open(&schema).err().unwrap().starts_with("is no JSON Schema"), "{schema}");
        }
        let shown = json!({"properties": {"where": {"default": {"$ref": "#none"}, "enum": [{"$ref": "none"}]}}});
        assert!(JsonSchema::open(&shown).is_ok());
    }

    #[tokio::test]
    async fn a_value_fits_or_is_told_what_is_wrong_with_it() {
        let tree = json!({"type": "object", "properties": {"next": {"$ref": "#"}, "name": {"type": "string"}}});
        let schema = JsonSchema::open(&tree).unwrap();
        let fits = json!({"next": {"next": {"name": "leaf"}}});
        assert_eq!(schema.hold(fits.clone()).await, Ok(fits));
        let problem = schema.hold(json!({"next": {"next": {"name": 7}}})).await.unwrap_err();
        assert_eq!(problem, Unfit::Fault("7 is not of type \"string\"".to_owned()));
    }

    #[tokio::test]
    async fn a_value_that_takes_too_long_is_given_up_and_others_are_looked_at_meanwhile() {
        let many: Vec<_> = (0..2_000).map(|least| json!({"minLength": least % 3})).collect();
        let schema = JsonSchema::open(&json!({"items": {"allOf": many}})).unwrap();
        let problem = schema.hold(vec!["abc"; 50_000].into()).await.unwrap_err();
        assert_eq!(problem, Unfit::Late);
        assert_eq!(problem.to_string(), "it took longer than 1000 ms to look at");
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
