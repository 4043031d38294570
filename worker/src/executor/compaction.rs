//! Shortens what a model is sent of a conversation that is too long for it. The conversation itself, as checkpoints hold
//! it, stays whole: another model, or a larger bound, sees all of it again.
//!
//! What goes first is whole exchanges, the oldest first; then, within the newest, the oldest answers with the results of
//! their calls. A call and its result go together or not at all, and the user's newest words always stay.

use croft_llm::{carry, estimate};
use croft_proto::v1::content_block::Block;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{ContentBlock, Message, Progress, Role, Text};

use super::Executor;

/// What the model is told in the place of what is left out.
const LEFT_OUT: &str = "[Earlier parts of this conversation were left out.]";
/// What is left out is rounded up to this part of the bound. Then the conversation begins the same for many calls, as the cache of
/// a provider demands, and not with each another exchange later.
const STEPS: i64 = 4;
/// Below so many tokens nothing is shortened any more: what does not fit then never will.
const TOKENS_MIN: u32 = 256;

impl Executor<'_> {
    /// The model says that the conversation does not fit. True when a shorter one can be sent in its place.
    pub(super) fn compact(&mut self, provider: &str, model: &str) -> bool {
        let sent = estimate::conversation_tokens(&self.conversation(provider, model));
        let half = sent / 2;
        if half < TOKENS_MIN {
            return false;
        }
        self.bounds.context_tokens_max = half;
        let shorter = estimate::conversation_tokens(&self.conversation(provider, model));
        if shorter >= sent {
            return false;
        }
        // It was counted as it was.
        self.chain.input_tokens = None;
        tracing::info!(sent, shorter, "the conversation is shortened to fit the model");
        let message = "The oldest parts of the conversation are left out: it does not fit the model.".to_owned();
        self.link.preview(Kind::Progress(Progress { message }));
        true
    }
}

/// The conversation within `tokens_max`, as far as that can be had: as it is where nothing of it can go.
pub(super) fn compacted(mut messages: Vec<Message>, tokens_max: u32) -> Vec<Message> {
    let mut excess = i64::from(estimate::conversation_tokens(&messages)) - i64::from(tokens_max);
    if excess <= 0 {
        return messages;
    }
    let step = (i64::from(tokens_max) / STEPS).max(1);
    excess = (excess + step - 1) / step * step;
    let weight = |message: &Message| i64::from(estimate::conversation_tokens(std::slice::from_ref(message)));
    let Some(newest) = messages.iter().rposition(|message| message.role() == Role::User) else { return messages };
    let whole = messages.len();
    // Whole exchanges: from one word of the user's to the next.
    let mut exchanges: Vec<usize> =
        (0..newest).filter(|&place| place == 0 || messages[place].role() == Role::User).collect();
    exchanges.push(newest);
    let mut kept_from = 0;
    for ends in exchanges.windows(2) {
        if excess <= 0 {
            break;
        }
        excess -= messages[ends[0]..ends[1]].iter().map(weight).sum::<i64>();
        kept_from = ends[1];
    }
    messages.drain(..kept_from);
    // Then answers with their results, but never the last one, which the model is about to go on from.
    let newest = newest - kept_from;
    while excess > 0 {
        let answers: Vec<usize> =
            (newest + 1..messages.len()).filter(|&place| messages[place].role() == Role::Assistant).collect();
        let [first, next, ..] = answers[..] else { break };
        excess -= messages[first..next].iter().map(weight).sum::<i64>();
        messages.drain(first..next);
    }
    if messages.len() == whole {
        return messages;
    }
    carry::unbind(&mut messages);
    if let Some(first) = messages.first_mut() {
        let note = ContentBlock { block: Some(Block::Text(Text { text: LEFT_OUT.to_owned() })) };
        first.content.insert(0, note);
    }
    messages
}

#[cfg(test)]
mod tests;
