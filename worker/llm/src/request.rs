//! What we ask of a model, in no provider's terms.

use croft_proto::v1::Message;
use serde_json::Value;

use crate::refusals::Part;

/// One call of a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Request {
    /// The provider's id of the model.
    pub model: String,
    /// The system prompt; empty means none.
    pub system: String,
    /// The conversation, oldest first. Adapters merge neighbours of one role where their provider demands turns.
    pub messages: Vec<Message>,
    pub tools: Vec<ToolDefinition>,
    pub output_tokens_max: u32,
    pub temperature: Option<f64>,
    /// What the model is known to refuse. Adapters leave it out, or put it in the other way.
    pub refused: Vec<Part>,
}

/// A tool as the model sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolDefinition {
    pub name: String,
    pub description: String,
    /// JSON Schema of the arguments.
    pub input_schema: Value,
}
