//! Token counts reckoned from text, for when no provider counted: before a call, and after one that broke off.

use croft_proto::v1::content_block::Block;
use croft_proto::v1::{ContentBlock, Message};

use crate::request::Request;

/// What an image is reckoned at; providers charge about this for a picture of a usual size.
const IMAGE_TOKENS: usize = 1_600;
/// Characters a token in common prose and code.
const CHARACTERS_A_TOKEN: usize = 4;

/// The tokens of a text of so many characters, rounded up.
pub fn tokens(characters: usize) -> u32 {
    u32::try_from(characters.div_ceil(CHARACTERS_A_TOKEN)).unwrap_or(u32::MAX)
}

/// The input tokens of a whole request.
pub fn input_tokens(request: &Request) -> u32 {
    let tools: usize = request
        .tools
        .iter()
        .map(|tool| tool.name.len() + tool.description.len() + tool.input_schema.to_string().len())
        .sum();
    tokens(request.system.chars().count() + tools + request.messages.iter().map(message_characters).sum::<usize>())
}

/// The input tokens of messages alone.
pub fn conversation_tokens(messages: &[Message]) -> u32 {
    tokens(messages.iter().map(message_characters).sum())
}

fn message_characters(message: &Message) -> usize {
    content_characters(&message.content)
}

/// The characters that blocks weigh; an image weighs what it would as text.
pub fn content_characters(content: &[ContentBlock]) -> usize {
    content
        .iter()
        .filter_map(|block| block.block.as_ref())
        .map(|block| match block {
            Block::Text(text) => text.text.chars().count(),
            Block::Image(_) => IMAGE_TOKENS * CHARACTERS_A_TOKEN,
            Block::Thinking(thinking) => thinking.text.chars().count() + thinking.redacted_data.len(),
            Block::ToolUse(call) => call.name.len() + call.arguments_json.chars().count(),
            Block::ToolOutput(output) => content_characters(&output.content),
            Block::Native(native) => native.json.chars().count(),
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_started_token_counts_whole() {
        assert_eq!(tokens(0), 0);
        assert_eq!(tokens(1), 1);
        assert_eq!(tokens(8), 2);
        assert_eq!(tokens(9), 3);
    }
}
