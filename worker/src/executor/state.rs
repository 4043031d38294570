//! The state of a turn: all that a checkpoint holds, and nothing else.

use std::collections::{HashMap, HashSet};

use croft_llm::carry;
use croft_proto::conversation;
use croft_proto::v1::content_block::Block;
use croft_proto::v1::{
    ContentBlock, JournalledToolCall, Message, Role, SessionCheckpoint, ToolCall, ToolOutput, ToolResult, ToolUse,
};
use uuid::Uuid;

use crate::tools;

/// What is told of a call that was journalled and whose result never came.
pub(super) const OUTCOME_UNKNOWN: &str =
    "The outcome of the call is unknown: it was begun, and may or may not have taken effect.";

/// See the module.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct State {
    pub(super) messages: Vec<Message>,
    pub(super) superstep: u32,
    pub(super) model_calls: u32,
    pub(super) tool_calls: u32,
    turn_id: String,
    /// How the model ended its last answer, as in `ModelAttempt`; empty while it owes one.
    finish_reason: String,
    /// Calls that were begun and belong to open tool uses, by the provider's id.
    journal: HashMap<String, JournalledToolCall>,
}

impl State {
    /// The state that a turn begins with, and the results by which it closed what an earlier turn had left open.
    ///
    /// A checkpoint of this very turn already holds its input, so `input` is then not added again.
    pub(crate) fn begin(
        checkpoint: Option<SessionCheckpoint>,
        turn_id: &str,
        input: Vec<ContentBlock>,
        journal: Vec<JournalledToolCall>,
    ) -> (Self, Vec<ToolResult>) {
        let checkpoint = checkpoint.unwrap_or_default();
        let same_turn = checkpoint.turn_id == turn_id;
        let journal = journal_of(checkpoint.journal.into_iter().chain(journal));
        let mut state = Self {
            messages: checkpoint.messages,
            superstep: checkpoint.superstep,
            model_calls: if same_turn { checkpoint.model_calls } else { 0 },
            tool_calls: if same_turn { checkpoint.tool_calls } else { 0 },
            turn_id: turn_id.to_owned(),
            finish_reason: if same_turn { checkpoint.finish_reason } else { String::new() },
            journal,
        };
        let mut closed = Vec::new();
        if !same_turn && !input.is_empty() {
            closed = state.close_open_calls("The call was not made: the user went on with another message.");
            state.messages.push(Message { role: Role::User.into(), content: input, ..Message::default() });
        }
        (state, closed)
    }

    /// There is nothing to talk about.
    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// A snapshot, under an id of its own.
    pub(super) fn checkpoint(&self) -> SessionCheckpoint {
        let open: HashSet<String> = self.open_calls().into_iter().map(|call| call.tool_call_id).collect();
        let mut journal: Vec<_> =
            self.journal.iter().filter(|(id, _)| open.contains(*id)).map(|(_, entry)| entry.clone()).collect();
        journal.sort_by(|one, other| journalled_id(one).cmp(&journalled_id(other)));
        SessionCheckpoint {
            checkpoint_id: Uuid::now_v7().to_string(),
            superstep: self.superstep,
            messages: self.messages.clone(),
            model_calls: self.model_calls,
            tool_calls: self.tool_calls,
            turn_id: self.turn_id.clone(),
            journal,
            finish_reason: self.finish_reason.clone(),
        }
    }

    /// The calls of the model's last message that have no result, in its order.
    pub(super) fn open_calls(&self) -> Vec<ToolUse> {
        conversation::open_calls(&self.messages)
    }

    /// Who spoke last.
    pub(super) fn last_role(&self) -> Option<Role> {
        self.messages.last().map(Message::role)
    }

    /// How the model ended its answer to all of the conversation; empty while it owes one.
    pub(super) fn finish_reason(&self) -> &str {
        &self.finish_reason
    }

    /// What the model of a provider said, and how it ended.
    pub(super) fn answered(&mut self, content: Vec<ContentBlock>, finish_reason: &str, provider: &str, model: &str) {
        finish_reason.clone_into(&mut self.finish_reason);
        if !content.is_empty() {
            let (provider, model) = (provider.to_owned(), model.to_owned());
            self.messages.push(Message { role: Role::Assistant.into(), content, provider, model });
        }
    }

    /// Takes out what proves the thoughts of that model to be its own, since its provider does not take them back. Checkpoints go without
    /// it from the next one on. False when there is none.
    pub(super) fn unbind(&mut self, provider: &str, model: &str) -> bool {
        carry::unbind_of(&mut self.messages, provider, model)
    }

    /// Takes in results, which must come in the order of their calls.
    pub(super) fn took(&mut self, results: &[ToolResult]) {
        if results.is_empty() {
            return;
        }
        let outputs = results.iter().map(|result| {
            self.journal.remove(&result.tool_call_id);
            ContentBlock {
                block: Some(Block::ToolOutput(ToolOutput {
                    tool_call_id: result.tool_call_id.clone(),
                    content: result.content.clone(),
                    is_error: result.is_error,
                })),
            }
        });
        let content = outputs.collect();
        self.finish_reason.clear();
        self.messages.push(Message { role: Role::Tool.into(), content, ..Message::default() });
    }

    /// What was journalled of that call.
    pub(super) fn journalled(&self, tool_call_id: &str) -> Option<&JournalledToolCall> {
        self.journal.get(tool_call_id)
    }

    /// The call was begun for so many times, and the last outcome is not known.
    pub(super) fn begun(&mut self, call: ToolCall, times_begun: u32) {
        let id = call.tool_call_id.clone();
        self.journal.insert(id, JournalledToolCall { call: Some(call), result: None, times_begun });
    }

    /// A result that joins the conversation later, together with those of the other calls.
    pub(super) fn came(&mut self, call: ToolCall, result: ToolResult) {
        let entry = self.journal.entry(call.tool_call_id.clone()).or_default();
        entry.call = Some(call);
        entry.result = Some(result);
    }

    /// Ends every open call: with its journalled result, or else with an error. Returns the results that are news.
    pub(super) fn close_open_calls(&mut self, why: &str) -> Vec<ToolResult> {
        let mut all = Vec::new();
        let mut news = Vec::new();
        for call in self.open_calls() {
            let journalled = self.journal.get(&call.tool_call_id);
            if let Some(result) = journalled.and_then(|entry| entry.result.clone()) {
                all.push(result);
                continue;
            }
            let text = match journalled.and_then(|entry| entry.call.as_ref()) {
                Some(begun) => conversation::changed(&call.arguments_json, &begun.arguments_json) + OUTCOME_UNKNOWN,
                None if journalled.is_some() => OUTCOME_UNKNOWN.to_owned(),
                None => why.to_owned(),
            };
            let result = error_result(&call.tool_call_id, &text);
            news.push(result.clone());
            all.push(result);
        }
        self.took(&all);
        news
    }
}

/// By call; of several entries the last one counts.
fn journal_of(entries: impl Iterator<Item = JournalledToolCall>) -> HashMap<String, JournalledToolCall> {
    let mut journal: HashMap<String, JournalledToolCall> = HashMap::new();
    for mut entry in entries {
        let Some(id) = journalled_id(&entry).map(ToOwned::to_owned) else { continue };
        if let Some(older) = journal.get(&id) {
            // It was told again since, also where a front did not count.
            entry.times_begun = entry.times_begun.max(older.times_begun.max(1) + 1);
        }
        journal.insert(id, entry);
    }
    journal
}

fn journalled_id(entry: &JournalledToolCall) -> Option<&str> {
    entry.call.as_ref().map(|call| call.tool_call_id.as_str())
}

/// A result that tells the model of a failure, which may quote the call's own arguments.
pub(super) fn error_result(tool_call_id: &str, text: &str) -> ToolResult {
    let content = tools::within_bounds(tools::text(text));
    ToolResult { tool_call_id: tool_call_id.to_owned(), content, is_error: true, duration_ms: 0 }
}
