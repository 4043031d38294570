//! What an agent's tools must look like. Bounds are those of the kind `AgentSession`.

use std::collections::HashSet;

use croft_proto::v1::tool_spec::Source;
use croft_proto::v1::{AgentSpec, Permission, ReplayClass, ToolSpec};
use croft_serve::config::http_url;

use crate::error::Error;

const TOOLS_MAX: usize = 64;
const NAME_CHARS_MAX: usize = 64;
const DESCRIPTION_CHARS_MAX: usize = 4_096;
const BUILTIN_CHARS_MAX: usize = 64;
const URL_CHARS_MAX: usize = 512;
/// Of a tool's name at its server.
const SERVERS_NAME_CHARS_MAX: usize = 128;
const TIMEOUT_MS_MAX: i64 = 86_400_000;

/// The tools of a new session's agent.
pub(super) fn tools(agent: &AgentSpec) -> Result<(), Error> {
    if agent.tools.len() > TOOLS_MAX {
        return Err(Error::invalid("agent.tools", format!("has more than {TOOLS_MAX} entries")));
    }
    let mut seen = HashSet::new();
    for (position, tool) in agent.tools.iter().enumerate() {
        let field = |leaf: &str| format!("agent.tools[{position}].{leaf}");
        if let Err((leaf, problem)) = check(tool) {
            return Err(Error::invalid(field(leaf), problem));
        }
        if !seen.insert(&tool.name) {
            return Err(Error::invalid(field("name"), "stands for another tool already"));
        }
    }
    Ok(())
}

fn check(tool: &ToolSpec) -> Result<(), (&'static str, String)> {
    let wrong = |leaf, problem: &str| Err((leaf, problem.to_owned()));
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if tool.name.is_empty() || tool.name.len() > NAME_CHARS_MAX || !tool.name.chars().all(fits) {
        return wrong("name", "is not 1 to 64 of a-z A-Z 0-9 _ -");
    }
    if tool.description.chars().count() > DESCRIPTION_CHARS_MAX {
        return Err(("description", format!("is longer than {DESCRIPTION_CHARS_MAX} characters")));
    }
    match &tool.source {
        None => return wrong("source", "is missing"),
        Some(Source::Builtin(builtin)) => {
            if builtin.name.is_empty() || builtin.name.chars().count() > BUILTIN_CHARS_MAX {
                return Err(("builtin.name", format!("is not 1 to {BUILTIN_CHARS_MAX} characters")));
            }
        }
        Some(Source::Mcp(mcp)) => {
            if http_url(&mcp.server_url).is_err() || mcp.server_url.contains('@') {
                return wrong("mcp.server_url", "is no http:// or https:// address without a name in it");
            }
            if mcp.server_url.chars().count() > URL_CHARS_MAX {
                return Err(("mcp.server_url", format!("is longer than {URL_CHARS_MAX} characters")));
            }
            if mcp.tool_name.chars().count() > SERVERS_NAME_CHARS_MAX {
                return Err(("mcp.tool_name", format!("is longer than {SERVERS_NAME_CHARS_MAX} characters")));
            }
        }
        // Whether there is such an agent is looked at with the sub-agents.
        Some(Source::SubAgent(_)) => {}
    }
    let schema = &tool.input_schema_json;
    if !schema.is_empty() && serde_json::from_str::<serde_json::Map<_, _>>(schema).is_err() {
        return wrong("input_schema_json", "is not a JSON object");
    }
    if ReplayClass::try_from(tool.replay).is_err() {
        return wrong("replay", "is no class that this release knows");
    }
    if Permission::try_from(tool.permission).is_err() {
        return wrong("permission", "is none of allow, ask and deny");
    }
    super::limits::milliseconds(tool.timeout_ms, TIMEOUT_MS_MAX).map_err(|problem| ("timeout_ms", problem))
}

#[cfg(test)]
mod tests {
    use croft_proto::v1::{BuiltinTool, McpTool};

    use super::*;

    fn clock() -> ToolSpec {
        builtin("clock")
    }

    fn builtin(name: &str) -> ToolSpec {
        let source = Some(Source::Builtin(BuiltinTool { name: name.into() }));
        ToolSpec { name: "clock".into(), source, ..ToolSpec::default() }
    }

    fn mcp(server_url: &str, tool_name: &str) -> ToolSpec {
        let source = Some(Source::Mcp(McpTool { server_url: server_url.into(), tool_name: tool_name.into() }));
        ToolSpec { name: "book".into(), source, ..ToolSpec::default() }
    }

    #[test]
    fn each_bound_is_the_last_that_is_taken() {
        let server = |characters: usize| format!("https://tools.test/{}", "x".repeat(characters - 19));
        let edges = [
            (ToolSpec { description: "ü".repeat(4_096), ..clock() }, None),
            (ToolSpec { description: "ü".repeat(4_097), ..clock() }, Some("description")),
            (builtin(""), Some("builtin.name")),
            (builtin(&"x".repeat(64)), None),
            (builtin(&"x".repeat(65)), Some("builtin.name")),
            (mcp(&server(512), ""), None),
            (mcp(&server(513), ""), Some("mcp.server_url")),
            (mcp(&server(20), &"x".repeat(128)), None),
            (mcp(&server(20), &"x".repeat(129)), Some("mcp.tool_name")),
            (ToolSpec { timeout_ms: -1, ..clock() }, Some("timeout_ms")),
            (ToolSpec { timeout_ms: 86_400_000, ..clock() }, None),
            (ToolSpec { timeout_ms: 86_400_001, ..clock() }, Some("timeout_ms")),
            (ToolSpec { replay: 4, ..clock() }, Some("replay")),
            (ToolSpec { permission: 4, ..clock() }, Some("permission")),
        ];
        for (tool, leaf) in edges {
            let refused = match tools(&AgentSpec { tools: vec![tool.clone()], ..AgentSpec::default() }) {
                Err(Error::Invalid { field, .. }) => Some(field),
                other => other.map(|()| None).unwrap(),
            };
            assert_eq!(refused, leaf.map(|leaf| format!("agent.tools[0].{leaf}")), "{tool:?}");
        }
    }

    #[test]
    fn there_are_at_most_64() {
        let many = |count: usize| {
            let numbered = |number| ToolSpec { name: format!("clock-{number}"), ..clock() };
            AgentSpec { tools: (0..count).map(numbered).collect(), ..AgentSpec::default() }
        };
        tools(&many(64)).unwrap();
        assert_eq!(tools(&many(65)).unwrap_err().to_string(), "agent.tools has more than 64 entries");
    }
}
