//! Leave for a turn's first model call, which the front asks for in the worker's place while the worker gets ready: the turn then waits
//! for no way to the worker and back. It is asked for only where the call is sure to come and its size is known; where there is no
//! room for it as things are, nothing is said to anybody, and the worker asks itself.

use croft_proto::conversation::open_calls;
use croft_proto::estimate;
use croft_proto::id::TenantId;
use croft_proto::v1::{AgentSpec, GrantRequest, StepStart};
use moka::sync::Cache;
use uuid::Uuid;

use super::purse::OUTPUT_TOKENS_DEFAULT;
use crate::session::Session;

/// The reason of a refusal that decides nothing: the worker is to ask.
pub(super) const ASK: &str = "ASK";
/// Configurations whose tools are remembered. At the bound the least used are forgotten, and told again by the next call.
const REMEMBERED_MAX: u64 = 10_000;

/// What the definitions of agents' tools weigh, by what workers told last: they alone know what their servers offer.
#[derive(Clone)]
pub struct ToolWeights {
    characters: Cache<(TenantId, String), u32>,
}

impl Default for ToolWeights {
    fn default() -> Self {
        Self { characters: Cache::new(REMEMBERED_MAX) }
    }
}

impl ToolWeights {
    /// A worker asks for leave, and tells.
    pub(super) fn learn(&self, session: &Session, request: &GrantRequest) {
        let key = (session.tenant, session.config_hash.clone());
        if has_tools(&session.agent) && self.characters.get(&key) != Some(request.tools_characters) {
            self.characters.insert(key, request.tools_characters);
        }
    }

    fn of(&self, session: &Session) -> Option<u32> {
        if has_tools(&session.agent) {
            self.characters.get(&(session.tenant, session.config_hash.clone()))
        } else {
            Some(0)
        }
    }
}

fn has_tools(agent: &AgentSpec) -> bool {
    !agent.tools.is_empty() || !agent.sub_agents.is_empty()
}

/// What the worker would ask for first, of a turn that has just begun; `None` where that can't be told.
pub(super) fn request(session: &Session, start: &StepStart, weights: &ToolWeights) -> Option<GrantRequest> {
    let agent = &session.agent;
    // A choice of models is told before the call, and a guard may end the turn before it, or change what is said.
    if agent.routing.is_some() || !agent.guardrails.is_empty() || start.input.is_empty() {
        return None;
    }
    let messages = start.checkpoint.as_ref().map_or(&[][..], |checkpoint| &checkpoint.messages);
    // They are closed first, which makes the conversation longer.
    let has_open_calls = start.checkpoint.as_ref().is_some_and(|checkpoint| !checkpoint.journal.is_empty());
    if has_open_calls || !open_calls(messages).is_empty() {
        return None;
    }
    let tools_characters = weights.of(session)?;
    let contents = messages.iter().map(|message| message.content.as_slice()).chain([start.input.as_slice()]);
    let weight = usize::try_from(tools_characters).unwrap_or(usize::MAX);
    let input_tokens_estimated = estimate::input_tokens(&agent.system_prompt, weight, contents);
    let limits = agent.limits.unwrap_or_default();
    // It is shortened, by how much is the worker's to say.
    if limits.context_tokens_max > 0 && input_tokens_estimated > limits.context_tokens_max {
        return None;
    }
    let output_tokens_max = match limits.output_tokens_max {
        0 => OUTPUT_TOKENS_DEFAULT,
        given => given,
    };
    Some(GrantRequest {
        request_id: Uuid::now_v7().to_string(),
        model: agent.model.clone(),
        input_tokens_estimated,
        output_tokens_max,
        tools_characters,
        ..GrantRequest::default()
    })
}
