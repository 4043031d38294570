//! Sub-agents: each a whole agent, called by tools that exist, in chains that end, with no more to spend than their callers.

use std::collections::{BTreeSet, HashMap, HashSet};

use croft_proto::v1::AgentSpec;

use super::one;
use crate::error::Error;
use crate::session::family::{DEPTH_MAX, called_by};

const SUB_AGENTS_MAX: usize = 16;

/// Where an agent stands in the request.
struct Named<'a> {
    field: String,
    agent: &'a AgentSpec,
}

/// Those of an agent that is fine otherwise.
pub(super) fn sub_agents(agent: &AgentSpec) -> Result<(), Error> {
    if agent.sub_agents.len() > SUB_AGENTS_MAX {
        return Err(Error::invalid("agent.sub_agents", format!("has more than {SUB_AGENTS_MAX} entries")));
    }
    let mut by_name = HashMap::new();
    for (position, sub_agent) in agent.sub_agents.iter().enumerate() {
        let field = format!("agent.sub_agents[{position}]");
        one(sub_agent).map_err(|error| within(&field, error))?;
        if !sub_agent.sub_agents.is_empty() {
            return Err(Error::invalid(format!("{field}.sub_agents"), "is not empty: they belong in agent.sub_agents"));
        }
        if by_name.insert(sub_agent.name.as_str(), Named { field: field.clone(), agent: sub_agent }).is_some() {
            return Err(Error::invalid(format!("{field}.name"), "stands for another sub-agent already"));
        }
    }
    let top = Named { field: "agent".to_owned(), agent };
    for caller in std::iter::once(&top).chain(by_name.values()) {
        callees(caller, &by_name)?;
    }
    chains_end(agent, &by_name, &mut vec![&agent.name], &mut HashSet::new())
}

/// Whom an agent calls.
fn callees(caller: &Named<'_>, by_name: &HashMap<&str, Named<'_>>) -> Result<(), Error> {
    let own = caller.agent.limits.unwrap_or_default();
    for (position, tool) in caller.agent.tools.iter().enumerate() {
        let Some(name) = called_by(tool) else { continue };
        let Some(target) = by_name.get(name) else {
            let field = format!("{}.tools[{position}].sub_agent.agent", caller.field);
            return Err(Error::invalid(field, format!("names {name:?}, which agent.sub_agents does not have")));
        };
        let slice = target.agent.limits.unwrap_or_default();
        for (field, slice, whole) in [
            ("budget_nano_usd", slice.budget_nano_usd, own.budget_nano_usd),
            ("budget_tokens", slice.budget_tokens, own.budget_tokens),
        ] {
            if whole > 0 && slice > whole {
                let field = format!("{}.limits.{field}", target.field);
                let problem = format!("is {slice}, and agent {:?}, which calls it, has {whole}", caller.agent.name);
                return Err(Error::invalid(field, problem));
            }
        }
    }
    Ok(())
}

/// Follows every chain of calls. A ring is a chain without end. An agent that was `followed` at a depth needs no
/// other look there: chains branch at each tool, and would be as many as there are tools to the power of their depth.
fn chains_end<'a>(
    agent: &'a AgentSpec,
    by_name: &HashMap<&str, Named<'a>>,
    chain: &mut Vec<&'a str>,
    followed: &mut HashSet<(&'a str, usize)>,
) -> Result<(), Error> {
    let names: BTreeSet<_> = agent.tools.iter().filter_map(called_by).collect();
    for name in names {
        let Some(target) = by_name.get(name) else { continue };
        chain.push(name);
        if chain.len() > DEPTH_MAX + 1 {
            let problem = format!("calls {}, which is deeper than {DEPTH_MAX} below the first", chain.join(" → "));
            return Err(Error::invalid("agent.sub_agents", problem));
        }
        if followed.insert((name, chain.len())) {
            chains_end(target.agent, by_name, chain, followed)?;
        }
        chain.pop();
    }
    Ok(())
}

/// Names the field where it is.
fn within(place: &str, error: Error) -> Error {
    match error {
        Error::Invalid { field, problem } => {
            Error::invalid(format!("{place}{}", field.strip_prefix("agent").unwrap_or(&field)), problem)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use croft_proto::v1::AgentLimits;
    use tokio::time::Instant;

    use super::*;
    use crate::session::family::tests::caller;

    fn limited(agent: AgentSpec, budget_nano_usd: i64, budget_tokens: i64) -> AgentSpec {
        AgentSpec { limits: Some(AgentLimits { budget_nano_usd, budget_tokens, ..AgentLimits::default() }), ..agent }
    }

    fn top(calls: &[&str], sub_agents: Vec<AgentSpec>) -> AgentSpec {
        AgentSpec { sub_agents, ..caller("top", calls) }
    }

    fn refusal(agent: &AgentSpec) -> String {
        sub_agents(agent).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn each_mistake_is_a_sentence_that_names_its_place() {
        let ring = top(&["a"], vec![caller("a", &["b"]), caller("b", &["a"])]);
        let line = vec![caller("a", &["b"]), caller("b", &["c"]), caller("c", &["d"]), caller("d", &[])];
        let longer = [line.clone(), vec![caller("e", &[])]].concat();
        let mut too_long = top(&["a"], longer);
        too_long.sub_agents[3] = caller("d", &["e"]);
        let nested = AgentSpec { sub_agents: vec![caller("b", &[])], ..caller("a", &[]) };
        let cases = [
            (top(&[], vec![]), ""),
            (top(&["a"], line), ""),
            (top(&["x"], vec![]), "agent.tools[0].sub_agent.agent names \"x\", which agent.sub_agents does not have"),
            (
                top(&["a"], vec![caller("a", &["x"])]),
                "agent.sub_agents[0].tools[0].sub_agent.agent names \"x\", which agent.sub_agents does not have",
            ),
            (ring, "agent.sub_agents calls top → a → b → a → b → a, which is deeper than 4 below the first"),
            (too_long, "agent.sub_agents calls top → a → b → c → d → e, which is deeper than 4 below the first"),
            (
                top(&["a"], vec![caller("a", &[]), caller("a", &[])]),
                "agent.sub_agents[1].name stands for another sub-agent already",
            ),
            (top(&[], vec![caller("A", &[])]), "agent.sub_agents[0].name is not 1 to 63 of a-z 0-9 -"),
            (top(&[], vec![nested]), "agent.sub_agents[0].sub_agents is not empty: they belong in agent.sub_agents"),
            (
                limited(top(&["a"], vec![limited(caller("a", &[]), 9, 0)]), 8, 0),
                "agent.sub_agents[0].limits.budget_nano_usd is 9, and agent \"top\", which calls it, has 8",
            ),
            (
                limited(top(&["a"], vec![limited(caller("a", &[]), 0, 9)]), 8, 8),
                "agent.sub_agents[0].limits.budget_tokens is 9, and agent \"top\", which calls it, has 8",
            ),
            (limited(top(&["a"], vec![limited(caller("a", &[]), 8, 0)]), 8, 8), ""),
            (top(&[], vec![caller("a", &[]); 17]), "agent.sub_agents has more than 16 entries"),
        ];
        for (agent, expected) in cases {
            assert_eq!(refusal(&agent), expected);
        }
    }

    /// Every chain by itself would be 64⁴ of them.
    #[test]
    fn chains_that_branch_at_every_tool_are_followed_in_no_time() {
        let all_to = |name: &str, callee: &str| {
            let mut agent = caller(name, &[callee; 64]);
            for (position, tool) in agent.tools.iter_mut().enumerate() {
                tool.name = format!("ask-{position}");
            }
            agent
        };
        let sub_agents = vec![all_to("a", "b"), all_to("b", "c"), all_to("c", "d"), caller("d", &[])];
        let agent = AgentSpec { sub_agents, ..all_to("top", "a") };
        let begun = Instant::now();
        assert_eq!(refusal(&agent), "");
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}
