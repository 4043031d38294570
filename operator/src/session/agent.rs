//! The declared agent as the front wants it.

use croft_crds::session::{
    AgentLimitsSpec, AgentRoleSpec, AgentSpec, ArgumentMatchSpec, GuardrailModeSpec, GuardrailSpec, GuardrailStageSpec,
    PermissionRuleSpec, PermissionSpec, ReplaySpec, RoutingSpec, SubAgentSpec, ToolSpec,
};
use croft_crds::tenant::nano_usd;
use croft_proto::v1;
use croft_proto::v1::guardrail_spec::Check;
use croft_proto::v1::tool_spec::Source;

/// `name` stands in for one that the spec doesn't give.
pub fn to_proto(agent: &AgentSpec, name: &str) -> v1::AgentSpec {
    let AgentSpec {
        name: own_name,
        model,
        system_prompt,
        tools,
        guardrails,
        permission_rules,
        limits,
        fallback_models,
        routing,
        temperature,
        sub_agents,
        hedge_after_ms,
    } = agent;
    v1::AgentSpec {
        name: own_name.clone().unwrap_or_else(|| name.to_owned()),
        model: model.clone(),
        system_prompt: system_prompt.clone(),
        tools: tools.iter().map(tool).collect(),
        limits: Some(bounds(limits)),
        fallback_models: fallback_models.clone(),
        temperature: *temperature,
        guardrails: guardrails.iter().map(guardrail).collect(),
        permission_rules: permission_rules.iter().map(permission_rule).collect(),
        hedge_after_ms: hedge_after_ms.unwrap_or(0).into(),
        routing: (!routing.economy_models.is_empty()).then(|| self::routing(routing)),
        sub_agents: sub_agents.iter().map(sub_agent).collect(),
    }
}

fn sub_agent(agent: &SubAgentSpec) -> v1::AgentSpec {
    let SubAgentSpec {
        name,
        model,
        system_prompt,
        tools,
        guardrails,
        permission_rules,
        limits,
        fallback_models,
        routing,
        temperature,
        hedge_after_ms,
    } = agent;
    v1::AgentSpec {
        name: name.clone(),
        model: model.clone(),
        system_prompt: system_prompt.clone(),
        tools: tools.iter().map(tool).collect(),
        limits: Some(bounds(limits)),
        fallback_models: fallback_models.clone(),
        temperature: *temperature,
        guardrails: guardrails.iter().map(guardrail).collect(),
        permission_rules: permission_rules.iter().map(permission_rule).collect(),
        routing: (!routing.economy_models.is_empty()).then(|| self::routing(routing)),
        hedge_after_ms: hedge_after_ms.unwrap_or(0).into(),
        sub_agents: Vec::new(),
    }
}

fn routing(routing: &RoutingSpec) -> v1::RoutingSpec {
    let RoutingSpec { role, economy_models } = routing;
    let role = match role {
        AgentRoleSpec::Critical => v1::AgentRole::Critical,
        AgentRoleSpec::Standard => v1::AgentRole::Standard,
        AgentRoleSpec::Background => v1::AgentRole::Background,
    };
    v1::RoutingSpec { role: role.into(), economy_models: economy_models.clone() }
}

fn tool(tool: &ToolSpec) -> v1::ToolSpec {
    let ToolSpec { name, description, input_schema, builtin, mcp, sub_agent, replay, permission, timeout_seconds } =
        tool;
    let replay = match replay {
        ReplaySpec::Safe => v1::ReplayClass::Safe,
        ReplaySpec::Idempotent => v1::ReplayClass::Idempotent,
        ReplaySpec::Unsafe => v1::ReplayClass::Unsafe,
    };
    let builtin = builtin.as_ref().map(|builtin| Source::Builtin(v1::BuiltinTool { name: builtin.name.clone() }));
    let mcp = mcp
        .as_ref()
        .map(|mcp| Source::Mcp(v1::McpTool { server_url: mcp.server_url.clone(), tool_name: mcp.tool_name.clone() }));
    let sub_agent = sub_agent.as_ref().map(|called| Source::SubAgent(v1::SubAgentTool { agent: called.agent.clone() }));
    v1::ToolSpec {
        name: name.clone(),
        description: description.clone(),
        input_schema_json: input_schema.as_ref().map(ToString::to_string).unwrap_or_default(),
        source: builtin.or(mcp).or(sub_agent),
        replay: replay.into(),
        permission: self::permission(*permission).into(),
        timeout_ms: milliseconds(*timeout_seconds),
    }
}

fn permission(permission: PermissionSpec) -> v1::Permission {
    match permission {
        PermissionSpec::Allow => v1::Permission::Allow,
        PermissionSpec::Ask => v1::Permission::Ask,
        PermissionSpec::Deny => v1::Permission::Deny,
    }
}

fn permission_rule(rule: &PermissionRuleSpec) -> v1::PermissionRule {
    let PermissionRuleSpec { tool, arguments, permission, message } = rule;
    let argument = |ArgumentMatchSpec { path, pattern }: &ArgumentMatchSpec| v1::ArgumentMatch {
        path: path.clone(),
        pattern: pattern.clone(),
    };
    v1::PermissionRule {
        tool: tool.clone(),
        arguments: arguments.iter().map(argument).collect(),
        permission: self::permission(*permission).into(),
        message: message.clone(),
    }
}

fn guardrail(guardrail: &GuardrailSpec) -> v1::GuardrailSpec {
    let GuardrailSpec { name, stages, mode, length, pattern, personal_data, json_schema, http } = guardrail;
    let stages = stages.iter().map(|stage| match stage {
        GuardrailStageSpec::Input => v1::GuardrailStage::Input,
        GuardrailStageSpec::ToolArguments => v1::GuardrailStage::ToolArguments,
        GuardrailStageSpec::ToolResult => v1::GuardrailStage::ToolResult,
        GuardrailStageSpec::Output => v1::GuardrailStage::Output,
    });
    let mode = match mode {
        GuardrailModeSpec::Enforce => v1::GuardrailMode::Enforce,
        GuardrailModeSpec::Shadow => v1::GuardrailMode::Shadow,
    };
    // The kind's rules let exactly one through.
    let length = length.as_ref().map(|check| Check::Length(v1::LengthCheck { characters_max: check.max_characters }));
    let pattern = pattern.as_ref().map(|check| Check::Pattern(v1::PatternCheck { denied: check.denied.clone() }));
    let personal_data = personal_data.as_ref().map(|check| {
        let kinds = check.kinds.iter().map(|kind| kind.as_str().to_owned()).collect();
        Check::PersonalData(v1::PersonalDataCheck { kinds, redact: check.redact })
    });
    let json_schema = json_schema
        .as_ref()
        .map(|check| Check::JsonSchema(v1::JsonSchemaCheck { schema_json: check.schema.to_string() }));
    let http = http.as_ref().map(|check| {
        Check::Http(v1::HttpCheck {
            url: check.url.clone(),
            timeout_ms: milliseconds(check.timeout_seconds),
            fail_open: check.fail_open,
        })
    });
    v1::GuardrailSpec {
        name: name.clone(),
        stages: stages.map(Into::into).collect(),
        mode: mode.into(),
        check: length.or(pattern).or(personal_data).or(json_schema).or(http),
    }
}

fn bounds(limits: &AgentLimitsSpec) -> v1::AgentLimits {
    let AgentLimitsSpec {
        max_model_calls,
        max_tool_calls,
        max_output_tokens,
        max_context_tokens,
        turn_timeout_seconds,
        budget_usd,
        budget_tokens,
    } = limits;
    v1::AgentLimits {
        model_calls_max: max_model_calls.unwrap_or(0),
        tool_calls_max: max_tool_calls.unwrap_or(0),
        output_tokens_max: max_output_tokens.unwrap_or(0),
        context_tokens_max: max_context_tokens.unwrap_or(0),
        turn_timeout_ms: milliseconds(*turn_timeout_seconds),
        budget_nano_usd: budget_usd.as_deref().and_then(nano_usd).unwrap_or(0),
        budget_tokens: budget_tokens.unwrap_or(0),
    }
}

fn milliseconds(seconds: Option<u32>) -> i64 {
    i64::from(seconds.unwrap_or(0)) * 1_000
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn everything_that_is_declared_arrives() {
        let agent: AgentSpec = serde_json::from_value(json!({
            "name": "clerk", "model": "claude-haiku-4-5", "systemPrompt": "Be brief.",
            "tools": [
                {
                    "name": "now", "description": "Tells the time.", "builtin": { "name": "clock" },
                    "inputSchema": { "type": "object" }, "replay": "safe", "timeoutSeconds": 3,
                },
                {
                    "name": "book", "mcp": { "serverUrl": "https://tools.example.com/mcp", "toolName": "reserve" },
                    "permission": "ask",
                },
                { "name": "look-up", "subAgent": { "agent": "reader" } },
            ],
            "subAgents": [
                {
                    "name": "reader", "model": "scripted-1", "systemPrompt": "Read.",
                    "tools": [{ "name": "now", "builtin": { "name": "clock" } }],
                    "guardrails": [{ "name": "short", "length": { "maxCharacters": 90 } }],
                    "permissionRules": [{ "tool": "now", "permission": "deny" }],
                    "limits": { "budgetTokens": 500 }, "fallbackModels": ["other"], "temperature": 0.5,
                    "routing": { "economyModels": ["cheap"] },
                },
            ],
            "guardrails": [
                { "name": "short", "stages": ["Input", "Output"], "length": { "maxCharacters": 900 } },
                { "name": "words", "mode": "Shadow", "pattern": { "denied": ["(?i)secret"] } },
                { "name": "people", "personalData": { "kinds": ["email", "iban"], "redact": true } },
                { "name": "shape", "stages": ["ToolArguments"], "jsonSchema": { "schema": { "type": "object" } } },
                { "name": "asked", "stages": ["ToolResult"],
                  "http": { "url": "https://checks.example.com", "timeoutSeconds": 2, "failOpen": true } },
            ],
            "limits": {
                "maxModelCalls": 5, "maxToolCalls": 6, "maxOutputTokens": 700, "turnTimeoutSeconds": 80,
                "maxContextTokens": 9000,
                "budgetUsd": "2.5", "budgetTokens": 4000,
            },
            "permissionRules": [
                { "tool": "book", "arguments": [{ "path": "/seats", "pattern": "^[5-9]$" }], "permission": "deny",
                  "message": "At most four." },
            ],
            "fallbackModels": ["scripted-1"], "temperature": 0.25, "hedgeAfterMs": 1500,
            "routing": { "role": "Background", "economyModels": ["scripted-1"] },
        }))
        .unwrap();
        let expected: v1::AgentSpec = serde_json::from_value(json!({
            "name": "clerk", "model": "claude-haiku-4-5", "systemPrompt": "Be brief.",
            "tools": [
                {
                    "name": "now", "description": "Tells the time.", "builtin": { "name": "clock" },
                    "inputSchemaJson": "{\"type\":\"object\"}", "replay": "REPLAY_CLASS_SAFE",
                    "permission": "PERMISSION_ALLOW", "timeoutMs": "3000",
                },
                {
                    "name": "book", "mcp": { "serverUrl": "https://tools.example.com/mcp", "toolName": "reserve" },
                    "replay": "REPLAY_CLASS_UNSAFE", "permission": "PERMISSION_ASK",
                },
                { "name": "look-up", "subAgent": { "agent": "reader" }, "replay": "REPLAY_CLASS_UNSAFE",
                  "permission": "PERMISSION_ALLOW" },
            ],
            "subAgents": [
                {
                    "name": "reader", "model": "scripted-1", "systemPrompt": "Read.",
                    "tools": [
                        { "name": "now", "builtin": { "name": "clock" }, "replay": "REPLAY_CLASS_UNSAFE",
                          "permission": "PERMISSION_ALLOW" },
                    ],
                    "guardrails": [
                        { "name": "short", "mode": "GUARDRAIL_MODE_ENFORCE", "length": { "charactersMax": 90 } },
                    ],
                    "permissionRules": [{ "tool": "now", "permission": "PERMISSION_DENY" }],
                    "limits": { "budgetTokens": "500" }, "fallbackModels": ["other"], "temperature": 0.5,
                    "routing": { "role": "AGENT_ROLE_STANDARD", "economyModels": ["cheap"] },
                },
            ],
            "routing": { "role": "AGENT_ROLE_BACKGROUND", "economyModels": ["scripted-1"] },
            "limits": {
                "modelCallsMax": 5, "toolCallsMax": 6, "outputTokensMax": 700, "turnTimeoutMs": "80000",
                "contextTokensMax": 9000,
                "budgetNanoUsd": "2500000000", "budgetTokens": "4000",
            },
            "guardrails": [
                { "name": "short", "stages": ["GUARDRAIL_STAGE_INPUT", "GUARDRAIL_STAGE_OUTPUT"],
                  "mode": "GUARDRAIL_MODE_ENFORCE", "length": { "charactersMax": 900 } },
                { "name": "words", "mode": "GUARDRAIL_MODE_SHADOW", "pattern": { "denied": ["(?i)secret"] } },
                { "name": "people", "mode": "GUARDRAIL_MODE_ENFORCE",
                  "personalData": { "kinds": ["email", "iban"], "redact": true } },
                { "name": "shape", "stages": ["GUARDRAIL_STAGE_TOOL_ARGUMENTS"], "mode": "GUARDRAIL_MODE_ENFORCE",
                  "jsonSchema": { "schemaJson": "{\"type\":\"object\"}" } },
                { "name": "asked", "stages": ["GUARDRAIL_STAGE_TOOL_RESULT"], "mode": "GUARDRAIL_MODE_ENFORCE",
                  "http": { "url": "https://checks.example.com", "timeoutMs": "2000", "failOpen": true } },
            ],
            "permissionRules": [
                { "tool": "book", "arguments": [{ "path": "/seats", "pattern": "^[5-9]$" }],
                  "permission": "PERMISSION_DENY", "message": "At most four." },
            ],
            "fallbackModels": ["scripted-1"], "temperature": 0.25, "hedgeAfterMs": "1500",
        }))
        .unwrap();
        assert_eq!(to_proto(&agent, "unused"), expected);
    }
}
