//! A neutral request as the body of `:streamGenerateContent`.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use croft_proto::v1::content_block::Block;
use croft_proto::v1::image::Source;
use croft_proto::v1::{ContentBlock, Image, Message, Role, ToolOutput};
use serde_json::{Value, json};

use super::NAME;
use super::decode::SIGNATURE;
use crate::arguments::arguments;
use crate::request::Request;
use crate::tool_call_ids::{BYTES_MAX, portable};
use crate::tool_name::tool_name;

/// Models from Gemini 3 on refuse a call that lacks its signature. This in its place stands for a call that another model made.
/// <https://ai.google.dev/gemini-api/docs/thought-signatures>
const FOREIGN: &str = "skip_thought_signature_validator";

pub(super) fn body(request: &Request) -> Value {
    let mut body = content(request);
    let mut generation = json!({"maxOutputTokens": request.output_tokens_max});
    if let Some(temperature) = request.temperature {
        generation["temperature"] = temperature.into();
    }
    body["generationConfig"] = generation;
    body
}

/// What `:countTokens` takes.
pub(super) fn count(request: &Request) -> Value {
    let mut content = content(request);
    content["model"] = format!("models/{}", request.model).into();
    json!({"generateContentRequest": content})
}

fn content(request: &Request) -> Value {
    let mut body = json!({"contents": contents(request)});
    if !request.system.is_empty() {
        body["systemInstruction"] = json!({"parts": [{"text": request.system}]});
    }
    if !request.tools.is_empty() {
        let declarations: Vec<_> = request
            .tools
            .iter()
            .map(|tool| {
                json!({"name": tool.name, "description": tool.description, "parametersJsonSchema": tool.input_schema})
            })
            .collect();
        body["tools"] = json!([{"functionDeclarations": declarations}]);
    }
    body
}

/// The API knows two roles; results of tools are the user's. Neighbours of one role become one content.
fn contents(request: &Request) -> Vec<Value> {
    let messages = portable(&request.messages, BYTES_MAX);
    let names = names(&messages);
    let demands_signatures = demands_signatures(&request.model);
    let mut turns: Vec<(&'static str, Vec<Value>)> = Vec::new();
    for message in messages.iter() {
        let (role, parts) = match message.role() {
            Role::Assistant => ("model", models(message, demands_signatures)),
            Role::User | Role::Tool | Role::Unspecified => ("user", users(message, &names)),
        };
        match turns.last_mut() {
            _ if parts.is_empty() => {}
            Some((last, content)) if *last == role => content.extend(parts),
            _ => turns.push((role, parts)),
        }
    }
    turns.into_iter().map(|(role, parts)| json!({"role": role, "parts": parts})).collect()
}

fn demands_signatures(model: &str) -> bool {
    let generation = model.strip_prefix("gemini-").map(|name| name.split(['.', '-']).next().unwrap_or_default());
    generation.and_then(|generation| generation.parse::<u32>().ok()).is_some_and(|generation| generation >= 3)
}

/// The tool of each call: a result must name it.
fn names(messages: &[Message]) -> HashMap<&str, &str> {
    messages
        .iter()
        .flat_map(|message| &message.content)
        .filter_map(|block| match &block.block {
            Some(Block::ToolUse(call)) => Some((call.tool_call_id.as_str(), call.name.as_str())),
            _ => None,
        })
        .collect()
}

/// A signature stands in a block of its own before the block that it belongs to, and goes back on that very part.
fn models(message: &Message, demands_signatures: bool) -> Vec<Value> {
    let mut parts = Vec::new();
    let mut signature: Option<Value> = None;
    let mut calls = 0;
    for block in message.content.iter().filter_map(|block| block.block.as_ref()) {
        let mut part = match block {
            Block::Text(text) if text.text.is_empty() => continue,
            Block::Text(text) => json!({"text": text.text}),
            Block::Thinking(thinking) if thinking.signature.is_empty() => continue,
            Block::Thinking(thinking) => {
                json!({"text": thinking.text, "thought": true, SIGNATURE: thinking.signature})
            }
            Block::ToolUse(call) => {
                calls += 1;
                let (name, args) = (tool_name(&call.name), arguments(&call.arguments_json));
                let function = json!({"id": call.tool_call_id, "name": name, "args": args});
                let mut part = json!({"functionCall": function});
                // Of parallel calls only the first carries one.
                if demands_signatures && calls == 1 && signature.is_none() {
                    part[SIGNATURE] = FOREIGN.into();
                }
                part
            }
            Block::Native(native) if native.provider == NAME => {
                let Ok(Value::Object(mut whole)) = serde_json::from_str(&native.json) else { continue };
                if whole.len() == 1
                    && let Some(found) = whole.remove(SIGNATURE)
                {
                    parts.extend(signature.replace(found).as_ref().map(bare));
                    continue;
                }
                Value::Object(whole)
            }
            Block::Image(_) | Block::ToolOutput(_) | Block::Native(_) => continue,
        };
        if let Some(signature) = signature.take() {
            part[SIGNATURE] = signature;
        }
        parts.push(part);
    }
    parts.extend(signature.as_ref().map(bare));
    parts
}

/// A signature that came on a part without content.
fn bare(signature: &Value) -> Value {
    json!({"text": "", SIGNATURE: signature})
}

/// Results come first, as they answer what was called right before.
fn users(message: &Message, names: &HashMap<&str, &str>) -> Vec<Value> {
    let mut parts = Vec::new();
    for block in message.content.iter().filter_map(|block| block.block.as_ref()) {
        if let Block::ToolOutput(output) = block {
            parts.push(response(output, names));
            // A response is an object; pictures of it follow as parts of their own.
            parts.extend(output.content.iter().filter_map(|block| match &block.block {
                Some(Block::Image(image)) => picture(image),
                _ => None,
            }));
        }
    }
    parts.extend(message.content.iter().filter_map(said));
    parts
}

fn said(block: &ContentBlock) -> Option<Value> {
    match block.block.as_ref()? {
        Block::Text(text) if text.text.is_empty() => None,
        Block::Text(text) => Some(json!({"text": text.text})),
        Block::Image(image) => picture(image),
        Block::Thinking(_) | Block::ToolUse(_) | Block::ToolOutput(_) | Block::Native(_) => None,
    }
}

fn response(output: &ToolOutput, names: &HashMap<&str, &str>) -> Value {
    let id = output.tool_call_id.as_str();
    let texts = output.content.iter().filter_map(|block| match &block.block {
        Some(Block::Text(text)) => Some(text.text.as_str()),
        _ => None,
    });
    let text = texts.collect::<Vec<_>>().join("\n");
    let key = if output.is_error { "error" } else { "output" };
    let name = tool_name(names.get(id).copied().unwrap_or_default());
    json!({"functionResponse": {"id": id, "name": name, "response": {key: text}}})
}

fn picture(image: &Image) -> Option<Value> {
    Some(match image.source.as_ref()? {
        Source::Data(data) => json!({"inlineData": {"mimeType": image.media_type, "data": STANDARD.encode(data)}}),
        // It may be left out, and is refused when empty.
        Source::Url(url) if image.media_type.is_empty() => json!({"fileData": {"fileUri": url}}),
        Source::Url(url) => json!({"fileData": {"mimeType": image.media_type, "fileUri": url}}),
    })
}
