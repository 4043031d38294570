//! What a worker may tell of a turn. Its tenant runs it, and should it be in somebody else's hands, it still says nothing that is for
//! the front, for people or for another turn to say.

use croft_proto::v1::session_event::Kind;

/// What is stored. Of a step, of its calls, and of what went wrong.
pub(super) fn may_be_stored(kind: &Kind) -> bool {
    match kind {
        Kind::StepStarted(_)
        | Kind::StepCompleted(_)
        | Kind::ModelAttempt(_)
        | Kind::AgentMessage(_)
        | Kind::ToolCall(_)
        | Kind::ToolResult(_)
        | Kind::ApprovalRequired(_)
        | Kind::GuardrailViolation(_)
        | Kind::Error(_) => true,
        Kind::SessionCreated(_)
        | Kind::SessionReady(_)
        | Kind::SessionRunning(_)
        | Kind::SessionIdle(_)
        | Kind::SessionTerminated(_)
        | Kind::UserMessage(_)
        | Kind::ApprovalResolved(_)
        | Kind::ModelRouted(_)
        // The front tells of each checkpoint that it takes.
        | Kind::CheckpointTaken(_)
        | Kind::BudgetAlert(_)
        | Kind::BudgetReached(_)
        | Kind::SubAgentStarted(_)
        | Kind::TextDelta(_)
        | Kind::ThinkingDelta(_)
        | Kind::ToolArgumentDelta(_)
        | Kind::Progress(_)
        | Kind::Gap(_) => false,
    }
}

/// What is shown, and stored nowhere.
pub(super) fn may_be_shown(kind: &Kind) -> bool {
    matches!(kind, Kind::TextDelta(_) | Kind::ThinkingDelta(_) | Kind::ToolArgumentDelta(_) | Kind::Progress(_))
}

/// Of a call's id, of which a sub-agent's session is found again. Workers give shorter ones, whatever a model calls its calls.
const CALL_ID_BYTES_MAX: usize = 255;

/// Whether it may name a call of a sub-agent: it goes into an index of the sessions.
pub(super) fn is_call_id(id: &str) -> bool {
    !id.is_empty() && id.len() <= CALL_ID_BYTES_MAX && !id.contains(char::is_control)
}
