//! Chunks of the Gemini API as neutral deltas.

use std::collections::VecDeque;

use croft_proto::v1::{NativeBlock, TokenUsage};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{NAME, failure};
use crate::answer::{self, senseless};
use crate::blocks::{Blocks, Said};
use crate::delta::{Delta, Stop};
use crate::error::{Class, Error};
use crate::quick::{Quick, once};
use crate::tier;

/// The field of a part that must come back on the same part.
pub(crate) const SIGNATURE: &str = "thoughtSignature";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Chunk<Part> {
    candidates: Option<Vec<Candidate<Part>>>,
    usage_metadata: Option<Usage>,
    model_version: Option<String>,
    response_id: Option<String>,
    prompt_feedback: Option<Feedback>,
    error: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Candidate<Part> {
    #[serde(default)]
    index: u32,
    content: Option<Content<Part>>,
    finish_reason: Option<String>,
    finish_message: Option<String>,
}

#[derive(Deserialize)]
struct Content<Part> {
    parts: Option<Vec<Part>>,
}

/// A part with a neutral form, which nearly all have: reading whatever there is costs a copy of each.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NeutralPart {
    text: Option<String>,
    thought: Option<bool>,
    thought_signature: Option<String>,
    function_call: Option<FunctionCall>,
}

impl From<NeutralPart> for Part {
    fn from(part: NeutralPart) -> Self {
        let NeutralPart { text, thought, thought_signature, function_call } = part;
        Self { text, thought, thought_signature, function_call, other: Map::new() }
    }
}

/// Any part. What has no neutral form is kept in `other`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Part {
    text: Option<String>,
    thought: Option<bool>,
    thought_signature: Option<String>,
    function_call: Option<FunctionCall>,
    #[serde(flatten)]
    other: Map<String, Value>,
}

#[derive(Deserialize)]
struct FunctionCall {
    id: Option<String>,
    #[serde(default)]
    name: String,
    args: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Feedback {
    block_reason: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Usage {
    prompt_token_count: Option<i64>,
    cached_content_token_count: Option<i64>,
    candidates_token_count: Option<i64>,
    thoughts_token_count: Option<i64>,
    tool_use_prompt_token_count: Option<i64>,
    service_tier: Option<String>,
}

impl Usage {
    /// Takes in what a later one counts; what it leaves out stands as it was. False if it counts nothing.
    fn take(&mut self, newer: &Self) -> bool {
        let mut counts = false;
        let mut take = |count: &mut Option<i64>, newer: Option<i64>| {
            counts |= newer.is_some();
            *count = newer.or(*count);
        };
        take(&mut self.prompt_token_count, newer.prompt_token_count);
        take(&mut self.cached_content_token_count, newer.cached_content_token_count);
        take(&mut self.candidates_token_count, newer.candidates_token_count);
        take(&mut self.thoughts_token_count, newer.thoughts_token_count);
        take(&mut self.tool_use_prompt_token_count, newer.tool_use_prompt_token_count);
        counts
    }

    /// The prompt is told with what was cached, the output without what was thought.
    fn neutral(&self) -> TokenUsage {
        let count = |count: Option<i64>| count.unwrap_or_default().max(0);
        let cache_read_tokens = count(self.cached_content_token_count);
        let reasoning_tokens = count(self.thoughts_token_count);
        let prompt = count(self.prompt_token_count).saturating_sub(cache_read_tokens).max(0);
        TokenUsage {
            input_uncached_tokens: prompt.saturating_add(count(self.tool_use_prompt_token_count)),
            cache_read_tokens,
            output_tokens: count(self.candidates_token_count).saturating_add(reasoning_tokens),
            reasoning_tokens,
            ..TokenUsage::default()
        }
    }
}

/// A chunk that is nothing but a text, as nearly all are.
struct Plain {
    text: String,
    usage: Option<Usage>,
}

impl Plain {
    /// `None` for all other chunks.
    fn read(data: &str) -> Option<Self> {
        let (mut text, mut usage) = (None, None);
        let mut quick = Quick::new(data);
        quick.object(|quick, key| match key {
            "candidates" => quick.array(|quick| once(&mut text, Self::candidate(quick)?)),
            "usageMetadata" => once(&mut usage, Usage::read(quick)?),
            "modelVersion" | "responseId" => quick.plain().map(drop),
            "promptFeedback" | "error" => None,
            _ => quick.skip(),
        })?;
        quick.end()?;
        Some(Self { text: text?, usage })
    }

    fn candidate(quick: &mut Quick<'_>) -> Option<String> {
        let mut text = None;
        quick.object(|quick, key| match key {
            "index" => quick.number().filter(|index| *index == 0).map(drop),
            "content" => quick.object(|quick, key| match key {
                "parts" => quick.array(|quick| {
                    quick.object(|quick, key| match key {
                        "text" => once(&mut text, quick.text()?),
                        _ => None,
                    })
                }),
                _ => quick.skip(),
            }),
            "finishReason" | "finishMessage" => None,
            _ => quick.skip(),
        })?;
        text
    }
}

impl Usage {
    fn read(quick: &mut Quick<'_>) -> Option<Self> {
        let mut usage = Self::default();
        quick.object(|quick, key| match key {
            "promptTokenCount" => once(&mut usage.prompt_token_count, quick.number()?.into()),
            "cachedContentTokenCount" => once(&mut usage.cached_content_token_count, quick.number()?.into()),
            "candidatesTokenCount" => once(&mut usage.candidates_token_count, quick.number()?.into()),
            "thoughtsTokenCount" => once(&mut usage.thoughts_token_count, quick.number()?.into()),
            "toolUsePromptTokenCount" => once(&mut usage.tool_use_prompt_token_count, quick.number()?.into()),
            "serviceTier" => once(&mut usage.service_tier, quick.text()?),
            _ => quick.skip(),
        })?;
        Some(usage)
    }
}

/// Of the response's id, what goes into the ids of calls: each of many calls repeats it.
const RESPONSE_ID_CHARACTERS_MAX: usize = 64;

/// The state of one answer.
pub(crate) struct Decoder {
    /// Makes ids of calls unique where the API gives none.
    messages: usize,
    /// The beginning of the response's id.
    response: String,
    opened: bool,
    blocks: Blocks,
    calls: u32,
    has_output: bool,
    usage: Usage,
    tier: tier::Told,
    stop: Option<Stop>,
}

impl answer::Decoder for Decoder {
    const PROVIDER: &'static str = NAME;

    fn event(&mut self, data: &str, deltas: &mut VecDeque<Delta>) -> Result<(), Error> {
        // The first one opens the answer, with more than a text.
        if let Some(Plain { text, usage }) = Some(data).filter(|_| self.opened).and_then(Plain::read) {
            self.used(usage, deltas);
            if !text.is_empty() {
                self.has_output = true;
                deltas.push_back(Delta::Text { block: self.blocks.saying(Said::Text), text });
            }
            return Ok(());
        }
        if let Ok(chunk) = serde_json::from_str::<Chunk<NeutralPart>>(data) {
            return self.chunk(chunk, deltas);
        }
        let chunk = serde_json::from_str::<Chunk<Part>>(data).map_err(|error| senseless(NAME, error))?;
        self.chunk(chunk, deltas)
    }

    fn failure(body: &Value) -> Error {
        failure::of_body(body)
    }

    /// The API has no last event: the body ends.
    fn stop(&self) -> Option<Stop> {
        self.stop
    }
}

impl Decoder {
    /// For the answer to a conversation of so many messages.
    pub(crate) fn new(messages: usize) -> Self {
        Self {
            messages,
            response: String::new(),
            opened: false,
            blocks: Blocks::default(),
            calls: 0,
            has_output: false,
            usage: Usage::default(),
            tier: tier::Told::default(),
            stop: None,
        }
    }

    fn chunk<P: Into<Part>>(&mut self, chunk: Chunk<P>, deltas: &mut VecDeque<Delta>) -> Result<(), Error> {
        if let Some(error) = chunk.error {
            return Err(failure::of_body(&json!({ "error": error })));
        }
        if !self.opened {
            self.opened = true;
            let response_id = chunk.response_id.unwrap_or_default();
            self.response = response_id.chars().take(RESPONSE_ID_CHARACTERS_MAX).collect();
            let model = chunk.model_version.unwrap_or_default();
            deltas.push_back(Delta::Opened { response_id, model });
        }
        // What was used comes before the end, which may be in the same chunk.
        self.used(chunk.usage_metadata, deltas);
        if let Some(reason) = chunk.prompt_feedback.and_then(|feedback| feedback.block_reason) {
            tracing::debug!(block_reason = reason, "the prompt was blocked");
            self.stop = Some(Stop::Refusal);
        }
        // We ask for one candidate.
        for candidate in chunk.candidates.unwrap_or_default().into_iter().filter(|candidate| candidate.index == 0) {
            let parts = candidate.content.and_then(|content| content.parts).unwrap_or_default();
            for part in parts {
                self.part(part.into(), deltas);
            }
            if let Some(reason) = candidate.finish_reason {
                self.stop = Some(self.finish(&reason, candidate.finish_message)?);
            }
        }
        Ok(())
    }

    fn used(&mut self, usage: Option<Usage>, deltas: &mut VecDeque<Delta>) {
        let Some(usage) = usage else { return };
        deltas.extend(self.tier.take(usage.service_tier.as_deref()));
        if self.usage.take(&usage) {
            deltas.push_back(Delta::Usage(self.usage.neutral()));
        }
    }

    fn part(&mut self, part: Part, deltas: &mut VecDeque<Delta>) {
        let Part { text, thought, thought_signature, function_call, other } = part;
        let signature = thought_signature.filter(|signature| !signature.is_empty());
        let text = text.filter(|text| !text.is_empty());
        self.has_output |= text.is_some() || function_call.is_some() || !other.is_empty();
        if thought == Some(true) {
            let block = self.blocks.saying(Said::Thinking);
            deltas.extend(text.map(|text| Delta::Thinking { block, text }));
            if let Some(signature) = signature {
                deltas.push_back(Delta::Signature { block, signature });
                // It is of this part and of none that follows.
                self.blocks.close();
            }
            return;
        }
        // Beside a text or a call it is only told of that: <https://ai.google.dev/api/caching#Part> has one kind of data in a part.
        if !other.is_empty() && text.is_none() && function_call.is_none() {
            let mut whole = other;
            whole.extend(signature.map(|signature| (SIGNATURE.to_owned(), signature.into())));
            deltas.push_back(native(self.blocks.apart(), &Value::Object(whole)));
            return;
        }
        let is_signed = signature.is_some();
        if let Some(signature) = signature {
            deltas.push_back(native(self.blocks.apart(), &json!({ SIGNATURE: signature })));
        }
        if let Some(text) = text {
            deltas.push_back(Delta::Text { block: self.blocks.saying(Said::Text), text });
            if is_signed {
                self.blocks.close();
            }
        }
        if let Some(call) = function_call {
            self.call(call, deltas);
        }
    }

    /// Calls come whole.
    fn call(&mut self, call: FunctionCall, deltas: &mut VecDeque<Delta>) {
        let block = self.blocks.apart();
        let made = || {
            // The id of the response makes it unique in the conversation, or else how much was said before it.
            let before = if self.response.is_empty() { self.messages.to_string() } else { self.response.clone() };
            format!("call_{before}_{}", self.calls)
        };
        let tool_call_id = call.id.filter(|id| !id.is_empty()).unwrap_or_else(made);
        self.calls += 1;
        let arguments_json = Value::Object(call.args.unwrap_or_default()).to_string();
        deltas.push_back(Delta::ToolCallStarted { block, tool_call_id, name: call.name });
        deltas.push_back(Delta::ToolArguments { block, partial_json: arguments_json.clone() });
        deltas.push_back(Delta::ToolCallStopped { block, arguments_json });
    }

    fn finish(&self, reason: &str, message: Option<String>) -> Result<Stop, Error> {
        Ok(match reason {
            "STOP" if self.calls > 0 => Stop::ToolUse,
            "STOP" => Stop::EndTurn,
            "MAX_TOKENS" => Stop::MaxTokens,
            "SAFETY" | "RECITATION" | "BLOCKLIST" | "PROHIBITED_CONTENT" | "SPII" | "LANGUAGE" => Stop::Refusal,
            "MALFORMED_FUNCTION_CALL" | "UNEXPECTED_TOOL_CALL" | "TOO_MANY_TOOL_CALLS" => Stop::BadToolCall,
            image if image.starts_with("IMAGE_") => Stop::Refusal,
            // It says no more than that it ended: an answer is kept, and nothing at all is worth another try.
            other if self.has_output => {
                tracing::warn!(finish_reason = other, "unknown reason to finish, taken for the end of the turn");
                Stop::EndTurn
            }
            other => {
                let message = message.unwrap_or_else(|| format!("ended for reason {other} and said nothing"));
                return Err(Error::new(NAME, Class::Overload, message));
            }
        })
    }
}

fn native(block: u32, whole: &Value) -> Delta {
    Delta::Native { block, native: NativeBlock { provider: NAME.to_owned(), json: whole.to_string() } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_read_in_place_and_nothing_else_is() {
        let content = r#"{"parts":[{"text":"a\nb"}],"role":"model"}"#;
        let text =
            format!(r#"{{"candidates":[{{"content":{content},"index":0}}],"usageMetadata":{{"promptTokenCount":8}}}}"#);
        let read = Plain::read(&text).unwrap();
        assert_eq!((&*read.text, read.usage.unwrap().prompt_token_count), ("a\nb", Some(8)));
        for other in [
            r#"{"candidates":[]}"#,
            r#"{"candidates":[{"content":{"parts":[{"text":"a"}]},"index":1}]}"#,
            r#"{"candidates":[{"content":{"parts":[{"text":"a"}]},"finishReason":"STOP"}]}"#,
            r#"{"candidates":[{"content":{"parts":[{"text":"a"},{"text":"b"}]}}]}"#,
            r#"{"candidates":[{"content":{"parts":[{"text":"a","thought":true}]}}]}"#,
            r#"{"candidates":[{"content":{"parts":[{"text":"a"}]}}],"promptFeedback":{}}"#,
            r#"{"candidates":[{"content":{"parts":[{"text":"a"}]}}],"error":{}}"#,
        ] {
            assert!(Plain::read(other).is_none(), "{other}");
        }
    }
}
