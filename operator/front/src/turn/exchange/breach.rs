//! What a worker may say, and how much of it at a time.

use croft_proto::v1::ExecuteStepResponse;
use croft_proto::v1::execute_step_response::Message as FromWorker;

use super::Exchange;
use crate::turn::words;

/// Grants that a worker may have asked for and not told the outcome of. It makes one call at a time, and a hedge; one that wants more is
/// broken off.
const GRANTS_MAX: usize = 64;
/// Sub-agents that a worker may call at the same time: as many as its turn may make calls, if the agent does not allow more of them. One
/// that wants more is broken off.
const SUB_AGENTS_MAX: usize = 100;

impl Exchange<'_> {
    /// Why the worker is to be broken off, if this is more than it may say.
    pub(super) fn breach(&self, response: &ExecuteStepResponse) -> Option<&'static str> {
        match &response.message {
            Some(FromWorker::Event(step_event)) => {
                let kind = step_event.event.as_ref().and_then(|event| event.kind.as_ref())?;
                let is_stored = step_event.event_index != 0;
                let may_be_told = if is_stored { words::may_be_stored(kind) } else { words::may_be_shown(kind) };
                (!may_be_told).then_some("it told what is not a worker's to tell")
            }
            Some(FromWorker::GrantRequest(_)) => (self.asking.len() + self.recorder.granted.count() >= GRANTS_MAX)
                .then_some("it asks for too many grants"),
            Some(FromWorker::SubAgentCall(call)) if !words::is_call_id(&call.tool_call_id) => {
                Some("it calls a sub-agent by what is no id of a call")
            }
            Some(FromWorker::SubAgentCall(_)) => {
                let told = self.session.agent.limits.map_or(0, |limits| limits.tool_calls_max as usize);
                (self.sub_agents.count() >= told.max(SUB_AGENTS_MAX)).then_some("it calls too many sub-agents")
            }
            Some(FromWorker::Checkpoint(_) | FromWorker::Finished(_)) | None => None,
        }
    }
}
