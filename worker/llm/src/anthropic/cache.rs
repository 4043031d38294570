//! Where the API is asked to cache the beginning of a request: it does so only up to breakpoints that the request sets, of
//! which it takes four.
//!
//! One stands behind the system prompt, which tools come before, and one at the end of the conversation. Another stands where
//! the request before ended, behind the user's message before the last: the API looks for what it has cached at a
//! breakpoint and at twenty blocks before it, and an answer with its results may be longer. What is shorter than a model's
//! least is not cached, which is no error.
//!
//! <https://docs.anthropic.com/en/docs/build-with-claude/prompt-caching>

use serde_json::{Value, json};

const KEY: &str = "cache_control";

/// Sets the breakpoints of a whole request.
pub(super) fn mark(body: &mut Value) {
    mark_prefix(body);
    let Some(messages) = body.get_mut("messages").and_then(Value::as_array_mut) else { return };
    let Some((last, before)) = messages.split_last_mut() else { return };
    mark_message(last);
    if let Some(previous) = before.iter_mut().rfind(|message| message["role"] == "user") {
        mark_message(previous);
    }
}

/// The system prompt stands behind the tools. Without one the last tool has the breakpoint: some gateways refuse it there.
fn mark_prefix(body: &mut Value) {
    match body.get_mut("system") {
        // On an empty text it is refused.
        Some(Value::String(system)) if !system.trim().is_empty() => {
            let text = std::mem::take(system);
            body["system"] = json!([marked(json!({"type": "text", "text": text}))]);
        }
        _ => {
            if let Some(tool) = body.get_mut("tools").and_then(Value::as_array_mut).and_then(|tools| tools.last_mut()) {
                *tool = marked(tool.take());
            }
        }
    }
}

/// Thinking takes no breakpoint, and of what only the API itself understands nobody knows.
fn mark_message(message: &mut Value) {
    let takes_one =
        |block: &&mut Value| matches!(block["type"].as_str(), Some("text" | "image" | "tool_use" | "tool_result"));
    let blocks = message.get_mut("content").and_then(Value::as_array_mut);
    if let Some(block) = blocks.and_then(|blocks| blocks.iter_mut().rfind(takes_one)) {
        *block = marked(block.take());
    }
}

fn marked(mut block: Value) -> Value {
    block[KEY] = json!({"type": "ephemeral"});
    block
}
