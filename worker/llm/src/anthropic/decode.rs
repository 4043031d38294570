//! Server-sent events of the Messages API as neutral deltas.

use std::collections::BTreeMap;

use croft_proto::v1::{NativeBlock, TokenUsage};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{NAME, failure};
use crate::delta::{Delta, Stop};
use crate::error::{Class, Error};

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Event {
    MessageStart {
        message: Opening,
    },
    ContentBlockStart {
        index: u32,
        content_block: Map<String, Value>,
    },
    ContentBlockDelta {
        index: u32,
        delta: Piece,
    },
    ContentBlockStop {
        index: u32,
    },
    MessageDelta {
        delta: Closing,
        #[serde(default)]
        usage: Usage,
    },
    MessageStop,
    Error {
        error: Failure,
    },
    /// Pings, and what is yet to come.
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Opening {
    #[serde(default)]
    id: String,
    #[serde(default)]
    model: String,
    #[serde(default)]
    usage: Usage,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Piece {
    TextDelta {
        text: String,
    },
    InputJsonDelta {
        partial_json: String,
    },
    ThinkingDelta {
        thinking: String,
    },
    SignatureDelta {
        signature: String,
    },
    /// Citations, and what is yet to come: there is no neutral form.
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Closing {
    stop_reason: Option<String>,
}

#[derive(Deserialize)]
struct Failure {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    message: String,
}

/// A snapshot; what it leaves out stands as it was.
#[derive(Deserialize, Default)]
struct Usage {
    input_tokens: Option<i64>,
    cache_creation_input_tokens: Option<i64>,
    cache_read_input_tokens: Option<i64>,
    cache_creation: Option<CacheCreation>,
    output_tokens: Option<i64>,
    output_tokens_details: Option<OutputDetails>,
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
pub(super) struct Decoder {
    blocks: BTreeMap<u32, Block>,
    usage: TokenUsage,
    stop: Option<Stop>,
    output: bool,
    over: bool,
}

impl Decoder {
    /// The model began to answer.
    pub(super) fn has_output(&self) -> bool {
        self.output
    }

    /// The terminal event has come.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// The deltas that one event comes to.
    pub(super) fn event(&mut self, data: &str) -> Result<Vec<Delta>, Error> {
        let event: Event = serde_json::from_str(data)
            .map_err(|error| Error::new(NAME, Class::Network, "sent an event that makes no sense").because(error))?;
        let deltas = match event {
            Event::MessageStart { message } => {
                self.count(&message.usage);
                vec![Delta::Opened { response_id: message.id, model: message.model }, Delta::Usage(self.usage)]
            }
            Event::ContentBlockStart { index, content_block } => self.open(index, content_block),
            Event::ContentBlockDelta { index, delta } => self.piece(index, delta)?,
            Event::ContentBlockStop { index } => self.close(index)?,
            Event::MessageDelta { delta, usage } => {
                self.count(&usage);
                self.stop = delta.stop_reason.as_deref().map(stop).or(self.stop);
                vec![Delta::Usage(self.usage)]
            }
            Event::MessageStop => {
                self.over = true;
                vec![Delta::Stop(self.stop.ok_or_else(cut)?)]
            }
            Event::Error { error } => return Err(failure::in_stream(&error.kind, &error.message)),
            Event::Other => Vec::new(),
        };
        self.output |= deltas.iter().any(Delta::is_output);
        Ok(deltas)
    }

    fn open(&mut self, block: u32, start: Map<String, Value>) -> Vec<Delta> {
        // What is missing or of another type is empty: the pieces bring the content.
        let text = |name: &str| start.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let kind = text("type");
        match kind.as_str() {
            "text" => {
                self.blocks.insert(block, Block::Text);
                Some(text("text"))
                    .filter(|text| !text.is_empty())
                    .map(|text| Delta::Text { block, text })
                    .into_iter()
                    .collect()
            }
            "thinking" => {
                self.blocks.insert(block, Block::Thinking);
                let (thinking, signature) = (text("thinking"), text("signature"));
                let thinking = (!thinking.is_empty()).then_some(Delta::Thinking { block, text: thinking });
                let signature = (!signature.is_empty()).then_some(Delta::Signature { block, signature });
                thinking.into_iter().chain(signature).collect()
            }
            "redacted_thinking" => {
                self.blocks.insert(block, Block::Thinking);
                vec![Delta::RedactedThinking { block, data: text("data") }]
            }
            "tool_use" => {
                let input = start.get("input").cloned().unwrap_or_default();
                self.blocks.insert(block, Block::Call { partial_json: String::new(), input });
                vec![Delta::ToolCallStarted { block, tool_call_id: text("id"), name: text("name") }]
            }
            _ => {
                self.blocks.insert(block, Block::Native { whole: start, partial_json: String::new() });
                Vec::new()
            }
        }
    }

    fn piece(&mut self, block: u32, piece: Piece) -> Result<Vec<Delta>, Error> {
        let open = self.blocks.get_mut(&block).ok_or_else(|| out_of_order(block))?;
        Ok(match (open, piece) {
            (Block::Text, Piece::TextDelta { text }) => vec![Delta::Text { block, text }],
            (Block::Thinking, Piece::ThinkingDelta { thinking }) => vec![Delta::Thinking { block, text: thinking }],
            (Block::Thinking, Piece::SignatureDelta { signature }) => vec![Delta::Signature { block, signature }],
            (Block::Call { partial_json: joined, .. }, Piece::InputJsonDelta { partial_json }) => {
                joined.push_str(&partial_json);
                // The first piece is often empty.
                if partial_json.is_empty() { Vec::new() } else { vec![Delta::ToolArguments { block, partial_json }] }
            }
            (Block::Native { partial_json: joined, .. }, Piece::InputJsonDelta { partial_json }) => {
                joined.push_str(&partial_json);
                Vec::new()
            }
            _ => Vec::new(),
        })
    }

    fn close(&mut self, block: u32) -> Result<Vec<Delta>, Error> {
        Ok(match self.blocks.remove(&block).ok_or_else(|| out_of_order(block))? {
            Block::Text | Block::Thinking => Vec::new(),
            Block::Call { partial_json, input } => {
                let arguments_json = match input {
                    _ if !partial_json.is_empty() => partial_json,
                    Value::Object(input) => Value::Object(input).to_string(),
                    _ => "{}".to_owned(),
                };
                vec![Delta::ToolCallStopped { block, arguments_json }]
            }
            Block::Native { mut whole, partial_json } => {
                if let Ok(input) = serde_json::from_str(&partial_json) {
                    whole.insert("input".into(), input);
                }
                let json = Value::Object(whole).to_string();
                vec![Delta::Native { block, native: NativeBlock { provider: NAME.into(), json } }]
            }
        })
    }

    /// Takes in a cumulative snapshot.
    fn count(&mut self, snapshot: &Usage) {
        let usage = &mut self.usage;
        let replace = |count: &mut i64, newer: Option<i64>| *count = newer.unwrap_or(*count);
        replace(&mut usage.input_uncached_tokens, snapshot.input_tokens);
        replace(&mut usage.cache_read_tokens, snapshot.cache_read_input_tokens);
        replace(&mut usage.output_tokens, snapshot.output_tokens);
        let details = snapshot.output_tokens_details.as_ref();
        replace(&mut usage.reasoning_tokens, details.and_then(|details| details.thinking_tokens));
        match (&snapshot.cache_creation, snapshot.cache_creation_input_tokens) {
            (Some(by_ttl), _) => {
                usage.cache_write_5m_tokens = by_ttl.ephemeral_5m_input_tokens;
                usage.cache_write_1h_tokens = by_ttl.ephemeral_1h_input_tokens;
            }
            // Only the sum: what is not known to be for an hour is for the usual five minutes.
            (None, Some(sum)) => usage.cache_write_5m_tokens = (sum - usage.cache_write_1h_tokens).max(0),
            (None, None) => {}
        }
    }
}

/// The failure of a stream that ends too early.
pub(super) fn cut() -> Error {
    Error::new(NAME, Class::Truncated, "ended its answer before it was whole")
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

fn out_of_order(block: u32) -> Error {
    Error::new(NAME, Class::Network, format!("sent a piece of block {block}, which is not open"))
}
