//! A tool that is another agent. It runs in a session of its own, which the front has; what stands here is what the model is told of it.

use async_trait::async_trait;
use croft_proto::v1::ContentBlock;
use serde_json::{Value, json};

use super::{Error, Invocation, Tool};

/// See the module.
pub(super) struct SubAgent {
    description: String,
}

impl SubAgent {
    pub(super) fn new(agent: &str) -> Self {
        let description = format!(
            "Has the agent {agent} do something and tells what it answers. It knows nothing of this conversation but what it is told."
        );
        Self { description }
    }
}

#[async_trait]
impl Tool for SubAgent {
    fn description(&self) -> &str {
        &self.description
    }

    fn input_schema(&self) -> Value {
        json!({
            "type": "object",
            "properties": { "message": { "type": "string", "minLength": 1, "description": "All that it needs to know." } },
            "required": ["message"],
            "additionalProperties": false,
        })
    }

    async fn call(&self, _: Invocation) -> Result<Vec<ContentBlock>, Error> {
        Err(Error("A sub-agent runs at the front.".into()))
    }
}
