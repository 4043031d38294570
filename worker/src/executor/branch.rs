//! The branches of the graph: what comes next, decided from the state alone.

use croft_llm::Stop;
use croft_proto::v1::{Role, StopReason};

use super::state::State;
use super::{Bounds, attempt};

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Model,
    Tools,
    End(StopReason),
}

/// What comes next when only the conversation is known: at the start, after a checkpoint was loaded, after tools.
pub(super) fn resume(state: &State, bounds: &Bounds) -> Next {
    if !state.open_calls().is_empty() {
        return tools(state, bounds);
    }
    if state.finish_reason() == attempt::CANCELLED {
        // Who told it to stop was lost before the turn was over.
        return Next::End(StopReason::Interrupted);
    }
    if state.finish_reason() == attempt::BLOCKED {
        return Next::End(StopReason::Guardrail);
    }
    if let Some(stop) = Stop::parse(state.finish_reason()) {
        return after_answer(state, bounds, stop);
    }
    match state.last_role() {
        Some(Role::User | Role::Tool) => model(state, bounds),
        Some(Role::Assistant | Role::Unspecified) | None => Next::End(StopReason::EndTurn),
    }
}

/// What comes next after the model's answer.
pub(super) fn after_answer(state: &State, bounds: &Bounds, stop: Stop) -> Next {
    let wants_tools = !state.open_calls().is_empty();
    match stop {
        // Some providers say "end" with calls beside it.
        Stop::EndTurn | Stop::ToolUse | Stop::BadToolCall if wants_tools => tools(state, bounds),
        Stop::EndTurn | Stop::ToolUse => Next::End(StopReason::EndTurn),
        // The model is asked again in place of such an answer, so that only an older checkpoint holds one.
        Stop::BadToolCall => Next::End(StopReason::Error),
        Stop::MaxTokens => Next::End(StopReason::MaxTokens),
        Stop::ContextFull => Next::End(StopReason::ContextFull),
        Stop::Refusal => Next::End(StopReason::Refusal),
        Stop::Pause => model(state, bounds),
    }
}

fn model(state: &State, bounds: &Bounds) -> Next {
    if state.model_calls >= bounds.model_calls_max { Next::End(StopReason::LoopLimit) } else { Next::Model }
}

/// A batch that would pass the bound is not begun: a part of it is no answer to the model's question.
fn tools(state: &State, bounds: &Bounds) -> Next {
    let wanted = u32::try_from(state.open_calls().len()).unwrap_or(u32::MAX);
    if state.tool_calls.saturating_add(wanted) > bounds.tool_calls_max {
        Next::End(StopReason::ToolLimit)
    } else {
        Next::Tools
    }
}
