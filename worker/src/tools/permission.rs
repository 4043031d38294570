//! Rules about which calls may be made, by tool and arguments.

use croft_proto::v1::{Permission, PermissionRule};
use regex::Regex;
use serde_json::{Map, Value};

use super::integers;
use crate::patterns::Patterns;
use crate::refusal::Refusal;

/// Of one agent, and conditions of one rule. At each bound the agent is refused.
const RULES_MAX: usize = 64;
const ARGUMENTS_MAX: usize = 16;

/// Whether a call may be made; if not, or only after a person said yes, why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    Allow,
    Ask(String),
    Deny(String),
}

/// An agent's rules.
pub(super) struct Rules {
    rules: Vec<Rule>,
}

struct Rule {
    /// What stands between the asterisks.
    tool: Vec<String>,
    /// Where, and what must be found there.
    arguments: Vec<(String, Regex)>,
    permission: Permission,
    message: String,
}

impl Rules {
    pub(super) fn open(rules: &[PermissionRule], patterns: &mut Patterns) -> Result<Self, Refusal> {
        if rules.len() > RULES_MAX {
            let problem = format!("there are more than {RULES_MAX}");
            return Err(Refusal::RuleInvalid { position: RULES_MAX, problem });
        }
        let open = |(position, rule): (usize, &PermissionRule)| {
            // What this worker does not know is of a newer release.
            let permission = Permission::try_from(rule.permission).map_err(|_| {
                let problem = "its permission is not known to this worker";
                Refusal::RuleUnsupported { position, problem }
            })?;
            Rule::open(rule, permission, patterns).map_err(|problem| Refusal::RuleInvalid { position, problem })
        };
        Ok(Self { rules: rules.iter().enumerate().map(open).collect::<Result<_, _>>()? })
    }

    /// Decides about a call of a tool whose own permission is `own`.
    pub(super) fn decide(&self, tool: &str, own: Permission, arguments: &Map<String, Value>) -> Decision {
        let fitting = || self.rules.iter().filter(|rule| rule.fits(tool, arguments));
        let first = |permission: Permission| fitting().find(|rule| rule.permission == permission);
        let denied = |message: &str| {
            let message = if message.is_empty() { "The rules of this agent deny this call." } else { message };
            Decision::Deny(message.to_owned())
        };
        let asked = |message: &str| {
            let message = if message.is_empty() { "The agent's tools ask for approval of this call." } else { message };
            Decision::Ask(message.to_owned())
        };
        if own == Permission::Deny {
            return Decision::Deny(format!("The tool {tool:?} may not be called here."));
        }
        if let Some(rule) = first(Permission::Deny) {
            return denied(&rule.message);
        }
        if let Some(rule) = first(Permission::Ask) {
            return asked(&rule.message);
        }
        match own {
            Permission::Ask if first(Permission::Allow).is_none() => asked(""),
            Permission::Ask | Permission::Allow | Permission::Unspecified | Permission::Deny => Decision::Allow,
        }
    }
}

impl Rule {
    fn open(rule: &PermissionRule, permission: Permission, patterns: &mut Patterns) -> Result<Self, String> {
        if permission == Permission::Unspecified {
            return Err("its permission is missing".to_owned());
        }
        if rule.arguments.len() > ARGUMENTS_MAX {
            return Err(format!("it has more than {ARGUMENTS_MAX} arguments"));
        }
        let argument = |wanted: &croft_proto::v1::ArgumentMatch| {
            if !wanted.path.is_empty() && !wanted.path.starts_with('/') {
                return Err(format!("{:?} is no JSON Pointer", wanted.path));
            }
            let pattern = patterns.compile(&wanted.pattern).map_err(|problem| format!("a pattern {problem}"))?;
            Ok((wanted.path.clone(), pattern))
        };
        let names = if rule.tool.is_empty() { "*" } else { &rule.tool };
        Ok(Self {
            tool: names.split('*').map(str::to_owned).collect(),
            arguments: rule.arguments.iter().map(argument).collect::<Result<_, _>>()?,
            permission,
            message: rule.message.clone(),
        })
    }

    fn fits(&self, tool: &str, arguments: &Map<String, Value>) -> bool {
        is_called(tool, &self.tool)
            && self.arguments.iter().all(|(path, pattern)| match at(arguments, path) {
                Some(Value::String(text)) => pattern.is_match(text),
                Some(Value::Number(number)) => pattern.is_match(&integers::read(number)),
                Some(value) => pattern.is_match(&value.to_string()),
                None => false,
            })
    }
}

fn at<'a>(arguments: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    // A pointer into an object begins with one of its keys.
    let mut parts = path.strip_prefix('/')?.splitn(2, '/');
    let key = parts.next()?.replace("~1", "/").replace("~0", "~");
    let value = arguments.get(&key)?;
    match parts.next() {
        None => Some(value),
        Some(rest) => value.pointer(&format!("/{rest}")),
    }
}

/// Whether a tool has this name, of which any text may stand between the parts.
fn is_called(tool: &str, parts: &[String]) -> bool {
    let [first, between @ .., last] = parts else { return parts.iter().any(|name| name == tool) };
    let within = tool.strip_prefix(first.as_str()).and_then(|rest| rest.strip_suffix(last.as_str()));
    let left =
        between.iter().try_fold(within, |rest, part| Some(rest?.split_once(part.as_str()).map(|(_, after)| after)));
    left.flatten().is_some()
}

#[cfg(test)]
mod tests {
    use croft_proto::v1::ArgumentMatch;
    use serde_json::json;

    use super::*;

    fn rule(tool: &str, arguments: &[(&str, &str)], permission: Permission) -> PermissionRule {
        let argument = |&(path, pattern): &(&str, &str)| ArgumentMatch { path: path.into(), pattern: pattern.into() };
        PermissionRule {
            tool: tool.into(),
            arguments: arguments.iter().map(argument).collect(),
            permission: permission.into(),
            message: String::new(),
        }
    }

    fn decide(rules: &[PermissionRule], tool: &str, own: Permission, arguments: &Value) -> &'static str {
        let rules = Rules::open(rules, &mut Patterns::default()).unwrap();
        match rules.decide(tool, own, arguments.as_object().unwrap()) {
            Decision::Allow => "allow",
            Decision::Ask(_) => "ask",
            Decision::Deny(_) => "deny",
        }
    }

    #[test]
    fn deny_wins_over_ask_and_ask_over_allow() {
        let mail = json!({"to": "jo@rival.example", "count": 3});
        let rules = [
            rule("mail_*", &[], Permission::Allow),
            rule("mail_*", &[("/count", "^[3-9]$")], Permission::Ask),
            rule("*", &[("/to", r"@rival\.example$")], Permission::Deny),
        ];
        let cases = [
            (&rules[..], "mail_send", Permission::Allow, "deny"),
            (&rules[..2], "mail_send", Permission::Allow, "ask"),
            (&rules[..1], "mail_send", Permission::Ask, "allow"),
            (&rules[..1], "mail_send", Permission::Deny, "deny"),
            (&rules[..1], "email_send", Permission::Ask, "ask"),
            (&rules[..0], "mail_send", Permission::Unspecified, "allow"),
        ];
        for (rules, tool, own, expected) in cases {
            assert_eq!(decide(rules, tool, own, &mail), expected, "{tool} {own:?} {}", rules.len());
        }
    }

    #[test]
    fn a_tool_is_named_whole_or_in_parts() {
        for (rule, tool, expected) in [
            ("mail", "mail", true),
            ("mail", "mails", false),
            ("*", "mail", true),
            ("mail_*", "mail_", true),
            ("*_send", "mail_send", true),
            ("m*_*d", "mail_send", true),
            ("m*_*_*d", "mail_send", false),
            ("ab*ba", "aba", false),
            ("mail.*", "mail_send", false),
        ] {
            let parts: Vec<_> = rule.split('*').map(str::to_owned).collect();
            assert_eq!(is_called(tool, &parts), expected, "{rule} {tool}");
        }
    }

    #[test]
    fn an_argument_is_found_by_its_pointer_and_one_that_is_not_there_fits_nothing() {
        let arguments = json!({"list": [{"na/me": "x"}], "flag": true});
        let fits = |path: &str, pattern: &str| {
            decide(&[rule("", &[(path, pattern)], Permission::Deny)], "any", Permission::Allow, &arguments) == "deny"
        };
        assert!(fits("/list/0/na~1me", "^x$") && fits("/flag", "^true$") && fits("/list", "na/me"));
        assert!(!fits("/list/1/na~1me", "x") && !fits("/absent", "") && !fits("/flag", "^tru$"));
    }

    /// A denial of `^13$` let 13.0 through, which is 13 to every tool.
    #[test]
    fn a_number_is_read_as_the_same_however_it_is_written() {
        for (pattern, number, expected) in [
            ("^13$", "13", "deny"),
            ("^13$", "13.0", "deny"),
            ("^13$", "1.3e1", "deny"),
            ("^13$", "13.5", "allow"),
            ("^13.5$", "1.35e1", "deny"),
            ("^[0-9]{2,}$", "1e30", "deny"),
            ("^0$", "-0.0", "deny"),
        ] {
            let mut arguments = serde_json::from_str(&format!(r#"{{"b":{number}}}"#)).unwrap();
            integers::settle(&mut arguments);
            let rules = [rule("", &[("/b", pattern)], Permission::Deny)];
            assert_eq!(decide(&rules, "add", Permission::Allow, &arguments), expected, "{pattern} {number}");
        }
    }

    #[test]
    fn a_rule_that_can_not_be_kept_is_refused_with_its_place() {
        let good = rule("", &[], Permission::Allow);
        for bad in [
            rule("", &[], Permission::Unspecified),
            rule("", &[("to", "x")], Permission::Deny),
            rule("", &[("/to", "(")], Permission::Deny),
        ] {
            let opened = Rules::open(&[good.clone(), bad], &mut Patterns::default());
            assert!(matches!(opened, Err(Refusal::RuleInvalid { position: 1, .. })));
        }
        let of_newer_release = PermissionRule { permission: 99, ..good.clone() };
        let opened = Rules::open(&[good, of_newer_release], &mut Patterns::default());
        assert!(matches!(opened, Err(Refusal::RuleUnsupported { position: 1, .. })));
    }
}
