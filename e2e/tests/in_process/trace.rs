//! A tool that tells in which trace it is called.

use async_trait::async_trait;
use croft_proto::v1::ContentBlock;
use croft_serve::trace::traceparent;
use croft_worker::tools::{Error, Invocation, Tool, text};
use serde_json::{Value, json};

/// The tool `trace`.
pub(crate) struct Trace;

#[async_trait]
impl Tool for Trace {
    fn description(&self) -> &'static str {
        "Tells its trace."
    }

    fn input_schema(&self) -> Value {
        json!({ "type": "object" })
    }

    async fn call(&self, _: Invocation) -> Result<Vec<ContentBlock>, Error> {
        Ok(text(traceparent().unwrap_or_default()))
    }
}
