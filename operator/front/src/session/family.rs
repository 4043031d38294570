//! Where sub-agents' sessions come from: each hangs on the call that it answers, below the session whose agent made it.

use std::collections::{BTreeSet, VecDeque};

use croft_proto::id::{SessionId, TurnId};
use croft_proto::v1::tool_spec::Source;
use croft_proto::v1::{self, AgentLimits, AgentSpec, ToolSpec};
use serde::{Deserialize, Serialize};

use super::Session;

/// Sessions that may stand below one that a client opened. An agent whose chain of sub-agents is longer is refused, and so is one
/// whose sub-agents call each other in a ring.
pub const DEPTH_MAX: usize = 4;

/// The call that a sub-agent's session answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    pub session: SessionId,
    pub turn: TurnId,
    pub tool_call_id: String,
    /// All sessions above, nearest first.
    pub lineage: Vec<Ancestor>,
}

/// A session above, with what its agent may spend: what sub-agents use counts against that, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ancestor {
    /// Its id, as text.
    pub session: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nano_usd: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<i64>,
}

impl Parent {
    /// For a sub-agent that this session's agent calls.
    pub fn of(caller: &Session, turn: TurnId, tool_call_id: &str) -> Self {
        let AgentLimits { budget_nano_usd, budget_tokens, .. } = caller.agent.limits.unwrap_or_default();
        let nearest = Ancestor {
            session: caller.id.to_string(),
            nano_usd: Some(budget_nano_usd).filter(|budget| *budget > 0),
            tokens: Some(budget_tokens).filter(|budget| *budget > 0),
        };
        let above = caller.parent.iter().flat_map(|parent| parent.lineage.iter().cloned());
        let lineage = std::iter::once(nearest).chain(above).collect();
        Self { session: caller.id, turn, tool_call_id: tool_call_id.to_owned(), lineage }
    }
}

impl From<&Parent> for v1::SessionParent {
    fn from(parent: &Parent) -> Self {
        Self {
            session_id: parent.session.to_string(),
            turn_id: parent.turn.to_string(),
            tool_call_id: parent.tool_call_id.clone(),
        }
    }
}

/// The name of the agent that a tool calls, if it calls one.
pub(crate) fn called_by(tool: &ToolSpec) -> Option<&str> {
    match &tool.source {
        Some(Source::SubAgent(sub_agent)) => Some(&sub_agent.agent),
        _ => None,
    }
}

/// The agent that this tool calls, ready for a session of its own: with the sub-agents that it may call in turn, and with no more time
/// than the tool has. `None` when the tool calls none.
pub(crate) fn callee(agent: &AgentSpec, tool_name: &str) -> Option<AgentSpec> {
    let tool = agent.tools.iter().find(|tool| tool.name == tool_name)?;
    let name = called_by(tool)?;
    let find = |name: &str| agent.sub_agents.iter().find(|sub_agent| sub_agent.name == name);
    let mut called = find(name)?.clone();
    let mut wanted = BTreeSet::new();
    let mut looked_at = VecDeque::from([&called]);
    while let Some(agent) = looked_at.pop_front() {
        for name in agent.tools.iter().filter_map(called_by) {
            if wanted.insert(name.to_owned()) {
                looked_at.extend(find(name));
            }
        }
    }
    let below = agent.sub_agents.iter().filter(|sub_agent| wanted.contains(&sub_agent.name)).cloned().collect();
    called.sub_agents = below;
    let limits = called.limits.get_or_insert_default();
    let times = [limits.turn_timeout_ms, tool.timeout_ms];
    limits.turn_timeout_ms = times.into_iter().filter(|time| *time > 0).min().unwrap_or(0);
    Some(called)
}

#[cfg(test)]
pub(crate) mod tests {
    use croft_proto::v1::SubAgentTool;

    use super::*;

    /// An agent that may call these.
    pub(crate) fn caller(name: &str, calls: &[&str]) -> AgentSpec {
        let tool = |agent: &&str| ToolSpec {
            name: format!("ask-{agent}"),
            source: Some(Source::SubAgent(SubAgentTool { agent: (*agent).to_owned() })),
            timeout_ms: 5_000,
            ..ToolSpec::default()
        };
        let tools = calls.iter().map(tool).collect();
        AgentSpec { name: name.into(), model: "scripted-1".into(), tools, ..AgentSpec::default() }
    }

    #[test]
    fn a_callee_brings_along_whom_it_may_call_and_nobody_else() {
        let sub_agents = vec![caller("b", &["c"]), caller("c", &["d"]), caller("d", &[]), caller("e", &[])];
        let agent = AgentSpec { sub_agents, ..caller("a", &["b", "e"]) };
        let callee = callee(&agent, "ask-b").unwrap();
        assert_eq!(callee.name, "b");
        let names: Vec<_> = callee.sub_agents.iter().map(|agent| agent.name.as_str()).collect();
        assert_eq!(names, ["c", "d"]);
        assert_eq!(callee.limits.unwrap().turn_timeout_ms, 5_000, "the tool's time");
        assert_eq!(super::callee(&agent, "ask-c"), None, "that tool is another's");
    }
}
