//! What can be told from the messages of a conversation alone.

use std::collections::HashSet;

use crate::v1::content_block::Block;
use crate::v1::{Message, Role, ToolUse};

/// The calls of the model's last message that have no result, in its order. None once the user has spoken after it.
pub fn open_calls(messages: &[Message]) -> Vec<ToolUse> {
    let last = messages.iter().rposition(|message| message.role() != Role::Tool);
    let Some(answer) = last.filter(|place| messages[*place].role() == Role::Assistant) else { return Vec::new() };
    let answered: HashSet<&str> = messages[answer + 1..]
        .iter()
        .flat_map(|message| &message.content)
        .filter_map(|block| match &block.block {
            Some(Block::ToolOutput(output)) => Some(output.tool_call_id.as_str()),
            _ => None,
        })
        .collect();
    messages[answer]
        .content
        .iter()
        .filter_map(|block| match &block.block {
            Some(Block::ToolUse(call)) if !answered.contains(call.tool_call_id.as_str()) => Some(call.clone()),
            _ => None,
        })
        .collect()
}
