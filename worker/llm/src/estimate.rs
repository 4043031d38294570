//! The tokens of requests and conversations, reckoned from their texts: see [`croft_proto::estimate`].

use croft_proto::estimate::{TOKEN, tokens, weight};
use croft_proto::v1::content_block::Block;
use croft_proto::v1::{ContentBlock, Message};

use crate::request::Request;

/// What an image is reckoned at; providers charge about this for a picture of a usual size.
const IMAGE_TOKENS: usize = 1_600;

/// The input tokens of a whole request.
pub fn input_tokens(request: &Request) -> u32 {
    let tools: usize = request
        .tools
        .iter()
        .map(|tool| weight(&tool.name) + weight(&tool.description) + weight(&tool.input_schema.to_string()))
        .sum();
    tokens(weight(&request.system) + tools + request.messages.iter().map(message_weight).sum::<usize>())
}

/// The input tokens of messages alone.
pub fn conversation_tokens(messages: &[Message]) -> u32 {
    tokens(messages.iter().map(message_weight).sum())
}

fn message_weight(message: &Message) -> usize {
    content_weight(&message.content)
}

/// What blocks weigh; an image weighs what it would as text.
pub fn content_weight(content: &[ContentBlock]) -> usize {
    content
        .iter()
        .filter_map(|block| block.block.as_ref())
        .map(|block| match block {
            Block::Text(text) => weight(&text.text),
            Block::Image(_) => IMAGE_TOKENS * TOKEN,
            Block::Thinking(thinking) => weight(&thinking.text) + thinking.redacted_data.len(),
            Block::ToolUse(call) => weight(&call.name) + weight(&call.arguments_json),
            Block::ToolOutput(output) => content_weight(&output.content),
            Block::Native(native) => weight(&native.json),
        })
        .sum()
}
