//! A tool that takes longer than anyone wants to wait.

use std::time::Duration;

use async_trait::async_trait;
use croft_proto::v1::{BuiltinTool, ContentBlock, ReplayClass, ToolSpec, tool_spec};
use croft_worker::tools::{Error, Invocation, Tool};
use serde_json::{Value, json};

/// What has the agent take one.
pub(crate) const SCRIPT: &str = r#"{"script": [{"tool_call": {"name": "nap", "arguments": {}}}, {"text": "rested"}]}"#;

/// The tool `nap`.
pub(crate) struct Nap;

#[async_trait]
impl Tool for Nap {
    fn description(&self) -> &'static str {
        "Takes a nap."
    }

    fn input_schema(&self) -> Value {
        json!({ "type": "object" })
    }

    async fn call(&self, _: Invocation) -> Result<Vec<ContentBlock>, Error> {
        tokio::time::sleep(Duration::from_mins(10)).await;
        Ok(Vec::new())
    }
}

/// For an agent that may take one.
pub(crate) fn spec() -> ToolSpec {
    ToolSpec {
        name: "nap".into(),
        source: Some(tool_spec::Source::Builtin(BuiltinTool { name: "nap".into() })),
        replay: ReplayClass::Safe.into(),
        ..ToolSpec::default()
    }
}
