//! A neutral request as the body of `POST /v1/messages`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use croft_proto::v1::content_block::Block;
use croft_proto::v1::image::Source;
use croft_proto::v1::{ContentBlock, Image, Message, Role, Thinking, ToolOutput};
use serde_json::{Value, json};

use super::{NAME, cache};
use crate::arguments::arguments;
use crate::request::Request;
use crate::tool_call_ids::{BYTES_MAX, portable};
use crate::tool_name::tool_name;

const USER: &str = "user";
const ASSISTANT: &str = "assistant";
/// What a model is told of an error without words.
const SILENT_ERROR: &str = "The tool failed and did not say why.";

pub(super) fn body(request: &Request) -> Value {
    let mut body = count(request);
    body["max_tokens"] = request.output_tokens_max.into();
    body["stream"] = true.into();
    if let Some(temperature) = request.temperature {
        body["temperature"] = temperature.into();
    }
    cache::mark(&mut body);
    body
}

/// The part of it that is counted, as `POST /v1/messages/count_tokens` takes it.
pub(super) fn count(request: &Request) -> Value {
    let mut body = json!({"model": request.model, "messages": messages(&portable(&request.messages, BYTES_MAX))});
    if !request.system.is_empty() {
        body["system"] = request.system.clone().into();
    }
    if !request.tools.is_empty() {
        body["tools"] = request
            .tools
            .iter()
            .map(|tool| json!({"name": tool.name, "description": tool.description, "input_schema": tool.input_schema}))
            .collect();
    }
    body
}

/// The API knows two roles; results of tools are the user's, and must stand before what the user says. Neighbours of
/// one role become one message. What was thought may not be the last of an answer: one that broke off, or said nothing, has it so.
fn messages(messages: &[Message]) -> Vec<Value> {
    let mut turns = Vec::new();
    for message in messages {
        let role = match message.role() {
            Role::Assistant => ASSISTANT,
            Role::User | Role::Tool | Role::Unspecified => USER,
        };
        join(&mut turns, role, message.content.iter().filter_map(block).collect());
    }
    let mut sent = Vec::new();
    for (role, mut content) in turns {
        while role == ASSISTANT && content.last().is_some_and(is_thinking) {
            content.pop();
        }
        join(&mut sent, role, content);
    }
    sent.into_iter().map(|(role, content)| json!({"role": role, "content": content})).collect()
}

fn join(turns: &mut Vec<(&'static str, Vec<Value>)>, role: &'static str, blocks: Vec<Value>) {
    match turns.last_mut() {
        _ if blocks.is_empty() => {}
        Some((last, content)) if *last == role => content.extend(blocks),
        _ => turns.push((role, blocks)),
    }
}

fn is_thinking(block: &Value) -> bool {
    matches!(block["type"].as_str(), Some("thinking" | "redacted_thinking"))
}

/// `None` for what the API would refuse: texts of nothing but white space, thinking without proof, and blocks of other
/// providers.
fn block(block: &ContentBlock) -> Option<Value> {
    match block.block.as_ref()? {
        Block::Text(text) if text.text.trim().is_empty() => None,
        Block::Text(text) => Some(json!({"type": "text", "text": text.text})),
        Block::Image(image) => image_block(image),
        Block::Thinking(Thinking { redacted_data, .. }) if !redacted_data.is_empty() => {
            Some(json!({"type": "redacted_thinking", "data": redacted_data}))
        }
        Block::Thinking(thinking) if thinking.signature.is_empty() => None,
        Block::Thinking(thinking) => {
            Some(json!({"type": "thinking", "thinking": thinking.text, "signature": thinking.signature}))
        }
        Block::ToolUse(call) => Some(json!({
            "type": "tool_use",
            "id": call.tool_call_id,
            "name": tool_name(&call.name),
            "input": arguments(&call.arguments_json),
        })),
        Block::ToolOutput(output) => Some(tool_result(output)),
        Block::Native(native) if native.provider == NAME => serde_json::from_str(&native.json).ok(),
        Block::Native(_) => None,
    }
}

fn tool_result(output: &ToolOutput) -> Value {
    let mut content: Vec<_> = output.content.iter().filter_map(block).collect();
    // One that tells of an error must say something.
    if output.is_error && content.is_empty() {
        content.push(json!({"type": "text", "text": SILENT_ERROR}));
    }
    json!({
        "type": "tool_result",
        "tool_use_id": output.tool_call_id,
        "content": content,
        "is_error": output.is_error,
    })
}

fn image_block(image: &Image) -> Option<Value> {
    let source = match image.source.as_ref()? {
        Source::Data(data) => {
            json!({"type": "base64", "media_type": image.media_type, "data": STANDARD.encode(data)})
        }
        Source::Url(url) => json!({"type": "url", "url": url}),
    };
    Some(json!({"type": "image", "source": source}))
}
