//! A neutral request as the body of `POST /v1/responses`.

use croft_proto::v1::content_block::Block;
use croft_proto::v1::{ContentBlock, Message, Role, ToolOutput};
use serde_json::{Value, json};

use crate::arguments::arguments;
use crate::openai::NAME;
use crate::openai::chat::url;
use crate::request::Request;
use crate::tool_call_ids::{BYTES_MAX, portable};
use crate::tool_name::tool_name;

pub(super) fn body(request: &Request) -> Value {
    let mut body = count(request);
    body["max_output_tokens"] = request.output_tokens_max.into();
    body["stream"] = true.into();
    body["store"] = false.into();
    body["include"] = json!(["reasoning.encrypted_content"]);
    if let Some(temperature) = request.temperature {
        body["temperature"] = temperature.into();
    }
    body
}

/// The part of it that is counted, as `POST /v1/responses/input_tokens` takes it.
pub(super) fn count(request: &Request) -> Value {
    let input: Vec<_> = portable(&request.messages, BYTES_MAX).iter().flat_map(items).collect();
    let mut body = json!({"model": request.model, "input": input});
    if !request.system.is_empty() {
        body["instructions"] = request.system.clone().into();
    }
    if !request.tools.is_empty() {
        body["tools"] = request
            .tools
            .iter()
            .map(|tool| {
                json!({
                    "type": "function",
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": tool.input_schema,
                    // A strict schema must list every property as required, which tools' own seldom do.
                    "strict": false,
                })
            })
            .collect();
    }
    body
}

/// The items that a message comes to. Neighbouring parts of a message stay together; results of tools come first, as they
/// answer what was called right before.
fn items(message: &Message) -> Vec<Value> {
    let (role, text_type) = match message.role() {
        Role::Assistant => ("assistant", "output_text"),
        Role::User | Role::Tool | Role::Unspecified => ("user", "input_text"),
    };
    let mut items = Vec::new();
    let mut parts = Vec::new();
    let flush = |parts: &mut Vec<Value>, items: &mut Vec<Value>| {
        if !parts.is_empty() {
            items.push(json!({"type": "message", "role": role, "content": std::mem::take(parts)}));
        }
    };
    for block in message.content.iter().filter_map(|block| block.block.as_ref()) {
        if let Block::ToolOutput(output) = block {
            items.push(json!({
                "type": "function_call_output",
                "call_id": output.tool_call_id,
                "output": self::output(output),
            }));
        }
    }
    for block in message.content.iter().filter_map(|block| block.block.as_ref()) {
        match block {
            Block::Text(text) if text.text.is_empty() => {}
            Block::Text(text) => parts.push(json!({"type": text_type, "text": text.text})),
            Block::Image(image) => {
                parts.extend(url(image).map(|url| json!({"type": "input_image", "image_url": url})));
            }
            Block::ToolUse(call) => {
                flush(&mut parts, &mut items);
                let arguments = Value::Object(arguments(&call.arguments_json)).to_string();
                items.push(json!({
                    "type": "function_call",
                    "call_id": call.tool_call_id,
                    "name": tool_name(&call.name),
                    "arguments": arguments,
                }));
            }
            // Reasoning, and calls of tools that OpenAI runs itself: whole items of this very interface.
            Block::Native(native) if native.provider == NAME => {
                flush(&mut parts, &mut items);
                items.extend(serde_json::from_str::<Value>(&native.json).ok().filter(Value::is_object));
            }
            // A summary of reasoning is for people.
            Block::Thinking(_) | Block::ToolOutput(_) | Block::Native(_) => {}
        }
    }
    flush(&mut parts, &mut items);
    // Reasoning is refused without the item that it led to: an answer that broke off, or said nothing, has none.
    while items.last().is_some_and(|item| item["type"] == "reasoning") {
        items.pop();
    }
    items
}

/// That a result tells of an error must be said in words, as there is no other place for it.
fn output(output: &ToolOutput) -> Value {
    let part = |block: &ContentBlock| match block.block.as_ref()? {
        Block::Text(text) => Some(json!({"type": "input_text", "text": text.text})),
        Block::Image(image) => Some(json!({"type": "input_image", "image_url": url(image)?})),
        Block::Thinking(_) | Block::ToolUse(_) | Block::ToolOutput(_) | Block::Native(_) => None,
    };
    let error = output.is_error.then(|| json!({"type": "input_text", "text": "Error:"}));
    let parts: Vec<_> = error.into_iter().chain(output.content.iter().filter_map(part)).collect();
    // An empty list is refused.
    if parts.is_empty() { "".into() } else { parts.into() }
}
