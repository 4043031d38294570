//! The ids of an answer's calls. A person's yes, the key by which a tool knows a call again and a sub-agent's session hang on
//! them, so that no two calls of a session may share one. Providers promise less: some give none, some begin anew with each
//! answer, and what an adapter makes up goes by the part of the conversation that was sent. And some give such as
//! `functions.search:0`, for which another that takes over would refuse the conversation.

use croft_llm::Delta;
use croft_llm::tool_call_ids::{BYTES_MAX, is_portable};
use croft_proto::v1::Message;
use croft_proto::v1::content_block::Block;

/// See the module.
pub(super) struct CallIds<'state> {
    /// All of the conversation, with every call that was ever made in it.
    messages: &'state [Message],
    /// Of this answer so far.
    given: Vec<String>,
}

impl<'state> CallIds<'state> {
    pub(super) fn new(messages: &'state [Message]) -> Self {
        Self { messages, given: Vec::new() }
    }

    /// Gives a call that begins another id if its own is none, another call's, or one that not every provider takes back. It
    /// depends on nothing but the conversation and the answer, so that whoever asks again from the same checkpoint comes to
    /// the same one.
    pub(super) fn settle(&mut self, delta: &mut Delta) {
        let Delta::ToolCallStarted { tool_call_id, .. } = delta else { return };
        if !is_portable(tool_call_id, BYTES_MAX) || self.is_taken(tool_call_id) {
            *tool_call_id = self.fresh();
        }
        self.given.push(tool_call_id.clone());
    }

    /// Portable by itself.
    fn fresh(&self) -> String {
        let made = format!("call_{}_{}", self.messages.len(), self.given.len());
        let mut id = made.clone();
        // Ends, as the conversation does.
        let mut tries = 1_u64;
        while self.is_taken(&id) {
            tries += 1;
            id = format!("{made}_{tries}");
        }
        id
    }

    fn is_taken(&self, id: &str) -> bool {
        let mut blocks = self.messages.iter().flat_map(|message| &message.content);
        self.given.iter().any(|given| given == id)
            || blocks.any(|block| matches!(&block.block, Some(Block::ToolUse(call)) if call.tool_call_id == id))
    }
}
