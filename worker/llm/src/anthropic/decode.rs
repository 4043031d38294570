//! Server-sent events of the Messages API as neutral deltas.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};

use croft_proto::v1::{NativeBlock, TokenUsage};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{NAME, failure};
use crate::answer::{self, cut, senseless};
use crate::delta::{Delta, Stop};
use crate::error::{Class, Error};
use crate::quick::{Quick, once};
use crate::tier;

/// All events in one: told apart by hand, since an enum with its tag inside costs a copy of each event.
#[derive(Deserialize)]
struct Event<'data> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'data, str>,
    index: Option<u32>,
    #[serde(borrow)]
    delta: Option<Piece<'data>>,
    content_block: Option<Map<String, Value>>,
    // Boxed, as few events have them and every event moves the room for them.
    message: Option<Box<Opening>>,
    usage: Option<Box<Usage>>,
    error: Option<Box<Value>>,
}

#[derive(Deserialize)]
struct Kind<'data> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'data, str>,
}

#[derive(Deserialize)]
struct Opening {
    #[serde(default)]
    id: String,
    #[serde(default)]
    model: String,
    usage: Option<Box<Usage>>,
}

#[derive(Default, Deserialize)]
struct Piece<'data> {
    #[serde(borrow, rename = "type", default)]
    kind: Cow<'data, str>,
    text: Option<String>,
    partial_json: Option<String>,
    thinking: Option<String>,
    signature: Option<String>,
    #[serde(borrow)]
    stop_reason: Option<Cow<'data, str>>,
    /// Of a refusal. Its fields come and go with models.
    stop_details: Option<Box<Value>>,
}

impl<'data> Piece<'data> {
    /// The piece that nearly every event is, with its block; `None` for all others.
    fn read(data: &'data str) -> Option<(u32, Self)> {
        let (mut kind, mut index, mut piece) = (None, None, None);
        let mut quick = Quick::new(data);
        quick.object(|quick, key| match key {
            "type" => once(&mut kind, quick.plain().filter(|kind| *kind == "content_block_delta")?),
            "index" => once(&mut index, quick.number()?),
            "delta" => once(&mut piece, Self::within(quick)?),
            "content_block" | "message" | "usage" | "error" => None,
            _ => quick.skip(),
        })?;
        quick.end()?;
        kind?;
        Some((index?, piece?))
    }

    fn within(quick: &mut Quick<'data>) -> Option<Self> {
        let (mut kind, mut piece) = (None, Self::default());
        quick.object(|quick, key| match key {
            "type" => once(&mut kind, quick.plain()?),
            "text" => once(&mut piece.text, quick.text()?),
            "partial_json" => once(&mut piece.partial_json, quick.text()?),
            "thinking" => once(&mut piece.thinking, quick.text()?),
            "signature" => once(&mut piece.signature, quick.text()?),
            "stop_reason" | "stop_details" => None,
            _ => quick.skip(),
        })?;
        piece.kind = Cow::Borrowed(kind.unwrap_or_default());
        Some(piece)
    }
}

/// A snapshot; what it leaves out stands as it was.
#[derive(Deserialize)]
struct Usage {
    input_tokens: Option<i64>,
    cache_creation_input_tokens: Option<i64>,
    cache_read_input_tokens: Option<i64>,
    cache_creation: Option<CacheCreation>,
    output_tokens: Option<i64>,
    output_tokens_details: Option<OutputDetails>,
    service_tier: Option<String>,
    /// `fast` is charged by prices of its own, as a tier is.
    speed: Option<String>,
}

impl Usage {
    /// Something was counted.
    fn counts(&self) -> bool {
        let cached = self.cache_creation_input_tokens.or(self.cache_read_input_tokens);
        self.input_tokens.or(self.output_tokens).or(cached).is_some()
    }
}

#[derive(Deserialize)]
struct CacheCreation {
    #[serde(default)]
    ephemeral_5m_input_tokens: i64,
    #[serde(default)]
    ephemeral_1h_input_tokens: i64,
}

#[derive(Deserialize)]
struct OutputDetails {
    thinking_tokens: Option<i64>,
}

/// A block that is being received.
enum Block {
    Text,
    Thinking,
    Call { partial_json: String, input: Value },
    Native { whole: Map<String, Value>, partial_json: String },
}

/// The state of one answer.
#[derive(Default)]
pub(crate) struct Decoder {
    blocks: BTreeMap<u32, Block>,
    usage: TokenUsage,
    tier: tier::Told,
    stop: Option<Stop>,
}

/// Of the words on a refusal. The rest is left out.
const WHY_CHARACTERS_MAX: usize = 1_000;

const EVENTS: [&str; 7] = [
    "message_start",
    "content_block_start",
    "content_block_delta",
    "content_block_stop",
    "message_delta",
    "message_stop",
    "error",
];

impl answer::Decoder for Decoder {
    const PROVIDER: &'static str = NAME;

    fn event(&mut self, data: &str, deltas: &mut VecDeque<Delta>) -> Result<(), Error> {
        if let Some((block, piece)) = Piece::read(data) {
            return self.piece(block, piece, deltas);
        }
        let event: Event<'_> = match serde_json::from_str(data) {
            Ok(event) => event,
            Err(error) => {
                // An event that is yet to come may have any shape.
                let other = serde_json::from_str(data).is_ok_and(|Kind { kind }| !EVENTS.contains(&&*kind));
                return if other { Ok(()) } else { Err(senseless(NAME, error)) };
            }
        };
        match &*event.kind {
            "content_block_delta" => self.piece(index(event.index)?, required(event.delta, "delta")?, deltas)?,
            "content_block_start" => {
                self.open(index(event.index)?, required(event.content_block, "content_block")?, deltas);
            }
            "content_block_stop" => self.close(index(event.index)?, deltas)?,
            "message_start" => {
                let Opening { id, model, usage } = *required(event.message, "message")?;
                deltas.push_back(Delta::Opened { response_id: id, model });
                self.count(usage, deltas);
            }
            "message_delta" => {
                let piece = required(event.delta, "delta")?;
                self.stop = piece.stop_reason.as_deref().map(stop).or(self.stop);
                if self.stop == Some(Stop::Refusal) {
                    deltas.extend(piece.stop_details.as_deref().and_then(why).map(Delta::Refused));
                }
                self.count(event.usage, deltas);
            }
            "message_stop" => deltas.push_back(Delta::Stop(self.stop.ok_or_else(|| cut(NAME))?)),
            "error" => return Err(failure::in_stream(&*required(event.error, "error")?)),
            // Pings, and what is yet to come.
            _ => {}
        }
        Ok(())
    }

    fn failure(body: &Value) -> Error {
        failure::of_body(body)
    }
}

impl Decoder {
    fn open(&mut self, block: u32, start: Map<String, Value>, deltas: &mut VecDeque<Delta>) {
        // What is missing or of another type is empty: the pieces bring the content.
        let text = |name: &str| start.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        match text("type").as_str() {
            "text" => {
                self.blocks.insert(block, Block::Text);
                deltas.extend(given(text("text")).map(|text| Delta::Text { block, text }));
            }
            "thinking" => {
                self.blocks.insert(block, Block::Thinking);
                deltas.extend(given(text("thinking")).map(|text| Delta::Thinking { block, text }));
                deltas.extend(given(text("signature")).map(|signature| Delta::Signature { block, signature }));
            }
            "redacted_thinking" => {
                self.blocks.insert(block, Block::Thinking);
                deltas.push_back(Delta::RedactedThinking { block, data: text("data") });
            }
            "tool_use" => {
                let input = start.get("input").cloned().unwrap_or_default();
                deltas.push_back(Delta::ToolCallStarted { block, tool_call_id: text("id"), name: text("name") });
                self.blocks.insert(block, Block::Call { partial_json: String::new(), input });
            }
            _ => {
                self.blocks.insert(block, Block::Native { whole: start, partial_json: String::new() });
            }
        }
    }

    fn piece(&mut self, block: u32, piece: Piece<'_>, deltas: &mut VecDeque<Delta>) -> Result<(), Error> {
        let open = self.blocks.get_mut(&block).ok_or_else(|| out_of_order(block))?;
        match (open, &*piece.kind) {
            (Block::Text, "text_delta") => {
                deltas.push_back(Delta::Text { block, text: required(piece.text, "text")? });
            }
            (Block::Thinking, "thinking_delta") => {
                deltas.push_back(Delta::Thinking { block, text: required(piece.thinking, "thinking")? });
            }
            (Block::Thinking, "signature_delta") => {
                deltas.push_back(Delta::Signature { block, signature: required(piece.signature, "signature")? });
            }
            (Block::Call { partial_json: joined, .. }, "input_json_delta") => {
                let partial_json = required(piece.partial_json, "partial_json")?;
                joined.push_str(&partial_json);
                // The first piece is often empty.
                deltas.extend(given(partial_json).map(|partial_json| Delta::ToolArguments { block, partial_json }));
            }
            (Block::Native { partial_json: joined, .. }, "input_json_delta") => {
                joined.push_str(&required(piece.partial_json, "partial_json")?);
            }
            // Citations, and what is yet to come: there is no neutral form.
            _ => {}
        }
        Ok(())
    }

    fn close(&mut self, block: u32, deltas: &mut VecDeque<Delta>) -> Result<(), Error> {
        match self.blocks.remove(&block).ok_or_else(|| out_of_order(block))? {
            Block::Text | Block::Thinking => {}
            Block::Call { partial_json, input } => {
                let arguments_json = match input {
                    _ if !partial_json.is_empty() => partial_json,
                    Value::Object(input) => Value::Object(input).to_string(),
                    _ => "{}".to_owned(),
                };
                deltas.push_back(Delta::ToolCallStopped { block, arguments_json });
            }
            Block::Native { mut whole, partial_json } => {
                if let Ok(input) = serde_json::from_str(&partial_json) {
                    whole.insert("input".into(), input);
                }
                let json = Value::Object(whole).to_string();
                deltas.push_back(Delta::Native { block, native: NativeBlock { provider: NAME.into(), json } });
            }
        }
        Ok(())
    }

    /// Takes in a cumulative snapshot, if there is one: what nobody counted is not nothing.
    fn count(&mut self, snapshot: Option<Box<Usage>>, deltas: &mut VecDeque<Delta>) {
        let Some(snapshot) = snapshot else { return };
        let usage = &mut self.usage;
        let replace = |count: &mut i64, newer: Option<i64>| *count = newer.map_or(*count, |newer| newer.max(0));
        replace(&mut usage.input_uncached_tokens, snapshot.input_tokens);
        replace(&mut usage.cache_read_tokens, snapshot.cache_read_input_tokens);
        replace(&mut usage.output_tokens, snapshot.output_tokens);
        let details = snapshot.output_tokens_details.as_ref();
        replace(&mut usage.reasoning_tokens, details.and_then(|details| details.thinking_tokens));
        match (&snapshot.cache_creation, snapshot.cache_creation_input_tokens) {
            (Some(by_ttl), _) => {
                usage.cache_write_5m_tokens = by_ttl.ephemeral_5m_input_tokens.max(0);
                usage.cache_write_1h_tokens = by_ttl.ephemeral_1h_input_tokens.max(0);
            }
            // Only the sum: what is not known to be for an hour is for the usual five minutes.
            (None, Some(sum)) => {
                usage.cache_write_5m_tokens = sum.saturating_sub(usage.cache_write_1h_tokens).max(0);
            }
            (None, None) => {}
        }
        if snapshot.counts() {
            deltas.push_back(Delta::Usage(self.usage));
        }
        let speed = snapshot.speed.filter(|speed| speed == "fast");
        deltas.extend(self.tier.take(speed.or(snapshot.service_tier).as_deref()));
    }
}

fn given(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn stop(reason: &str) -> Stop {
    match reason {
        "end_turn" | "stop_sequence" => Stop::EndTurn,
        "tool_use" => Stop::ToolUse,
        "max_tokens" => Stop::MaxTokens,
        "model_context_window_exceeded" => Stop::ContextFull,
        "refusal" => Stop::Refusal,
        "pause_turn" => Stop::Pause,
        other => {
            tracing::warn!(stop_reason = other, "unknown stop reason, taken for the end of the turn");
            Stop::EndTurn
        }
    }
}

/// Why the model would not go on: in words, and by the policy's name of it, as far as it is told.
fn why(details: &Value) -> Option<String> {
    let field = |name: &str| details.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let why = match (field("explanation"), field("category")) {
        (Some(explanation), Some(category)) => format!("{explanation} ({category})"),
        (Some(word), None) | (None, Some(word)) => word.to_owned(),
        (None, None) => return None,
    };
    Some(why.chars().take(WHY_CHARACTERS_MAX).collect())
}

fn index(index: Option<u32>) -> Result<u32, Error> {
    required(index, "index")
}

fn required<T>(field: Option<T>, name: &str) -> Result<T, Error> {
    field.ok_or_else(|| Error::new(NAME, Class::Network, format!("sent an event that makes no sense without {name}")))
}

fn out_of_order(block: u32) -> Error {
    Error::new(NAME, Class::Network, format!("sent a piece of block {block}, which is not open"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_read_in_place_and_nothing_else_is() {
        let piece = r#"{"type":"content_block_delta","index":2,"delta":{"type":"text_delta","text":"a\nb"}}"#;
        let (block, read) = Piece::read(piece).unwrap();
        assert_eq!((block, &*read.kind, read.text.as_deref()), (2, "text_delta", Some("a\nb")));
        for other in [
            r#"{"type":"message_stop"}"#,
            r#"{"type":"content_block_stop","index":2}"#,
            r#"{"type":"content_block_delta","delta":{"type":"text_delta","text":"a"}}"#,
            r#"{"type":"content_block_delta","index":2,"index":2,"delta":{"type":"text_delta","text":"a"}}"#,
            r#"{"type":"content_block_delta","index":2,"delta":{"type":"text_delta","text":null}}"#,
            r#"{"type":"content_block_delta","index":2,"delta":{"stop_reason":"end_turn"}}"#,
        ] {
            assert!(Piece::read(other).is_none(), "{other}");
        }
    }
}
