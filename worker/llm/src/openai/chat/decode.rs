//! Chunks of Chat Completions as neutral deltas.

use std::collections::VecDeque;

use croft_proto::v1::TokenUsage;
use serde::Deserialize;
use serde_json::Value;

use super::calls::Calls;
use crate::answer::{self, cut, senseless};
use crate::blocks::{Blocks, Said};
use crate::delta::{Delta, Stop};
use crate::error::{Class, Error};
use crate::openai::{NAME, failure};
use crate::quick::{Quick, once};
use crate::tier;

/// The signature of thinking that came as `reasoning_content`. It is no proof of anything, and says that the thinking goes back in
/// that very field: servers that tell of it otherwise refuse it there.
pub(crate) const REASONING_CONTENT: &str = "reasoning_content";
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
    /// Where Moonshot tells of it. Of others it may be anything.
    usage: Option<Value>,
}

#[derive(Deserialize)]
struct Piece {
    content: Option<Content>,
    refusal: Option<String>,
    /// Not of OpenAI's, but of many servers that serve models which think aloud.
    reasoning_content: Option<String>,
    reasoning: Option<String>,
    tool_calls: Option<Vec<CallPiece>>,
}

/// A text at nearly all servers. Mistral's models that think tell of it in parts.
#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

/// Other parts, such as references to sources, say nothing.
#[derive(Deserialize)]
struct Part {
    text: Option<String>,
    thinking: Option<Content>,
}

impl Content {
    /// All that it says.
    fn whole(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Parts(parts) => parts.into_iter().filter_map(|part| part.text).collect(),
        }
    }
}

#[derive(Deserialize)]
struct CallPiece {
    /// Always 0 at some servers, and left out by others.
    index: Option<u32>,
    id: Option<String>,
    function: Option<FunctionPiece>,
}

#[derive(Deserialize)]
struct FunctionPiece {
    name: Option<String>,
    arguments: Option<String>,
}

/// Of both interfaces, since some servers give the names of the other, or both at once.
#[derive(Deserialize)]
pub(in crate::openai) struct Usage {
    prompt_tokens: Option<i64>,
    input_tokens: Option<i64>,
    completion_tokens: Option<i64>,
    output_tokens: Option<i64>,
    total_tokens: Option<i64>,
    /// Where Moonshot tells of it.
    cached_tokens: Option<i64>,
    prompt_tokens_details: Option<InputDetails>,
    input_tokens_details: Option<InputDetails>,
    completion_tokens_details: Option<OutputDetails>,
    output_tokens_details: Option<OutputDetails>,
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
    /// The input is told with what was cached, the output with what was thought, but for servers such as xAI's, which tell of that
    /// beside it: there the total is of all three. A cache is written for no known time: for the shorter one.
    /// <https://docs.x.ai/docs/key-information/consumption-and-rate-limits>
    /// `None` where nothing was counted.
    pub(in crate::openai) fn neutral(&self) -> Option<TokenUsage> {
        let count = |count: Option<i64>| count.unwrap_or_default().max(0);
        let (prompt, completion) =
            (self.prompt_tokens.or(self.input_tokens), self.completion_tokens.or(self.output_tokens));
        prompt.or(completion)?;
        let (prompt, completion) = (count(prompt), count(completion));
        let input = self.prompt_tokens_details.as_ref().or(self.input_tokens_details.as_ref());
        let cache_read_tokens = count(input.and_then(|details| details.cached_tokens).or(self.cached_tokens));
        let cache_write_5m_tokens = count(input.and_then(|details| details.cache_write_tokens));
        let cached = cache_read_tokens.saturating_add(cache_write_5m_tokens);
        let output = self.completion_tokens_details.as_ref().or(self.output_tokens_details.as_ref());
        let reasoning_tokens = count(output.and_then(|details| details.reasoning_tokens));
        let with_reasoning = completion.saturating_add(reasoning_tokens);
        let is_beside = match self.total_tokens {
            Some(total) if total == prompt.saturating_add(with_reasoning) => true,
            Some(total) if total == prompt.saturating_add(completion) => false,
            // It says nothing: a part can't be more than the whole.
            _ => reasoning_tokens > completion,
        };
        Some(TokenUsage {
            input_uncached_tokens: prompt.saturating_sub(cached).max(0),
            cache_read_tokens,
            cache_write_5m_tokens,
            output_tokens: if is_beside { with_reasoning } else { completion },
            reasoning_tokens,
            ..TokenUsage::default()
        })
    }
}

/// The state of one answer.
pub(crate) struct Decoder {
    /// Tells calls of different answers apart where the server gives no ids.
    messages: usize,
    opened: bool,
    blocks: Blocks,
    /// The block of thinking that goes back, if the last one does.
    reasoning: Option<u32>,
    calls: Calls,
    refused: bool,
    /// The server gives an empty reason to finish with every piece, and may give no other.
    has_blank_reason: bool,
    tier: tier::Told,
    stop: Option<Stop>,
}

impl answer::Decoder for Decoder {
    const PROVIDER: &'static str = NAME;

    fn event(&mut self, data: &str, deltas: &mut VecDeque<Delta>) -> Result<(), Error> {
        if data.trim() == DONE {
            if self.stop.is_none() && self.has_blank_reason {
                self.finish("stop", deltas)?;
            }
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
        let mut finished = Ok(());
        // We ask for one choice.
        for choice in choices.into_iter().filter(|choice| choice.index == 0) {
            if let Some(piece) = choice.delta {
                self.piece(piece, deltas);
            }
            deltas.extend(choice.usage.and_then(|usage| Usage::deserialize(usage).ok()?.neutral()).map(Delta::Usage));
            match choice.finish_reason.as_deref() {
                None => {}
                Some("") => self.has_blank_reason = true,
                Some(reason) => finished = finished.and_then(|()| self.finish(reason, deltas)),
            }
        }
        // What was broken off was counted, too.
        deltas.extend(chunk.usage.and_then(|usage| usage.neutral()).map(Delta::Usage));
        finished
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
            reasoning: None,
            calls: Calls::default(),
            refused: false,
            has_blank_reason: false,
            tier: tier::Told::default(),
            stop: None,
        }
    }

    fn piece(&mut self, piece: Piece, deltas: &mut VecDeque<Delta>) {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        if let Some(text) = given(piece.reasoning_content) {
            let block = self.blocks.saying(Said::Thinking);
            deltas.push_back(Delta::Thinking { block, text });
            if self.reasoning.replace(block) != Some(block) {
                deltas.push_back(Delta::Signature { block, signature: REASONING_CONTENT.to_owned() });
            }
        } else if let Some(text) = piece.reasoning {
            self.say(Said::Thinking, text, deltas);
        }
        match piece.content {
            None => {}
            Some(Content::Text(text)) => self.say(Said::Text, text, deltas),
            Some(Content::Parts(parts)) => {
                for Part { text, thinking } in parts {
                    self.say(Said::Thinking, thinking.map(Content::whole).unwrap_or_default(), deltas);
                    self.say(Said::Text, text.unwrap_or_default(), deltas);
                }
            }
        }
        if let Some(text) = given(piece.refusal) {
            // People are told in the model's own words.
            self.refused = true;
            self.say(Said::Text, text, deltas);
        }
        for piece in piece.tool_calls.unwrap_or_default() {
            self.call(piece, deltas);
        }
    }

    fn say(&mut self, said: Said, text: String, deltas: &mut VecDeque<Delta>) {
        if text.is_empty() {
            return;
        }
        let block = self.blocks.saying(said);
        deltas.push_back(match said {
            Said::Text => Delta::Text { block, text },
            Said::Thinking => Delta::Thinking { block, text },
        });
    }

    fn call(&mut self, piece: CallPiece, deltas: &mut VecDeque<Delta>) {
        let CallPiece { index, id, function } = piece;
        let (name, arguments) = function.map_or((None, None), |function| (function.name, function.arguments));
        let name = name.unwrap_or_default();
        let (messages, blocks) = (self.messages, &mut self.blocks);
        let call = self.calls.of(index, id.as_deref(), !name.is_empty(), |place| {
            let block = blocks.apart();
            // No two calls of a conversation that is sent whole have as many messages before them and the same place.
            let made = || format!("call_{messages}_{place}");
            let tool_call_id = id.clone().filter(|id| !id.is_empty()).unwrap_or_else(made);
            deltas.push_back(Delta::ToolCallStarted { block, tool_call_id, name: name.clone() });
            block
        });
        if let Some(partial_json) = arguments.filter(|arguments| !arguments.is_empty()) {
            call.push(&partial_json);
            deltas.push_back(Delta::ToolArguments { block: call.block, partial_json });
        }
    }

    /// Fails if the reason is one of the server's own.
    fn finish(&mut self, reason: &str, deltas: &mut VecDeque<Delta>) -> Result<(), Error> {
        let stop = match reason {
            // DeepSeek's, OpenRouter's, and those of SGLang and vLLM.
            "insufficient_system_resource" | "error" | "abort" | "aborted" => {
                return Err(Error::new(NAME, Class::Overload, format!("broke its answer off: {reason}")));
            }
            // The latter is Mistral's, of an answer that came to the end of the context.
            "length" | "model_length" => Stop::MaxTokens,
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
            for (block, arguments_json) in self.calls.take() {
                let arguments_json = if arguments_json.is_empty() { "{}".to_owned() } else { arguments_json };
                deltas.push_back(Delta::ToolCallStopped { block, arguments_json });
            }
        }
        Ok(())
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
