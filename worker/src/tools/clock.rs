//! Tells the time, after a nap if asked: a slow tool for demonstrations and tests.

use std::time::Duration;

use async_trait::async_trait;
use croft_proto::v1::ContentBlock;
use serde_json::{Value, json};

use super::{Error, Invocation, Tool, text};

/// The longest nap. A longer one is refused.
const SLEEP_MS_MAX: u64 = 600_000;

/// `clock`: the time in UTC, as RFC 3339.
pub struct Clock;

#[async_trait]
impl Tool for Clock {
    fn description(&self) -> &'static str {
        "Tells the date and time in UTC. Can sleep for some milliseconds first."
    }

    fn input_schema(&self) -> Value {
        json!({
            "type": "object",
            "properties": {"sleep_ms": {"type": "integer", "minimum": 0, "maximum": SLEEP_MS_MAX}},
            "additionalProperties": false,
        })
    }

    async fn call(&self, invocation: Invocation) -> Result<Vec<ContentBlock>, Error> {
        let sleep_ms = invocation.arguments.get("sleep_ms").and_then(Value::as_u64).unwrap_or_default();
        if sleep_ms > SLEEP_MS_MAX {
            return Err(Error(format!("sleep_ms must be at most {SLEEP_MS_MAX}.")));
        }
        tokio::time::sleep(Duration::from_millis(sleep_ms)).await;
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        Ok(text(now))
    }
}
