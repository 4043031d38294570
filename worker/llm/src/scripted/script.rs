//! The language of scripts, and which part of one a call plays.

use croft_proto::v1::content_block::Block;
use croft_proto::v1::{Message, Role};
use serde::Deserialize;
use serde_json::{Map, Value};

/// One step of a script.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Step {
    pub text: Option<String>,
    pub thinking: Option<String>,
    pub tool_call: Option<ToolCall>,
    pub error: Option<Failure>,
    /// How the call is said to be served.
    pub service_tier: Option<String>,
    /// Ends the answer with this reason in place of the natural one.
    pub stop: Option<StopWord>,
    /// A pause by itself.
    pub delay_ms: Option<u64>,
    /// A pause before each word of `text`.
    pub token_delay_ms: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ToolCall {
    pub name: String,
    /// An object; or a text, which is then passed on as it is, so that a script can play a model that writes bad JSON.
    #[serde(default)]
    pub arguments: Arguments,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub(super) enum Arguments {
    Object(Map<String, Value>),
    Raw(String),
}

impl Default for Arguments {
    fn default() -> Self {
        Self::Object(Map::new())
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Failure {
    pub class: String,
    #[serde(default)]
    pub message: String,
    pub retry_after_ms: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum StopWord {
    MaxTokens,
    ContextFull,
    Refusal,
    Pause,
}

#[derive(Deserialize)]
struct Document {
    script: Vec<Step>,
}

/// What a call plays.
#[derive(Debug, PartialEq)]
pub(super) enum Part {
    /// These steps of a script.
    Steps(Vec<Step>),
    /// No script was given: repeat this.
    Echo(String),
}

/// The part that follows `messages`: the last user message decides, and each answer since then has played one part. A
/// part ends with a run of tool calls, whose results the model then waits for, or with a `stop`.
pub(super) fn part(messages: &[Message]) -> Result<Part, serde_json::Error> {
    let Some(user) = messages.iter().rposition(|message| message.role() == Role::User) else {
        return Ok(Part::Echo(String::new()));
    };
    let texts = texts(&messages[user]);
    // By itself: beside it there may be words that stand for an image.
    let Some(script) = texts.iter().find(|text| is_script(text)) else {
        return Ok(Part::Echo(texts.join("\n")));
    };
    let document: Document = serde_json::from_str(script)?;
    let played = messages[user..].iter().filter(|message| message.role() == Role::Assistant).count();
    Ok(Part::Steps(parts(document.script).into_iter().nth(played).unwrap_or_default()))
}

fn texts(message: &Message) -> Vec<&str> {
    let texts = message.content.iter().filter_map(|block| match &block.block {
        Some(Block::Text(text)) => Some(text.text.as_str()),
        _ => None,
    });
    texts.collect()
}

fn is_script(text: &str) -> bool {
    serde_json::from_str::<Map<String, Value>>(text).is_ok_and(|object| object.contains_key("script"))
}

fn parts(script: Vec<Step>) -> Vec<Vec<Step>> {
    let mut parts: Vec<Vec<Step>> = vec![Vec::new()];
    let mut complete = false;
    for step in script {
        let goes_on = parts.last().and_then(|part| part.last()).is_some_and(|last| last.tool_call.is_some())
            && step.tool_call.is_some();
        if complete && !goes_on {
            parts.push(Vec::new());
        }
        complete = step.tool_call.is_some() || step.stop.is_some();
        if let Some(part) = parts.last_mut() {
            part.push(step);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use croft_proto::v1::{ContentBlock, Text};
    use serde_json::json;

    fn message(role: Role, text: &str) -> Message {
        let block = Block::Text(Text { text: text.into() });
        Message { role: role.into(), content: vec![ContentBlock { block: Some(block) }], ..Message::default() }
    }

    fn names(part: Part) -> Vec<String> {
        let Part::Steps(steps) = part else { panic!("no script") };
        steps.into_iter().map(|step| step.text.or(step.tool_call.map(|call| call.name)).unwrap_or_default()).collect()
    }

    #[test]
    fn a_part_ends_after_a_run_of_tool_calls() {
        let script = json!({"script": [
            {"text": "one"}, {"tool_call": {"name": "a"}}, {"tool_call": {"name": "b"}},
            {"text": "two"}, {"tool_call": {"name": "c"}}, {"text": "three"},
        ]})
        .to_string();
        let mut messages =
            vec![message(Role::User, "earlier"), message(Role::Assistant, "x"), message(Role::User, &script)];
        assert_eq!(names(part(&messages).unwrap()), ["one", "a", "b"]);
        messages.extend([message(Role::Assistant, ""), message(Role::Tool, "")]);
        assert_eq!(names(part(&messages).unwrap()), ["two", "c"]);
        messages.extend([message(Role::Assistant, ""), message(Role::Tool, "")]);
        assert_eq!(names(part(&messages).unwrap()), ["three"]);
        messages.push(message(Role::Assistant, ""));
        assert!(names(part(&messages).unwrap()).is_empty());
    }

    #[test]
    fn other_json_and_prose_are_repeated() {
        for heard in ["hello", "{\"a\":1}", "[1]"] {
            assert_eq!(part(&[message(Role::User, heard)]).unwrap(), Part::Echo(heard.into()));
        }
    }

    #[test]
    fn a_script_is_played_whatever_stands_beside_it() {
        let mut said = message(Role::User, r#"{"script":[{"text":"one"}]}"#);
        said.content.extend(message(Role::User, "[an image]").content);
        assert_eq!(names(part(&[said]).unwrap()), ["one"]);
    }

    #[test]
    fn a_script_with_a_mistake_is_refused() {
        part(&[message(Role::User, r#"{"script":[{"txet":"x"}]}"#)]).unwrap_err();
        part(&[message(Role::User, r#"{"script":"x"}"#)]).unwrap_err();
    }
}
