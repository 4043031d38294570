//! Events of the Responses API as neutral deltas.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, VecDeque};

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
    /// Of the item that a piece belongs to.
    #[serde(borrow)]
    item_id: Option<Cow<'data, str>>,
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
    /// As the provider names it, and its item; empty where it does not.
    id: String,
    item_id: String,
    item: u32,
    arguments_json: String,
    is_over: bool,
}

/// The state of one answer.
#[derive(Default)]
pub(crate) struct Decoder {
    opened: bool,
    next_block: u32,
    /// The blocks of texts, by item and part.
    texts: BTreeMap<(u32, u32, Sort), u32>,
    /// All calls so far, in their order.
    calls: Vec<Call>,
    /// Their places by their own ids and by those of their items.
    calls_by_id: HashMap<String, usize>,
    /// And by the index of their item, of which some servers tell none or the same for all: the newest call has it.
    calls_by_index: BTreeMap<u32, usize>,
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
            "response.function_call_arguments.delta" => {
                let item_id = event.item_id.as_deref().unwrap_or_default();
                self.arguments(item, item_id, event.delta, deltas);
            }
            "response.output_item.added" => {
                if let Some(added) = event.item.filter(|added| added.text("type") == "function_call") {
                    self.call(self.by_ids(item, &added), item, &added, deltas);
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

/// Of two ids that may be left out.
fn is_same(one: &str, other: &str) -> bool {
    one.is_empty() || other.is_empty() || one == other
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

    /// The place of the call that this item is: of one that is known, or of a new one.
    fn call(&mut self, known: Option<usize>, item: u32, told: &Item, deltas: &mut VecDeque<Delta>) -> usize {
        if let Some(known) = known {
            return known;
        }
        let [call_id, item_id, name] = ["call_id", "id", "name"].map(|field| told.text(field).to_owned());
        let (block, place) = (self.block(), self.calls.len());
        let ids = [&call_id, &item_id].into_iter().filter(|id| !id.is_empty());
        self.calls_by_id.extend(ids.map(|id| (id.clone(), place)));
        self.calls_by_index.insert(item, place);
        deltas.push_back(Delta::ToolCallStarted { block, tool_call_id: call_id.clone(), name });
        self.calls.push(Call { block, id: call_id, item_id, item, arguments_json: String::new(), is_over: false });
        place
    }

    /// The call of an item by its own id, or else by that of the item. What has the id of a call, and nothing else of it, is another call.
    fn by_ids(&self, item: u32, told: &Item) -> Option<usize> {
        let [call_id, item_id] = ["call_id", "id"].map(|field| told.text(field));
        let by_id = |id: &str| Some(*self.calls_by_id.get(id)?).map(|place| (place, &self.calls[place]));
        let by_call = by_id(call_id).filter(|(_, call)| call.item == item || is_same(&call.item_id, item_id));
        let by_item = || by_id(item_id).filter(|(_, call)| is_same(&call.id, call_id));
        by_call.or_else(by_item).map(|(place, _)| place)
    }

    /// The call that is being received at the index of an item whose ids say nothing else.
    fn by_index(&self, item: u32, told: &Item) -> Option<usize> {
        let [call_id, item_id] = ["call_id", "id"].map(|field| told.text(field));
        self.calls_by_index.get(&item).copied().filter(|place| {
            let Call { id: known, item_id: known_item, is_over, .. } = &self.calls[*place];
            let fits = if call_id.is_empty() { is_same(known_item, item_id) } else { known.is_empty() };
            fits && !is_over
        })
    }

    fn arguments(&mut self, item: u32, item_id: &str, partial_json: Option<String>, deltas: &mut VecDeque<Delta>) {
        let Some(partial_json) = partial_json.filter(|partial_json| !partial_json.is_empty()) else { return };
        let place = self.calls_by_id.get(item_id).or_else(|| self.calls_by_index.get(&item));
        if let Some(call) = place.map(|place| &mut self.calls[*place]).filter(|call| !call.is_over) {
            call.arguments_json.push_str(&partial_json);
            deltas.push_back(Delta::ToolArguments { block: call.block, partial_json });
        }
    }

    /// An item that is whole, which is the only form in which reasoning may be given back.
    fn item(&mut self, item: u32, done: &Item, deltas: &mut VecDeque<Delta>) {
        match done.text("type") {
            "message" | "" => {}
            "function_call" => {
                let known = self.by_ids(item, done).or_else(|| self.by_index(item, done));
                let place = self.call(known, item, done, deltas);
                let call = &mut self.calls[place];
                // An item that was cut keeps its place, and is never made; one that is told again is the same.
                if done.text("status") == "incomplete" || std::mem::replace(&mut call.is_over, true) {
                    return;
                }
                self.called = true;
                let (whole, received) = (done.text("arguments"), std::mem::take(&mut call.arguments_json));
                let arguments_json = if whole.is_empty() { received } else { whole.to_owned() };
                let arguments_json = if arguments_json.is_empty() { "{}".to_owned() } else { arguments_json };
                deltas.push_back(Delta::ToolCallStopped { block: call.block, arguments_json });
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
