//! How much a worker may tell of one turn. Everything durable goes into a database that all tenants share, and a turn that no call bounds
//! would fill it.

use croft_proto::v1::execute_step_response::Message as FromWorker;
use croft_proto::v1::{AgentLimits, SessionError};

/// Calls of a turn whose agent says nothing, as workers have it.
const MODEL_CALLS_MAX: u32 = 25;
const TOOL_CALLS_MAX: u32 = 100;
/// Messages for each call that the agent may make. One that goes well needs six, and each try that does not two more.
const MESSAGES_PER_CALL: u64 = 16;
/// One for each superstep, and one more within it.
const CHECKPOINTS_PER_CALL: u64 = 2;
/// Beyond those of the calls: what ends a turn, and what workers that were lost told twice.
const MESSAGES_MORE: u64 = 1_000;
const CHECKPOINTS_MORE: u64 = 100;
/// Without the checkpoints, of which each takes the place of the one before: eight times the largest conversation.
const BYTES_MAX: u64 = 256 * 1024 * 1024;

/// What is left of one turn.
#[derive(Debug)]
pub(super) struct Extent {
    messages: u64,
    checkpoints: u64,
    bytes: u64,
}

impl Extent {
    pub(super) fn of(limits: Option<AgentLimits>) -> Self {
        let told = limits.unwrap_or_default();
        let or = |told, unset| u64::from(if told == 0 { unset } else { told });
        let calls = or(told.model_calls_max, MODEL_CALLS_MAX) + or(told.tool_calls_max, TOOL_CALLS_MAX);
        Self {
            messages: calls * MESSAGES_PER_CALL + MESSAGES_MORE,
            checkpoints: calls * CHECKPOINTS_PER_CALL + CHECKPOINTS_MORE,
            bytes: BYTES_MAX,
        }
    }

    /// Takes a message of so many bytes from what is left. False where there is less.
    pub(super) fn take(&mut self, message: Option<&FromWorker>, bytes: usize) -> bool {
        let (count, bytes) = match message {
            // Previews are stored nowhere.
            Some(FromWorker::Event(event)) if event.event_index == 0 => return true,
            Some(FromWorker::Checkpoint(_)) => (&mut self.checkpoints, 0),
            Some(FromWorker::Finished(_)) => (&mut self.messages, 0),
            _ => (&mut self.messages, bytes as u64),
        };
        let (Some(rest), Some(bytes)) = (count.checked_sub(1), self.bytes.checked_sub(bytes)) else { return false };
        (*count, self.bytes) = (rest, bytes);
        true
    }
}

/// Why a turn ends that went beyond.
pub(super) fn beyond() -> SessionError {
    SessionError {
        reason: "TURN_TOO_LARGE".to_owned(),
        message: "the worker told more of the turn than its calls can have made".to_owned(),
        retryable: false,
    }
}

#[cfg(test)]
mod tests {
    use croft_proto::v1::{GrantRequest, SessionCheckpoint, StepEvent};

    use super::*;

    fn event(event_index: u64) -> FromWorker {
        FromWorker::Event(StepEvent { event_index, event: None })
    }

    fn taken(extent: &mut Extent, message: &FromWorker, bytes: usize) -> u64 {
        (0_u64..).take_while(|_| extent.take(Some(message), bytes)).take(100_000).count() as u64
    }

    #[test]
    fn a_turn_has_room_for_what_its_calls_tell_and_a_bound_beyond_it() {
        let limits = AgentLimits { model_calls_max: 10, tool_calls_max: 20, ..AgentLimits::default() };
        let mut extent = Extent::of(Some(limits));
        assert_eq!(taken(&mut extent, &event(1), 100), 30 * MESSAGES_PER_CALL + MESSAGES_MORE);
        assert!(!extent.take(Some(&FromWorker::GrantRequest(GrantRequest::default())), 1));
        assert_eq!(taken(&mut extent, &event(0), 1_000_000), 100_000, "previews are as many as come");
        let checkpoint = FromWorker::Checkpoint(SessionCheckpoint::default());
        assert_eq!(taken(&mut extent, &checkpoint, 32_000_000), 30 * CHECKPOINTS_PER_CALL + CHECKPOINTS_MORE);
        let mut extent = Extent::of(None);
        assert_eq!(taken(&mut extent, &event(1), 64 * 1024 * 1024), 4);
        assert_eq!(taken(&mut extent, &event(1), 0), 125 * MESSAGES_PER_CALL + MESSAGES_MORE - 4);
    }
}
