//! What an agent's rules about tool calls must look like. Whether a pattern can be compiled the worker says.

use croft_proto::v1::{Permission, PermissionRule};

use crate::error::Error;

const RULES_MAX: usize = 64;
const ARGUMENTS_MAX: usize = 16;
const TOOL_BYTES_MAX: usize = 64;
const PATH_BYTES_MAX: usize = 256;
const PATTERN_BYTES_MAX: usize = 1_024;
const MESSAGE_CHARS_MAX: usize = 512;

/// The rules of a new session's agent.
pub(super) fn permission_rules(rules: &[PermissionRule]) -> Result<(), Error> {
    if rules.len() > RULES_MAX {
        return Err(Error::invalid("agent.permission_rules", format!("has more than {RULES_MAX} entries")));
    }
    for (position, rule) in rules.iter().enumerate() {
        if let Err((leaf, problem)) = check(rule) {
            return Err(Error::invalid(format!("agent.permission_rules[{position}].{leaf}"), problem));
        }
    }
    Ok(())
}

fn check(rule: &PermissionRule) -> Result<(), (&'static str, String)> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '*');
    if rule.tool.len() > TOOL_BYTES_MAX || !rule.tool.chars().all(fits) {
        return Err(("tool", format!("is not at most {TOOL_BYTES_MAX} of a-z A-Z 0-9 _ - *")));
    }
    // An enum of a later release is none of these either.
    if !matches!(Permission::try_from(rule.permission), Ok(Permission::Allow | Permission::Ask | Permission::Deny)) {
        return Err(("permission", "is none of allow, ask and deny".to_owned()));
    }
    if rule.message.chars().count() > MESSAGE_CHARS_MAX {
        return Err(("message", format!("is longer than {MESSAGE_CHARS_MAX} characters")));
    }
    if rule.arguments.len() > ARGUMENTS_MAX {
        return Err(("arguments", format!("has more than {ARGUMENTS_MAX} entries")));
    }
    for argument in &rule.arguments {
        if !argument.path.starts_with('/') || argument.path.len() > PATH_BYTES_MAX {
            return Err(("arguments.path", format!("is no JSON Pointer of at most {PATH_BYTES_MAX} bytes")));
        }
        if argument.pattern.is_empty() || argument.pattern.len() > PATTERN_BYTES_MAX {
            return Err(("arguments.pattern", format!("is not 1 to {PATTERN_BYTES_MAX} bytes")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use croft_proto::v1::ArgumentMatch;

    use super::*;

    fn rule(tool: &str, path: &str, pattern: &str) -> PermissionRule {
        let argument = ArgumentMatch { path: path.into(), pattern: pattern.into() };
        let permission = Permission::Deny.into();
        PermissionRule { tool: tool.into(), arguments: vec![argument], permission, message: String::new() }
    }

    #[test]
    fn each_mistake_in_a_rule_names_its_field() {
        let good = rule("mail_*", "/to", "x");
        let cases = [
            (rule("no spaces", "/to", "x"), "tool"),
            (rule("", "to", "x"), "arguments.path"),
            (rule("", "/to", ""), "arguments.pattern"),
            (PermissionRule { permission: 0, ..good.clone() }, "permission"),
            (PermissionRule { permission: 99, ..good.clone() }, "permission"),
            (PermissionRule { message: "x".repeat(513), ..good.clone() }, "message"),
        ];
        for (bad, leaf) in cases {
            match permission_rules(&[good.clone(), bad.clone()]) {
                Err(Error::Invalid { field, .. }) => assert_eq!(field, format!("agent.permission_rules[1].{leaf}")),
                other => panic!("{bad:?}: {other:?}"),
            }
        }
    }
}
