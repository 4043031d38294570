//! Chunks of Chat Completions as neutral deltas.

use std::collections::{BTreeMap, VecDeque};

use croft_proto::v1::TokenUsage;
use serde::Deserialize;
use serde_json::Value;

use crate::answer::{self, cut, senseless};
use crate::blocks::{Blocks, Said};
use crate::delta::{Delta, Stop};
use crate::error::Error;
use crate::openai::{NAME, failure};
use crate::quick::{Quick, once};
use crate::tier;

/// In place of the data of the last event.
const DONE: &str = "[DONE]";

#[derive(Deserialize)]
struct Chunk {
    id: Option<String>,
    model: Option<String>,
    choices: Option<Vec<Choice>>,
    usage: Option<Usage>,
    service_tier: Option<String>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    index: u32,
    delta: Option<Piece>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Piece {
    content: Option<String>,
    refusal: Option<String>,
    /// Not of OpenAI's, but of many servers that serve models which think aloud.
    reasoning_content: Option<String>,
    reasoning: Option<String>,
    tool_calls: Option<Vec<CallPiece>>,
}

#[derive(Deserialize)]
struct CallPiece {
    #[serde(default)]
    index: u32,
    id: Option<String>,
    function: Option<FunctionPiece>,
}

#[derive(Deserialize)]
struct FunctionPiece {
    name: Option<String>,
    arguments: Option<String>,
}

#[derive(Deserialize)]
pub(in crate::openai) struct Usage {
    #[serde(alias = "input_tokens")]
    prompt_tokens: Option<i64>,
    #[serde(alias = "output_tokens")]
    completion_tokens: Option<i64>,
    #[serde(alias = "input_tokens_details")]
    prompt_tokens_details: Option<InputDetails>,
    #[serde(alias = "output_tokens_details")]
    completion_tokens_details: Option<OutputDetails>,
}

#[derive(Deserialize)]
struct InputDetails {
    cached_tokens: Option<i64>,
    cache_write_tokens: Option<i64>,
}

#[derive(Deserialize)]
struct OutputDetails {
    reasoning_tokens: Option<i64>,
}

impl Usage {
    /// The input is told with what was cached, the output with what was thought. A cache is written for no known time: for
    /// the shorter one.
    pub(in crate::openai) fn neutral(&self) -> TokenUsage {
        let count = |count: Option<i64>| count.unwrap_or_default().max(0);
        let input = self.prompt_tokens_details.as_ref();
        let cache_read_tokens = count(input.and_then(|details| details.cached_tokens));
        let cache_write_5m_tokens = count(input.and_then(|details| details.cache_write_tokens));
        let cached = cache_read_tokens.saturating_add(cache_write_5m_tokens);
        let output = self.completion_tokens_details.as_ref();
        TokenUsage {
            input_uncached_tokens: count(self.prompt_tokens).saturating_sub(cached).max(0),
            cache_read_tokens,
            cache_write_5m_tokens,
            output_tokens: count(self.completion_tokens),
            reasoning_tokens: count(output.and_then(|details| details.reasoning_tokens)),
            ..TokenUsage::default()
        }
    }
}

struct Call {
    block: u32,
    arguments_json: String,
}

/// The state of one answer.
pub(crate) struct Decoder {
    /// Tells calls of different answers apart where the server gives no ids.
    messages: usize,
    opened: bool,
    blocks: Blocks,
    /// By the index that their pieces carry: pieces of several interleave.
    calls: BTreeMap<u32, Call>,
    refused: bool,
    tier: tier::Told,
    stop: Option<Stop>,
}

impl answer::Decoder for Decoder {
    const PROVIDER: &'static str = NAME;

    fn event(&mut self, data: &str, deltas: &mut VecDeque<Delta>) -> Result<(), Error> {
        if data.trim() == DONE {
            deltas.push_back(Delta::Stop(self.stop.ok_or_else(|| cut(NAME))?));
            return Ok(());
        }
        // The first one opens the answer, with more than a text.
        if let Some(text) = Some(data).filter(|_| self.opened).and_then(said) {
            let text = Some(text).filter(|text| !text.is_empty());
            deltas.extend(text.map(|text| Delta::Text { block: self.blocks.saying(Said::Text), text }));
            return Ok(());
        }
        let chunk: Chunk = serde_json::from_str(data).map_err(|error| senseless(NAME, error))?;
        if let Some(error) = &chunk.error {
            return Err(failure::in_stream(error));
        }
        let choices = chunk.choices.unwrap_or_default();
        if !self.opened && (!choices.is_empty() || chunk.usage.is_some()) {
            self.opened = true;
            let (response_id, model) = (chunk.id.unwrap_or_default(), chunk.model.unwrap_or_default());
            deltas.push_back(Delta::Opened { response_id, model });
        }
        if self.opened {
            deltas.extend(self.tier.take(chunk.service_tier.as_deref()));
        }
        // We ask for one choice.
        for choice in choices.into_iter().filter(|choice| choice.index == 0) {
            if let Some(piece) = choice.delta {
                self.piece(piece, deltas);
            }
            if let Some(reason) = choice.finish_reason {
                self.finish(&reason, deltas);
            }
        }
        deltas.extend(chunk.usage.map(|usage| Delta::Usage(usage.neutral())));
        Ok(())
    }

    fn failure(body: &Value) -> Error {
        failure::in_stream(body)
    }

    /// Usage may follow the reason to stop.
    fn stop(&self) -> Option<Stop> {
        self.stop
    }
}

/// The text that is all of a chunk, as of nearly every one; `None` for all others.
fn said(data: &str) -> Option<String> {
    let (mut choices, mut choice) = (None, None);
    let mut quick = Quick::new(data);
    quick.object(|quick, key| match key {
        "id" | "model" => quick.plain().map(drop),
        "choices" => {
            once(&mut choices, ())?;
            quick.array(|quick| once(&mut choice, said_in_choice(quick)?))
        }
        "usage" | "error" => quick.null(),
        _ => quick.skip(),
    })?;
    quick.end()?;
    choice
}

fn said_in_choice(quick: &mut Quick<'_>) -> Option<String> {
    let (mut index, mut text) = (None, None);
    quick.object(|quick, key| match key {
        "index" => once(&mut index, quick.number().filter(|index| *index == 0)?),
        "delta" => quick.object(|quick, key| match key {
            "content" => once(&mut text, quick.text()?),
            "refusal" | "reasoning_content" | "reasoning" | "tool_calls" => quick.null(),
            _ => quick.skip(),
        }),
        "finish_reason" => quick.null(),
        _ => quick.skip(),
    })?;
    text
}

impl Decoder {
    /// For the answer to a conversation of so many messages.
    pub(crate) fn new(messages: usize) -> Self {
        Self {
            messages,
            opened: false,
            blocks: Blocks::default(),
            calls: BTreeMap::new(),
            refused: false,
            tier: tier::Told::default(),
            stop: None,
        }
    }

    fn piece(&mut self, piece: Piece, deltas: &mut VecDeque<Delta>) {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        if let Some(text) = given(piece.reasoning_content).or_else(|| given(piece.reasoning)) {
            deltas.push_back(Delta::Thinking { block: self.blocks.saying(Said::Thinking), text });
        }
        if let Some(text) = given(piece.content) {
            deltas.push_back(Delta::Text { block: self.blocks.saying(Said::Text), text });
        }
        if let Some(text) = given(piece.refusal) {
            // People are told in the model's own words.
            self.refused = true;
            deltas.push_back(Delta::Text { block: self.blocks.saying(Said::Text), text });
        }
        for piece in piece.tool_calls.unwrap_or_default() {
            self.call(piece, deltas);
        }
    }

    fn call(&mut self, piece: CallPiece, deltas: &mut VecDeque<Delta>) {
        let CallPiece { index, id, function } = piece;
        let (name, arguments) = function.map_or((None, None), |function| (function.name, function.arguments));
        if !self.calls.contains_key(&index) {
            let block = self.blocks.apart();
            // No two calls of a conversation that is sent whole have as many messages before them and the same place.
            let made = || format!("call_{}_{index}", self.messages);
            let tool_call_id = id.filter(|id| !id.is_empty()).unwrap_or_else(made);
            deltas.push_back(Delta::ToolCallStarted { block, tool_call_id, name: name.unwrap_or_default() });
            self.calls.insert(index, Call { block, arguments_json: String::new() });
        }
        if let Some(call) = self.calls.get_mut(&index)
            && let Some(partial_json) = arguments.filter(|arguments| !arguments.is_empty())
        {
            call.arguments_json.push_str(&partial_json);
            deltas.push_back(Delta::ToolArguments { block: call.block, partial_json });
        }
    }

    fn finish(&mut self, reason: &str, deltas: &mut VecDeque<Delta>) {
        let stop = match reason {
            "length" => Stop::MaxTokens,
            "content_filter" => Stop::Refusal,
            _ if self.refused => Stop::Refusal,
            "tool_calls" | "function_call" => Stop::ToolUse,
            // Some servers say so with calls beside it.
            "stop" if !self.calls.is_empty() => Stop::ToolUse,
            "stop" => Stop::EndTurn,
            other => {
                tracing::warn!(finish_reason = other, "unknown reason to finish, taken for the end of the turn");
                Stop::EndTurn
            }
        };
        self.stop = Some(stop);
        // Of an answer that was cut nobody knows which calls are whole.
        if !matches!(stop, Stop::MaxTokens | Stop::Refusal) {
            for Call { block, arguments_json } in std::mem::take(&mut self.calls).into_values() {
                let arguments_json = if arguments_json.is_empty() { "{}".to_owned() } else { arguments_json };
                deltas.push_back(Delta::ToolCallStopped { block, arguments_json });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_read_in_place_and_nothing_else_is() {
        let text = r#"{"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"a\nb"},"finish_reason":null}],"usage":null}"#;
        assert_eq!(said(text).as_deref(), Some("a\nb"));
        for other in [
            r#"{"id":"c","choices":[],"usage":null}"#,
            r#"{"id":"c","choices":[{"index":1,"delta":{"content":"a"}}]}"#,
            r#"{"id":"c","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}"#,
            r#"{"id":"c","choices":[{"index":0,"delta":{"content":"a","tool_calls":[]}}]}"#,
            r#"{"id":"c","choices":[{"index":0,"delta":{"content":"a"}},{"index":0,"delta":{"content":"b"}}]}"#,
            r#"{"id":"c","choices":[{"index":0,"delta":{"content":"a"}}],"usage":{"prompt_tokens":1}}"#,
            r#"{"id":"c","choices":[{"index":0,"delta":{"content":"a"}}],"error":{}}"#,
            r#"{"id":7,"choices":[{"index":0,"delta":{"content":"a"}}]}"#,
        ] {
            assert_eq!(said(other), None, "{other}");
        }
    }
}
