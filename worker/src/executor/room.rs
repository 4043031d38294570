//! The room that the results of one superstep have in a conversation.

use croft_proto::conversation::{BYTES_MAX, MESSAGE_BYTES_MAX};
use croft_proto::v1::ToolResult;
use prost::Message as _;

use crate::tools;

/// What goes with a conversation besides its messages: the agent, what was begun, and the like.
const REST_BYTES: usize = 8 * 1024 * 1024;
/// A conversation that may go on, what a superstep adds to it, and the rest are one message between a worker and a front. Larger ones
/// can't be sent, so that no worker and no front could go on with the turn.
const RESULTS_BYTES_MAX: usize = MESSAGE_BYTES_MAX - BYTES_MAX - REST_BYTES;
const LEFT_OUT: &str =
    "The call was made, and its result is left out: with those of the calls beside it there was no more room for it.";

/// Counts down with each result.
pub(super) struct Room {
    bytes: usize,
}

impl Room {
    pub(super) fn of_a_superstep() -> Self {
        Self { bytes: RESULTS_BYTES_MAX }
    }

    /// The result as the model may have it. One that is told of already stays as it is.
    pub(super) fn take(&mut self, mut result: ToolResult, is_told: bool) -> ToolResult {
        if !is_told && result.encoded_len() > self.bytes {
            result.content = tools::text(LEFT_OUT);
        }
        self.bytes = self.bytes.saturating_sub(result.encoded_len());
        result
    }
}

#[cfg(test)]
mod tests {
    use croft_proto::v1::ContentBlock;
    use croft_proto::v1::content_block::Block;

    use super::*;

    fn result(bytes: usize) -> ToolResult {
        ToolResult { tool_call_id: "call-1".into(), content: tools::text("x".repeat(bytes)), ..ToolResult::default() }
    }

    fn is_left_out(result: &ToolResult) -> bool {
        let [ContentBlock { block: Some(Block::Text(text)) }] = &result.content[..] else { panic!("{result:?}") };
        text.text == LEFT_OUT
    }

    #[test]
    fn what_comes_to_more_than_a_message_holds_is_left_out_and_small_results_are_not() {
        const RESULT_BYTES: usize = 2 * 1024 * 1024;
        let mut room = Room::of_a_superstep();
        let taken: Vec<_> = (0..100).map(|_| room.take(result(RESULT_BYTES), false)).collect();
        let left_out = taken.iter().filter(|result| is_left_out(result)).count();
        assert!((80..100).contains(&left_out), "{left_out} of them");
        let bytes: usize = taken.iter().map(ToolResult::encoded_len).sum();
        assert!(bytes <= RESULTS_BYTES_MAX, "{bytes} bytes");
        assert!(!is_left_out(&room.take(result(1000), false)));
    }

    #[test]
    fn what_was_told_of_is_never_changed_and_takes_its_room() {
        let mut room = Room::of_a_superstep();
        assert!(!is_left_out(&room.take(result(RESULTS_BYTES_MAX + 1), true)));
        assert!(is_left_out(&room.take(result(1000), false)));
        assert!(!is_left_out(&room.take(result(1000), true)));
    }
}
