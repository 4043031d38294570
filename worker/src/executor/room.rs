//! The room that the results of one superstep have in a conversation.

use croft_proto::conversation::{BYTES_MAX, MESSAGE_BYTES_MAX};
use croft_proto::v1::{ToolCall, ToolResult};
use prost::Message as _;

use crate::tools;

/// What goes with a conversation besides its messages and what was begun: the agent and the like.
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
    /// What is left beside all calls of the superstep, which whoever goes on with it is told of once more with their arguments, and
    /// beside results that it has already: of a worker that was lost, or of calls that were made before people were asked about others.
    /// They are told, and stay as they are.
    pub(super) fn beside<'state>(
        calls: impl IntoIterator<Item = (&'state ToolCall, Option<&'state ToolResult>)>,
    ) -> Self {
        let bytes = |(call, known): (&ToolCall, Option<&ToolResult>)| {
            call.encoded_len() + known.map_or(0, ToolResult::encoded_len)
        };
        let taken: usize = calls.into_iter().map(bytes).sum();
        Self { bytes: RESULTS_BYTES_MAX.saturating_sub(taken) }
    }

    /// To a call that has grown by so many bytes.
    pub(super) fn give(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// A new result as the model may have it.
    pub(super) fn take(&mut self, mut result: ToolResult) -> ToolResult {
        if result.encoded_len() > self.bytes {
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
        let mut room = Room::beside([]);
        let taken: Vec<_> = (0..100).map(|_| room.take(result(RESULT_BYTES))).collect();
        let left_out = taken.iter().filter(|result| is_left_out(result)).count();
        assert!((80..100).contains(&left_out), "{left_out} of them");
        let bytes: usize = taken.iter().map(ToolResult::encoded_len).sum();
        assert!(bytes <= RESULTS_BYTES_MAX, "{bytes} bytes");
        assert!(!is_left_out(&room.take(result(1000))));
    }

    #[test]
    fn what_the_superstep_has_already_takes_its_room_however_much_it_is() {
        for (known_bytes, has_room) in [(RESULTS_BYTES_MAX / 4, true), (RESULTS_BYTES_MAX / 2, false)] {
            let (call, known) = (ToolCall::default(), result(known_bytes));
            let mut room = Room::beside([(&call, Some(&known)), (&call, Some(&known))]);
            assert_eq!(!is_left_out(&room.take(result(1000))), has_room);
        }
    }

    #[test]
    fn the_arguments_of_all_calls_take_their_room() {
        for (arguments_bytes, has_room) in [(RESULTS_BYTES_MAX / 4, true), (RESULTS_BYTES_MAX / 2, false)] {
            let call = ToolCall { arguments_json: "x".repeat(arguments_bytes), ..ToolCall::default() };
            let mut room = Room::beside([(&call, None), (&call, None)]);
            assert_eq!(!is_left_out(&room.take(result(1000))), has_room);
        }
    }
}
