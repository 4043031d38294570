//! A neutral request as the body of `POST /v1/chat/completions`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use croft_proto::v1::content_block::Block;
use croft_proto::v1::image::Source;
use croft_proto::v1::{ContentBlock, Image, Message, Role, ToolOutput, ToolUse};
use serde_json::{Value, json};

use crate::arguments::arguments;
use crate::request::Request;
use crate::tool_call_ids::{CHAT_BYTES_MAX, portable};
use crate::tool_name::tool_name;

pub(super) fn body(request: &Request) -> Value {
    let mut messages = Vec::new();
    if !request.system.is_empty() {
        messages.push(json!({"role": "system", "content": request.system}));
    }
    // The results of one answer may come in several messages, and nothing may stand between them.
    let conversation = portable(&request.messages, CHAT_BYTES_MAX);
    let runs = conversation.chunk_by(|one, next| one.role() == Role::Tool && next.role() == Role::Tool);
    runs.for_each(|run| add(run, &mut messages));
    let mut body = json!({
        "model": request.model,
        "messages": messages,
        "max_completion_tokens": request.output_tokens_max,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    if let Some(temperature) = request.temperature {
        body["temperature"] = temperature.into();
    }
    if !request.tools.is_empty() {
        body["tools"] = request
            .tools
            .iter()
            .map(|tool| {
                let function =
                    json!({"name": tool.name, "description": tool.description, "parameters": tool.input_schema});
                json!({"type": "function", "function": function})
            })
            .collect();
    }
    body
}

/// A message, or a run of messages with results.
fn add(run: &[Message], messages: &mut Vec<Value>) {
    let Some(first) = run.first() else { return };
    let content = || run.iter().flat_map(|message| &message.content);
    match first.role() {
        Role::Assistant => messages.extend(assistant(&first.content)),
        Role::User | Role::Tool | Role::Unspecified => {
            // Results come first: they answer what was called right before.
            let outputs = content().filter_map(|block| match &block.block {
                Some(Block::ToolOutput(output)) => Some(output),
                _ => None,
            });
            let mut pictures = Vec::new();
            for output in outputs {
                messages.push(json!({"role": "tool", "tool_call_id": output.tool_call_id, "content": text(output)}));
                // A result is text alone, so its pictures follow as the user's.
                pictures.extend(output.content.iter().filter_map(part));
            }
            pictures.retain(|part| part["type"] == "image_url");
            let said = content().filter_map(part);
            let content: Vec<_> = pictures.into_iter().chain(said).collect();
            if !content.is_empty() {
                messages.push(json!({"role": "user", "content": content}));
            }
        }
    }
}

/// The interface has no place for thinking, nor for what other providers alone understand.
fn assistant(content: &[ContentBlock]) -> Option<Value> {
    let mut text = String::new();
    let mut calls = Vec::new();
    for block in content.iter().filter_map(|block| block.block.as_ref()) {
        match block {
            Block::Text(said) => text.push_str(&said.text),
            Block::ToolUse(call) => calls.push(tool_call(call)),
            Block::Image(_) | Block::Thinking(_) | Block::ToolOutput(_) | Block::Native(_) => {}
        }
    }
    if text.is_empty() && calls.is_empty() {
        return None;
    }
    let mut message = json!({"role": "assistant"});
    message["content"] = if text.is_empty() { Value::Null } else { text.into() };
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    Some(message)
}

fn tool_call(call: &ToolUse) -> Value {
    let arguments = Value::Object(arguments(&call.arguments_json)).to_string();
    let function = json!({"name": tool_name(&call.name), "arguments": arguments});
    json!({"id": call.tool_call_id, "type": "function", "function": function})
}

/// The text of a result. That it tells of an error must be said in words, as there is no other place for it.
fn text(output: &ToolOutput) -> String {
    let texts = output.content.iter().filter_map(|block| match &block.block {
        Some(Block::Text(text)) => Some(text.text.as_str()),
        _ => None,
    });
    let text = texts.collect::<Vec<_>>().join("\n");
    if output.is_error { format!("Error: {text}") } else { text }
}

fn part(block: &ContentBlock) -> Option<Value> {
    match block.block.as_ref()? {
        Block::Text(text) if text.text.is_empty() => None,
        Block::Text(text) => Some(json!({"type": "text", "text": text.text})),
        Block::Image(image) => Some(json!({"type": "image_url", "image_url": {"url": url(image)?}})),
        Block::Thinking(_) | Block::ToolUse(_) | Block::ToolOutput(_) | Block::Native(_) => None,
    }
}

/// Where an image is, its own bytes included.
pub(in crate::openai) fn url(image: &Image) -> Option<String> {
    Some(match image.source.as_ref()? {
        Source::Data(data) => format!("data:{};base64,{}", image.media_type, STANDARD.encode(data)),
        Source::Url(url) => url.clone(),
    })
}
