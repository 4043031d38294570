//! Events of the Responses API as neutral deltas.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};

use croft_proto::v1::NativeBlock;
use serde::Deserialize;
use serde_json::Value;

use crate::answer::{self, senseless};
use crate::delta::{Delta, Stop};
use crate::error::{Class, Error};
use crate::openai::chat::Usage;
use crate::openai::{NAME, failure};
use crate::quick::{Quick, once};
use crate::tier;

/// All events in one: told apart by hand, since an enum with its tag inside costs a copy of each event.
#[derive(Deserialize)]
struct Event<'data> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'data, str>,
    #[serde(default)]
    output_index: u32,
    /// Of the part within the item.
    #[serde(default)]
    content_index: u32,
    /// Of the part within the summary of an item that is reasoning.
    #[serde(default)]
    summary_index: u32,
    delta: Option<String>,
    item: Option<Item>,
    response: Option<Response>,
}

#[derive(Deserialize)]
struct Kind<'data> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'data, str>,
}

/// An item of the output. What we don't know of it is kept as it came.
#[derive(Deserialize)]
#[serde(transparent)]
struct Item {
    whole: Value,
}

impl Item {
    fn text(&self, name: &str) -> &str {
        self.whole.get(name).and_then(Value::as_str).unwrap_or_default()
    }
}

#[derive(Deserialize)]
struct Response {
    #[serde(default)]
    id: String,
    #[serde(default)]
    model: String,
    usage: Option<Usage>,
    /// What was asked for at first, and how it was served in the last event.
    service_tier: Option<String>,
    error: Option<Value>,
    incomplete_details: Option<Incomplete>,
}

#[derive(Deserialize)]
struct Incomplete {
    #[serde(default)]
    reason: String,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Sort {
    Text,
    Thinking,
}

struct Call {
    block: u32,
    arguments_json: String,
}

/// The state of one answer.
#[derive(Default)]
pub(crate) struct Decoder {
    opened: bool,
    next_block: u32,
    /// The blocks of texts, by item and part.
    texts: BTreeMap<(u32, u32, Sort), u32>,
    /// The calls that are being received, by item.
    calls: BTreeMap<u32, Call>,
    called: bool,
    refused: bool,
    tier: tier::Told,
}

impl answer::Decoder for Decoder {
    const PROVIDER: &'static str = NAME;

    fn event(&mut self, data: &str, deltas: &mut VecDeque<Delta>) -> Result<(), Error> {
        if let Some((item, part, text)) = said(data) {
            self.text(item, part, Sort::Text, Some(text), deltas);
            return Ok(());
        }
        let event: Event<'_> = match serde_json::from_str(data) {
            Ok(event) => event,
            Err(error) => {
                // An event that is yet to come may have any shape.
                let other = serde_json::from_str(data).is_ok_and(|Kind { kind }| !is_known(&kind));
                return if other { Ok(()) } else { Err(senseless(NAME, error)) };
            }
        };
        let (item, part) = (event.output_index, event.content_index.max(event.summary_index));
        match &*event.kind {
            "response.output_text.delta" => self.text(item, part, Sort::Text, event.delta, deltas),
            "response.refusal.delta" => {
                // People are told in the model's own words.
                self.refused = true;
                self.text(item, part, Sort::Text, event.delta, deltas);
            }
            "response.reasoning_summary_text.delta" | "response.reasoning_text.delta" => {
                self.text(item, part, Sort::Thinking, event.delta, deltas);
            }
            "response.function_call_arguments.delta" => self.arguments(item, event.delta, deltas),
            "response.output_item.added" => {
                if let Some(added) = event.item.filter(|added| added.text("type") == "function_call") {
                    self.call(item, &added, deltas);
                }
            }
            "response.output_item.done" => {
                if let Some(done) = event.item {
                    self.item(item, &done, deltas);
                }
            }
            "response.created" | "response.queued" | "response.in_progress" => {
                if let Some(Response { id, model, .. }) = event.response.filter(|_| !self.opened) {
                    self.opened = true;
                    deltas.push_back(Delta::Opened { response_id: id, model });
                }
            }
            "response.completed" | "response.incomplete" => self.close(&event.kind, event.response, deltas),
            "response.failed" | "response.cancelled" => {
                let silent = || Error::new(NAME, Class::Overload, "failed without a word");
                let Some(Response { usage, service_tier, error, .. }) = event.response else { return Err(silent()) };
                // What was broken off was counted, too.
                self.count(usage, service_tier.as_deref(), deltas);
                return Err(error.map_or_else(silent, |error| failure::in_stream(&error)));
            }
            // With its fields beside the type, or in an object of their own.
            "error" => {
                let told: Value = serde_json::from_str(data).map_err(|error| senseless(NAME, error))?;
                return Err(in_event(told));
            }
            // What repeats the deltas, the progress of tools that OpenAI runs itself, and what is yet to come.
            _ => {}
        }
        Ok(())
    }

    fn failure(body: &Value) -> Error {
        failure::in_stream(body)
    }
}

/// The text that nearly every event is a piece of, with its item and part; `None` for all others.
fn said(data: &str) -> Option<(u32, u32, String)> {
    let (mut kind, mut item, mut part, mut summary, mut text) = (None, None, None, None, None);
    let mut quick = Quick::new(data);
    quick.object(|quick, key| match key {
        "type" => once(&mut kind, quick.plain().filter(|kind| *kind == "response.output_text.delta")?),
        "output_index" => once(&mut item, quick.number()?),
        "content_index" => once(&mut part, quick.number()?),
        "summary_index" => once(&mut summary, quick.number()?),
        "delta" => once(&mut text, quick.text()?),
        "item" | "response" => None,
        _ => quick.skip(),
    })?;
    quick.end()?;
    kind?;
    Some((item.unwrap_or_default(), part.max(summary).unwrap_or_default(), text?))
}

fn is_known(kind: &str) -> bool {
    matches!(
        kind,
        "response.output_text.delta"
            | "response.refusal.delta"
            | "response.reasoning_summary_text.delta"
            | "response.reasoning_text.delta"
            | "response.function_call_arguments.delta"
            | "response.output_item.added"
            | "response.output_item.done"
            | "response.created"
            | "response.completed"
            | "response.incomplete"
            | "response.failed"
            | "error"
    )
}

/// The event's own type would be taken for the error's.
fn in_event(mut told: Value) -> Error {
    if let Some(fields) = told.as_object_mut() {
        fields.remove("type");
    }
    failure::in_stream(&told)
}

impl Decoder {
    fn block(&mut self) -> u32 {
        let block = self.next_block;
        self.next_block += 1;
        block
    }

    fn text(&mut self, item: u32, part: u32, sort: Sort, text: Option<String>, deltas: &mut VecDeque<Delta>) {
        let Some(text) = text.filter(|text| !text.is_empty()) else { return };
        let block = self.texts.get(&(item, part, sort)).copied().unwrap_or_else(|| {
            let block = self.block();
            self.texts.insert((item, part, sort), block);
            block
        });
        deltas.push_back(match sort {
            Sort::Text => Delta::Text { block, text },
            Sort::Thinking => Delta::Thinking { block, text },
        });
    }

    fn call(&mut self, item: u32, added: &Item, deltas: &mut VecDeque<Delta>) -> u32 {
        let block = self.block();
        self.calls.insert(item, Call { block, arguments_json: String::new() });
        let [tool_call_id, name] = ["call_id", "name"].map(|field| added.text(field).to_owned());
        deltas.push_back(Delta::ToolCallStarted { block, tool_call_id, name });
        block
    }

    fn arguments(&mut self, item: u32, partial_json: Option<String>, deltas: &mut VecDeque<Delta>) {
        let Some(partial_json) = partial_json.filter(|partial_json| !partial_json.is_empty()) else { return };
        if let Some(call) = self.calls.get_mut(&item) {
            call.arguments_json.push_str(&partial_json);
            deltas.push_back(Delta::ToolArguments { block: call.block, partial_json });
        }
    }

    /// An item that is whole, which is the only form in which reasoning may be given back.
    fn item(&mut self, item: u32, done: &Item, deltas: &mut VecDeque<Delta>) {
        match done.text("type") {
            "message" | "" => {}
            "function_call" => {
                if !self.calls.contains_key(&item) {
                    self.call(item, done, deltas);
                }
                // An item that was cut keeps its place, and is never made.
                if done.text("status") == "incomplete" {
                    return;
                }
                if let Some(Call { block, arguments_json }) = self.calls.remove(&item) {
                    self.called = true;
                    let whole = done.text("arguments");
                    let arguments_json = if whole.is_empty() { arguments_json } else { whole.to_owned() };
                    let arguments_json = if arguments_json.is_empty() { "{}".to_owned() } else { arguments_json };
                    deltas.push_back(Delta::ToolCallStopped { block, arguments_json });
                }
            }
            // Without its encrypted content an item is known by its id alone, and nothing is stored under that.
            "reasoning" if done.text("encrypted_content").is_empty() => {}
            _ => {
                let native = NativeBlock { provider: NAME.to_owned(), json: done.whole.to_string() };
                deltas.push_back(Delta::Native { block: self.block(), native });
            }
        }
    }

    fn count(&mut self, usage: Option<Usage>, tier: Option<&str>, deltas: &mut VecDeque<Delta>) {
        deltas.extend(self.tier.take(tier));
        deltas.extend(usage.and_then(|usage| usage.neutral()).map(Delta::Usage));
    }

    fn close(&mut self, kind: &str, response: Option<Response>, deltas: &mut VecDeque<Delta>) {
        let (usage, tier, reason) = match response {
            Some(Response { usage, service_tier, incomplete_details, .. }) => {
                (usage, service_tier, incomplete_details.map(|details| details.reason).unwrap_or_default())
            }
            None => (None, None, String::new()),
        };
        self.count(usage, tier.as_deref(), deltas);
        let stop = match (kind, reason.as_str()) {
            ("response.incomplete", "content_filter") => Stop::Refusal,
            ("response.incomplete", _) => Stop::MaxTokens,
            _ if self.refused => Stop::Refusal,
            _ if self.called => Stop::ToolUse,
            _ => Stop::EndTurn,
        };
        deltas.push_back(Delta::Stop(stop));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_read_in_place_and_nothing_else_is() {
        let text =
            r#"{"type":"response.output_text.delta","output_index":1,"content_index":2,"delta":"a\nb","logprobs":[]}"#;
        assert_eq!(said(text), Some((1, 2, "a\nb".to_owned())));
        for other in [
            r#"{"type":"response.output_text.done","output_index":1,"content_index":2,"text":"a"}"#,
            r#"{"type":"response.refusal.delta","output_index":1,"content_index":2,"delta":"a"}"#,
            r#"{"type":"response.output_text.delta","output_index":1,"content_index":2}"#,
            r#"{"type":"response.output_text.delta","output_index":1,"delta":"a","item":{}}"#,
        ] {
            assert_eq!(said(other), None, "{other}");
        }
    }
}
