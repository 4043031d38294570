//! What can be told from the messages of a conversation alone.

use std::collections::HashSet;

use crate::v1::content_block::Block;
use crate::v1::{Message, Role, SessionError, ToolUse};

/// Bytes of one message between a front and a worker. A checkpoint holds the whole conversation, images and all.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes of a conversation that may go on. What the next superstep adds must fit into a message with it.
pub const BYTES_MAX: usize = MESSAGE_BYTES_MAX / 2;

/// What people are told of a conversation of so many bytes that may not go on.
pub fn too_large(bytes: usize) -> Option<SessionError> {
    (bytes > BYTES_MAX).then(|| SessionError {
        reason: "CONVERSATION_TOO_LARGE".to_owned(),
        message: format!(
            "the conversation has {} MiB, of which {} can go on: open another session",
            bytes.div_ceil(1024 * 1024),
            BYTES_MAX / 1024 / 1024
        ),
        retryable: false,
    })
}

/// What the model is told of a call that was made with other arguments than it asked for, before what came of it; nothing where they are
/// the same.
pub fn changed(asked_json: &str, made_json: &str) -> String {
    if asked_json == made_json {
        return String::new();
    }
    format!("A person changed the arguments of this call. It was made with {made_json}. ")
}

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
