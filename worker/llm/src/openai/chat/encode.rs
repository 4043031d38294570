//! A neutral request as the body of `POST /v1/chat/completions`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use croft_proto::v1::content_block::Block;
use croft_proto::v1::image::Source;
use croft_proto::v1::{ContentBlock, Image, Message, Role, ToolOutput, ToolUse};
use serde_json::{Value, json};

use super::REASONING_CONTENT;
use super::dialect::Dialect;
use crate::arguments::arguments;
use crate::refusals::Part;
use crate::request::Request;
use crate::tool_call_ids::{self, CHAT_BYTES_MAX, portable};
use crate::tool_name::tool_name;

/// Stands for what was thought where it is not there and something must be. An empty text is refused as none at all.
const NOTHING_THOUGHT: &str = " ";
/// What the model is taken to have said between the results of its calls and the user's next word, where something must be.
const RESULTS_READ: &str = "I have the results.";

pub(super) fn body(request: &Request, dialect: Dialect) -> Value {
    let mut messages = Vec::new();
    if !request.system.is_empty() {
        messages.push(json!({"role": "system", "content": request.system}));
    }
    // The results of one answer may come in several messages, and nothing may stand between them.
    let conversation = match dialect {
        Dialect::Mistral => tool_call_ids::mistral(&request.messages),
        Dialect::OpenAi | Dialect::DeepSeek | Dialect::Other => portable(&request.messages, CHAT_BYTES_MAX),
    };
    let runs = conversation.chunk_by(|one, next| one.role() == Role::Tool && next.role() == Role::Tool);
    let reasoning = match dialect {
        _ if request.refused.contains(&Part::ReasoningContent) => Reasoning::None,
        _ if dialect.demands_reasoning() => Reasoning::Demanded,
        _ => Reasoning::AsItWas,
    };
    let demands = Demands {
        reasoning,
        answer_to_results: dialect.demands_answer_to_results() || request.refused.contains(&Part::UserAfterResults),
    };
    runs.for_each(|run| add(run, demands, &mut messages));
    let mut body = json!({
        "model": request.model,
        "messages": messages,
        "stream": true,
    });
    if dialect.must_be_asked_for_usage() {
        body["stream_options"] = json!({"include_usage": true});
    }
    body[dialect.output_bound(&request.model, &request.refused)] = request.output_tokens_max.into();
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

/// What of the thoughts before its answers a server is sent.
#[derive(Clone, Copy)]
enum Reasoning {
    None,
    /// Where there were any: a gateway's next server may know no such field.
    AsItWas,
    /// Something with each answer.
    Demanded,
}

/// What a server wants of a conversation.
#[derive(Clone, Copy)]
struct Demands {
    reasoning: Reasoning,
    /// No user's word right behind the results of calls.
    answer_to_results: bool,
}

/// A message, or a run of messages with results.
fn add(run: &[Message], demands: Demands, messages: &mut Vec<Value>) {
    let Some(first) = run.first() else { return };
    let content = || run.iter().flat_map(|message| &message.content);
    match first.role() {
        Role::Assistant => {
            let Some(mut message) = assistant(&first.content) else { return };
            let thought = match demands.reasoning {
                Reasoning::None => None,
                Reasoning::AsItWas => thought(first),
                Reasoning::Demanded => thought(first).or_else(|| Some(NOTHING_THOUGHT.to_owned())),
            };
            if let Some(thought) = thought {
                message[REASONING_CONTENT] = thought.into();
            }
            messages.push(message);
        }
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
                add_said(content, demands, messages);
            }
        }
    }
}

/// What the user says: within the message before it, if that is the user's too. After a turn that came to no answer it is, and
/// templates of many models refuse two in a row.
fn add_said(said: Vec<Value>, demands: Demands, messages: &mut Vec<Value>) {
    let follows = |role: &str| messages.last().is_some_and(|last| last["role"] == role);
    let (follows_user, follows_results) = (follows("user"), follows("tool"));
    if follows_user && let Some(content) = messages.last_mut().and_then(|last| last["content"].as_array_mut()) {
        content.extend(said);
        return;
    }
    if follows_results && demands.answer_to_results {
        messages.push(json!({"role": "assistant", "content": RESULTS_READ}));
    }
    messages.push(json!({"role": "user", "content": said}));
}

/// What was thought before an answer, as it goes back in a field of its own; `None` where it came in no such field, or nothing did.
fn thought(message: &Message) -> Option<String> {
    let thought = message.content.iter().filter_map(|block| match &block.block {
        Some(Block::Thinking(thinking)) if thinking.signature == REASONING_CONTENT => Some(thinking.text.as_str()),
        _ => None,
    });
    Some(thought.collect::<String>()).filter(|thought| !thought.is_empty())
}

/// The interface itself has no place for thinking, nor for what other providers alone understand.
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

#[cfg(test)]
mod tests {
    use croft_proto::v1::{Text, Thinking};

    use super::*;

    /// A call that another model made, with its result.
    fn taken_over() -> Request {
        let content = |block| vec![ContentBlock { block: Some(block) }];
        let message = |role: Role, content| Message { role: role.into(), content, ..Message::default() };
        let text = || content(Block::Text(Text { text: "noon".into() }));
        let tool_call_id = || "toolu_01ab-cdefghi".to_owned();
        let call = ToolUse { tool_call_id: tool_call_id(), name: "clock".into(), arguments_json: "{}".into() };
        let output = ToolOutput { tool_call_id: tool_call_id(), content: text(), is_error: false };
        Request {
            model: "model-x".into(),
            messages: vec![
                message(Role::User, text()),
                message(Role::Assistant, content(Block::ToolUse(call))),
                message(Role::Tool, content(Block::ToolOutput(output))),
            ],
            output_tokens_max: 99,
            ..Request::default()
        }
    }

    #[test]
    fn mistral_is_sent_no_field_that_it_refuses_and_ids_of_nine_letters_and_digits() {
        let body = body(&taken_over(), Dialect::Mistral);
        assert_eq!((&body["max_tokens"], &body["stream"]), (&json!(99), &json!(true)));
        for field in ["max_completion_tokens", "stream_options"] {
            assert_eq!(body.get(field), None, "{field}");
        }
        assert_eq!(body["messages"][1]["tool_calls"][0]["id"], "abcdefghi");
        assert_eq!(body["messages"][2]["tool_call_id"], "abcdefghi");
        assert_eq!(body["messages"][1].get(REASONING_CONTENT), None);
    }

    #[test]
    fn thoughts_go_back_where_they_were_thought_and_nowhere_once_they_are_refused() {
        let mut request = taken_over();
        let thinking = Thinking { text: "noon?".into(), signature: REASONING_CONTENT.into(), ..Thinking::default() };
        let content = vec![
            ContentBlock { block: Some(Block::Thinking(thinking)) },
            ContentBlock { block: Some(Block::Text(Text { text: "noon".into() })) },
        ];
        request.messages.push(Message { role: Role::Assistant.into(), content, ..Message::default() });
        let of = |request: &Request, dialect| {
            let body = body(request, dialect);
            [1, 3].map(|place| body["messages"][place].get(REASONING_CONTENT).cloned())
        };
        assert_eq!(of(&request, Dialect::Other), [None, Some("noon?".into())]);
        assert_eq!(of(&request, Dialect::DeepSeek), [Some(NOTHING_THOUGHT.into()), Some("noon?".into())]);
        request.refused = vec![Part::ReasoningContent];
        assert_eq!(of(&request, Dialect::Other), [None, None]);
    }

    #[test]
    fn a_users_word_behind_results_is_kept_apart_from_them_where_it_would_be_refused() {
        let mut interrupted = taken_over();
        let said = |text: &str| {
            let content = vec![ContentBlock { block: Some(Block::Text(Text { text: text.into() })) }];
            Message { role: Role::User.into(), content, ..Message::default() }
        };
        interrupted.messages.extend([said("never mind"), said("and now?")]);
        let of = |request: &Request, dialect| body(request, dialect)["messages"].as_array().unwrap()[3..].to_vec();
        let text = |text: &str| json!({"type": "text", "text": text});
        let user = json!({"role": "user", "content": [text("never mind"), text("and now?")]});
        for dialect in [Dialect::OpenAi, Dialect::DeepSeek, Dialect::Other] {
            assert_eq!(of(&interrupted, dialect), std::slice::from_ref(&user), "{dialect:?}");
        }
        let apart = [json!({"role": "assistant", "content": RESULTS_READ}), user];
        assert_eq!(of(&interrupted, Dialect::Mistral), apart);
        interrupted.refused = vec![Part::UserAfterResults];
        assert_eq!(of(&interrupted, Dialect::Other), apart);
    }

    #[test]
    fn pictures_of_a_result_are_kept_apart_from_it_in_the_same_way() {
        let mut request = taken_over();
        let picture = Image { media_type: "image/png".into(), source: Some(Source::Data(vec![1].into())) };
        let Some(Block::ToolOutput(output)) = &mut request.messages[2].content[0].block else { panic!("no result") };
        output.content.push(ContentBlock { block: Some(Block::Image(picture)) });
        let roles = |dialect| -> Vec<String> {
            let body = body(&request, dialect);
            body["messages"].as_array().unwrap().iter().map(|one| one["role"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(roles(Dialect::Other), ["user", "assistant", "tool", "user"]);
        assert_eq!(roles(Dialect::Mistral), ["user", "assistant", "tool", "assistant", "user"]);
    }

    #[test]
    fn deepseek_hears_that_nothing_was_thought_before_a_call_of_another_model() {
        let of = |dialect| body(&taken_over(), dialect)["messages"][1].get(REASONING_CONTENT).cloned();
        assert_eq!(of(Dialect::DeepSeek), Some(NOTHING_THOUGHT.into()));
        assert_eq!([of(Dialect::OpenAi), of(Dialect::Other)], [None, None]);
    }
}
