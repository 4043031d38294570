//! How many regular expressions an agent may have, with its sub-agents. How much they may take when compiled the worker says.

use croft_proto::v1::AgentSpec;
use croft_proto::v1::guardrail_spec::Check;

use crate::error::Error;

const PATTERNS_MAX: usize = 512;

/// Those of the guardrails and the permission rules of an agent and its sub-agents, each of which is fine by itself.
pub(super) fn patterns(agent: &AgentSpec) -> Result<(), Error> {
    let patterns: usize = std::iter::once(agent).chain(&agent.sub_agents).map(of).sum();
    if patterns > PATTERNS_MAX {
        let problem = format!(
            "has {patterns} patterns in guardrails and permission_rules, with its sub-agents, and {PATTERNS_MAX} is the limit"
        );
        return Err(Error::invalid("agent", problem));
    }
    Ok(())
}

fn of(agent: &AgentSpec) -> usize {
    let denied = agent.guardrails.iter().filter_map(|guardrail| match &guardrail.check {
        Some(Check::Pattern(pattern)) => Some(pattern.denied.len()),
        _ => None,
    });
    let matched = agent.permission_rules.iter().map(|rule| rule.arguments.len());
    denied.chain(matched).sum()
}

#[cfg(test)]
mod tests {
    use croft_proto::v1::{ArgumentMatch, GuardrailSpec, PatternCheck, PermissionRule};

    use super::*;

    fn agent(denied: usize, matched: usize, sub_agents: Vec<AgentSpec>) -> AgentSpec {
        let check = Check::Pattern(PatternCheck { denied: vec!["x".into(); denied] });
        let rule = PermissionRule { arguments: vec![ArgumentMatch::default(); matched], ..PermissionRule::default() };
        AgentSpec {
            guardrails: vec![GuardrailSpec { check: Some(check), ..GuardrailSpec::default() }],
            permission_rules: vec![rule],
            sub_agents,
            ..AgentSpec::default()
        }
    }

    #[test]
    fn those_of_an_agent_and_its_sub_agents_are_counted_together() {
        patterns(&agent(200, 56, vec![agent(200, 56, Vec::new())])).unwrap();
        let problem = patterns(&agent(200, 56, vec![agent(200, 57, Vec::new())])).unwrap_err().to_string();
        assert_eq!(
            problem,
            "agent has 513 patterns in guardrails and permission_rules, with its sub-agents, and 512 is the limit"
        );
    }
}
