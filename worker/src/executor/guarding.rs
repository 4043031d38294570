//! Where the graph asks the guardrails: about the user's words before the model hears them, about what the model said
//! before it is stored, and about what tools gave.

use std::collections::HashMap;

use croft_proto::v1::content_block::Block;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{ContentBlock, GuardrailStage, GuardrailViolation, Role, StopReason};
use serde_json::{Map, Value, json};

use super::Executor;
use super::attempt::Shown;
use crate::guardrails::{Guardrails, Review};
use crate::interrupt::Why;
use crate::link::Link;
use crate::metrics::Metrics;

/// Stands for arguments that a guardrail refused: they are in no event and no checkpoint, and whoever goes on from there
/// makes no call without them.
const WITHHELD: &str = "withheld_by_guardrail";
/// Fields of native blocks with nothing in them for people to read.
const UNREAD: [&str; 6] = ["encrypted_content", "signature", "thoughtSignature", "id", "status", "type"];

impl Executor<'_> {
    /// Checks the user's words since the model's last answer: the newest, and those before it which no turn came to answer.
    /// What is refused is taken out of the conversation, so that no later turn brings it before the model either. Where a check's
    /// server is away for words that are not the newest, they stay: unless the model has answered them, the turn ends. Where it has just
    /// let the newest pass it is not away, and words of which it says nothing go.
    ///
    /// The input of this turn, and of any before it, may be there as the user sent it, where the front had to put the
    /// conversation together from its log. What is to be replaced in it is replaced again; it was told when it came.
    pub(super) async fn guard_input(&mut self) -> Result<Option<StopReason>, Why> {
        let Some(newest) = self.state.messages.iter().rposition(|message| message.role() == Role::User) else {
            return Ok(None);
        };
        let is_answered = newest + 1 < self.state.messages.len();
        let mut newest_passed = false;
        let mut ended = None;
        let mut place = newest;
        loop {
            let content = &mut self.state.messages[place].content;
            let is_newest = place == newest;
            let review = if is_newest && is_answered {
                // It had passed.
                self.interrupt.or(self.guardrails.review_again(GuardrailStage::Input, &mut texts(content))).await?;
                Review::default()
            } else {
                self.interrupt.or(review(self.guardrails, GuardrailStage::Input, content)).await?
            };
            let is_refused = review.blocked_by.is_some();
            if is_newest {
                // Nothing is asked about words that there are none of.
                newest_passed = !is_answered && !is_refused && !texts(content).is_empty();
            }
            let goes = is_refused && (is_newest || !review.is_unanswered || newest_passed);
            if goes || (!is_answered && (is_refused || is_newest)) {
                self.tell_violations(&review.violations).await;
            }
            if goes {
                self.state.messages.remove(place);
            }
            if !is_answered && is_refused && (is_newest || !goes) {
                ended = Some(StopReason::Guardrail);
            }
            if place == 0 || self.state.messages[place - 1].role() != Role::User {
                break;
            }
            place -= 1;
        }
        self.guard_again(place).await?;
        Ok(ended)
    }

    /// Does to the user's words before this place what was done when they came, should a front have brought them back. No
    /// server is asked about them a second time.
    async fn guard_again(&mut self, before: usize) -> Result<(), Why> {
        for place in (0..before).rev() {
            if self.state.messages[place].role() != Role::User {
                continue;
            }
            let is_answered = self.state.messages.get(place + 1).is_some_and(|next| next.role() != Role::User);
            let mut texts = texts(&mut self.state.messages[place].content);
            let asked = self.guardrails.review_again(GuardrailStage::Input, &mut texts);
            let review = self.interrupt.or(asked).await?;
            if review.blocked_by.is_some() && !is_answered {
                self.state.messages.remove(place);
            }
        }
        Ok(())
    }

    /// What of an answer may be seen while it comes.
    pub(super) fn shown(&self) -> Shown<'_> {
        Shown {
            link: self.link,
            thinking: !self.guardrails.enforces(GuardrailStage::Output),
            arguments: !self.guardrails.enforces(GuardrailStage::ToolArguments),
        }
    }

    /// An answer as it may be stored: without thinking that a check refuses, which no one but the model needs, and without
    /// arguments that one does. Its text has passed while it came. Fails where the step ends before all of it was
    /// checked; an answer that no check has to wait for is whole whenever the step ends.
    pub(super) async fn guarded(&self, content: Vec<ContentBlock>) -> Result<Vec<ContentBlock>, Why> {
        let looks = self.guardrails.look_at(GuardrailStage::Output);
        let mut kept = Vec::with_capacity(content.len());
        let mut thoughts = Thoughts::default();
        for mut block in content {
            let keeps = match &mut block.block {
                Some(Block::Thinking(thinking)) if looks => {
                    self.keeps(&mut thoughts, vec![thinking.text.clone()]).await?
                }
                // Most of them are what was thought, as its provider wants it back.
                Some(Block::Native(native)) if looks => self.keeps(&mut thoughts, native_texts(&native.json)).await?,
                Some(Block::ToolUse(call)) => {
                    let asked = self.guardrails.review_arguments(&mut call.arguments_json);
                    let review = self.interrupt.or_unready(asked).await?;
                    tell(self.link, self.metrics, &call.tool_call_id, &review.violations).await;
                    if let Some(guardrail) = review.blocked_by {
                        call.arguments_json = json!({ WITHHELD: guardrail }).to_string();
                    }
                    true
                }
                _ => true,
            };
            if keeps {
                kept.push(block);
            }
        }
        Ok(kept)
    }

    /// Whether what the model thought passes. A text that was there before in the answer is neither checked nor told a second time.
    async fn keeps(&self, thoughts: &mut Thoughts, texts: Vec<String>) -> Result<bool, Why> {
        let (known, new): (Vec<_>, Vec<_>) = texts.into_iter().partition(|text| thoughts.passed.contains_key(text));
        if !known.iter().all(|text| thoughts.passed[text]) {
            return Ok(false);
        }
        let mut whole = new.join("\n");
        let asked = self.guardrails.review_thinking(&mut whole);
        let review = self.interrupt.or_unready(asked).await?;
        self.tell_violations(&review.violations).await;
        // Signed text can't be changed.
        let passes = !review.violations.iter().any(|told| told.blocked || told.redacted);
        thoughts.passed.extend(new.into_iter().map(|text| (text, passes)));
        Ok(passes)
    }

    pub(super) async fn tell_violations(&self, violations: &[GuardrailViolation]) {
        tell(self.link, self.metrics, "", violations).await;
    }
}

/// What the checks said of each text that the model thought in one answer.
#[derive(Default)]
struct Thoughts {
    passed: HashMap<String, bool>,
}

/// What can be read in a native block: all texts but ids, the names of kinds, images and other media, and what its provider alone can
/// read.
fn native_texts(json: &str) -> Vec<String> {
    fn gather(value: Value, texts: &mut Vec<String>) {
        match value {
            Value::String(text) => texts.push(text),
            Value::Array(items) => items.into_iter().for_each(|item| gather(item, texts)),
            Value::Object(fields) => {
                let media = media_field(&fields);
                let is_read = |name: &str| !UNREAD.contains(&name) && media != Some(name);
                fields.into_iter().filter(|(name, _)| is_read(name)).for_each(|(_, value)| gather(value, texts));
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
    let mut texts = Vec::new();
    // What is no JSON goes back to nobody, and is a text all the same.
    gather(serde_json::from_str(json).unwrap_or_else(|_| Value::String(json.to_owned())), &mut texts);
    texts
}

/// The field of such an object that holds an image or another medium as base64, by the words of each provider.
fn media_field(fields: &Map<String, Value>) -> Option<&'static str> {
    let has_media_type = ["mimeType", "mime_type", "media_type"].iter().any(|name| fields.contains_key(*name));
    match fields.get("type").and_then(Value::as_str) {
        Some("image_generation_call") => Some("result"),
        // Anthropic's documents of plain text, which are as they are read.
        Some("text") => None,
        _ => has_media_type.then_some("data"),
    }
}

/// Checks the texts of something that was said.
pub(super) async fn review(guardrails: &Guardrails, stage: GuardrailStage, content: &mut [ContentBlock]) -> Review {
    let mut texts = texts(content);
    if texts.is_empty() { Review::default() } else { guardrails.review(stage, &mut texts).await }
}

fn texts(content: &mut [ContentBlock]) -> Vec<&mut String> {
    content
        .iter_mut()
        .filter_map(|block| match &mut block.block {
            Some(Block::Text(text)) => Some(&mut text.text),
            _ => None,
        })
        .collect()
}

/// Tells of what was found, in events and metrics.
pub(super) async fn tell(link: &Link, metrics: &Metrics, tool_call_id: &str, violations: &[GuardrailViolation]) {
    for violation in violations {
        let outcome = match (violation.blocked, violation.redacted) {
            (true, _) => "blocked",
            (false, true) => "redacted",
            (false, false) => "told",
        };
        metrics.guardrail_violation(&violation.point, outcome);
        let tool_call_id = tool_call_id.to_owned();
        link.event(Kind::GuardrailViolation(GuardrailViolation { tool_call_id, ..violation.clone() })).await;
    }
}

/// The guardrail that refused a call's arguments.
pub(super) fn withheld_by(arguments_json: &str) -> Option<String> {
    if !arguments_json.contains(WITHHELD) {
        return None;
    }
    let arguments: serde_json::Map<String, serde_json::Value> = serde_json::from_str(arguments_json).ok()?;
    Some(arguments.get(WITHHELD)?.as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_native_block_what_people_can_read_is_looked_at_and_no_image() {
        for (native, read) in [
            (json!({"inlineData": {"mimeType": "image/png", "data": "iVBORw"}}), vec!["image/png"]),
            (json!({"type": "image_generation_call", "result": "iVBORw", "revised_prompt": "a rose"}), vec!["a rose"]),
            (
                json!({"source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi"}}),
                vec!["application/pdf"],
            ),
            (
                json!({"source": {"type": "text", "media_type": "text/plain", "data": "a rose"}}),
                vec!["a rose", "text/plain"],
            ),
            (json!({"type": "code_interpreter_call", "result": "a rose", "data": ["red"]}), vec!["red", "a rose"]),
        ] {
            assert_eq!(native_texts(&native.to_string()), read, "{native}");
        }
    }
}
