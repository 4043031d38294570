//! What an agent's guardrails must look like. Whether a pattern or a schema can be compiled the worker says.

use std::collections::HashSet;

use croft_proto::v1::guardrail_spec::Check;
use croft_proto::v1::{GuardrailMode, GuardrailSpec, GuardrailStage};

use crate::error::Error;

const GUARDRAILS_MAX: usize = 16;
const CHARACTERS_MAX: u32 = 67_108_864;
const PATTERNS_MAX: usize = 64;
const PATTERN_BYTES_MAX: usize = 1_024;
const SCHEMA_BYTES_MAX: usize = 64 * 1024;
const URL_BYTES_MAX: usize = 512;
const HTTP_TIMEOUT_MS_MAX: i64 = 300_000;
const KINDS: [&str; 5] = ["email", "phone", "card", "iban", "ip"];

/// The guardrails of a new session's agent.
pub(super) fn guardrails(guardrails: &[GuardrailSpec]) -> Result<(), Error> {
    if guardrails.len() > GUARDRAILS_MAX {
        return Err(Error::invalid("agent.guardrails", format!("has more than {GUARDRAILS_MAX} entries")));
    }
    let mut seen = HashSet::new();
    for (position, guardrail) in guardrails.iter().enumerate() {
        let field = |leaf: &str| format!("agent.guardrails[{position}].{leaf}");
        super::new_name(&field("name"), &guardrail.name)?;
        if !seen.insert(&guardrail.name) {
            return Err(Error::invalid(field("name"), "stands for another guardrail already"));
        }
        if !are_stages(&guardrail.stages) {
            return Err(Error::invalid(field("stages"), "has one that is no stage, or one twice"));
        }
        if GuardrailMode::try_from(guardrail.mode).is_err() {
            return Err(Error::invalid(field("mode"), "is neither enforce nor shadow"));
        }
        let check = guardrail.check.as_ref().ok_or_else(|| Error::invalid(field("check"), "is missing"))?;
        if let Err((leaf, problem)) = self::check(check) {
            return Err(Error::invalid(field(leaf), problem));
        }
    }
    Ok(())
}

/// With one that says nothing it would look nowhere, and not everywhere as with none.
fn are_stages(stages: &[i32]) -> bool {
    let mut seen = HashSet::new();
    let is_one = |stage: i32| GuardrailStage::try_from(stage).is_ok_and(|stage| stage != GuardrailStage::Unspecified);
    stages.iter().all(|&stage| is_one(stage) && seen.insert(stage))
}

fn check(check: &Check) -> Result<(), (&'static str, String)> {
    let wrong = |leaf, problem: &str| Err((leaf, problem.to_owned()));
    match check {
        Check::Length(length) if length.characters_max == 0 => wrong("length.characters_max", "is 0"),
        Check::Length(length) if length.characters_max > CHARACTERS_MAX => {
            Err(("length.characters_max", format!("is more than {CHARACTERS_MAX}")))
        }
        Check::Length(_) => Ok(()),
        Check::Pattern(pattern) => {
            let fits = |pattern: &String| !pattern.is_empty() && pattern.len() <= PATTERN_BYTES_MAX;
            if pattern.denied.is_empty() || pattern.denied.len() > PATTERNS_MAX || !pattern.denied.iter().all(fits) {
                let problem = format!("is not 1 to {PATTERNS_MAX} patterns of 1 to {PATTERN_BYTES_MAX} bytes");
                return Err(("pattern.denied", problem));
            }
            Ok(())
        }
        Check::PersonalData(data) => {
            if data.kinds.iter().any(|kind| !KINDS.contains(&kind.as_str())) {
                return wrong("personal_data.kinds", &format!("has one that is none of {}", KINDS.join(", ")));
            }
            let mut seen = HashSet::new();
            if !data.kinds.iter().all(|kind| seen.insert(kind)) {
                return wrong("personal_data.kinds", "has one twice");
            }
            Ok(())
        }
        Check::JsonSchema(schema) => {
            if schema.schema_json.len() > SCHEMA_BYTES_MAX {
                return Err(("json_schema.schema_json", format!("is longer than {SCHEMA_BYTES_MAX} bytes")));
            }
            match serde_json::from_str::<serde_json::Value>(&schema.schema_json) {
                Ok(serde_json::Value::Object(_)) => Ok(()),
                _ => wrong("json_schema.schema_json", "is not a JSON object"),
            }
        }
        Check::Http(http) => {
            if http.url.len() > URL_BYTES_MAX || croft_serve::config::http_url(&http.url).is_err() {
                return wrong("http.url", "is no http:// or https:// address of at most 512 bytes");
            }
            if http.url.contains('@') {
                return wrong(
                    "http.url",
                    "holds a name or a password, which everyone could read who reads the session",
                );
            }
            super::limits::milliseconds(http.timeout_ms, HTTP_TIMEOUT_MS_MAX)
                .map_err(|problem| ("http.timeout_ms", problem))
        }
    }
}

#[cfg(test)]
mod tests {
    use croft_proto::v1::{HttpCheck, JsonSchemaCheck, LengthCheck, PatternCheck, PersonalDataCheck};

    use super::*;

    fn guardrail(check: Check) -> GuardrailSpec {
        GuardrailSpec { name: "strict".into(), check: Some(check), ..GuardrailSpec::default() }
    }

    fn http(url: &str, timeout_ms: i64) -> Check {
        Check::Http(HttpCheck { url: url.into(), timeout_ms, fail_open: false })
    }

    #[test]
    fn each_mistake_in_a_guardrail_names_its_field() {
        let denied = |denied: &[&str]| {
            Check::Pattern(PatternCheck { denied: denied.iter().map(|&pattern| pattern.to_owned()).collect() })
        };
        let long = "x".repeat(PATTERN_BYTES_MAX + 1);
        let cases = [
            (Check::Length(LengthCheck { characters_max: 0 }), "length.characters_max"),
            (Check::Length(LengthCheck { characters_max: 67_108_865 }), "length.characters_max"),
            (denied(&[]), "pattern.denied"),
            (denied(&["x", ""]), "pattern.denied"),
            (denied(&[&long]), "pattern.denied"),
            (
                Check::PersonalData(PersonalDataCheck { kinds: vec!["shoe-size".into()], redact: false }),
                "personal_data.kinds",
            ),
            (
                Check::PersonalData(PersonalDataCheck { kinds: vec!["email".into(); 2], redact: false }),
                "personal_data.kinds",
            ),
            (Check::JsonSchema(JsonSchemaCheck { schema_json: "[]".into() }), "json_schema.schema_json"),
            (http("checks.test", 0), "http.url"),
            (http("https://me@checks.test", 0), "http.url"),
            (http("https://checks.test", -1), "http.timeout_ms"),
            (http("https://checks.test", 300_001), "http.timeout_ms"),
        ];
        for (check, leaf) in cases {
            match guardrails(&[guardrail(check.clone())]) {
                Err(Error::Invalid { field, .. }) => assert_eq!(field, format!("agent.guardrails[0].{leaf}")),
                other => panic!("{check:?}: {other:?}"),
            }
        }
        for edge in [Check::Length(LengthCheck { characters_max: 67_108_864 }), http("https://checks.test", 300_000)] {
            guardrails(&[guardrail(edge)]).unwrap();
        }
        let good = guardrail(denied(&["x"]));
        guardrails(std::slice::from_ref(&good)).unwrap();
        assert!(guardrails(&[good.clone(), good]).is_err());
        assert!(guardrails(&[GuardrailSpec { name: "strict".into(), ..GuardrailSpec::default() }]).is_err());
    }

    #[test]
    fn it_looks_at_stages_that_there_are_each_named_once() {
        let at = |stages: &[i32], mode: i32| {
            let good = guardrail(Check::Length(LengthCheck { characters_max: 9 }));
            match guardrails(&[GuardrailSpec { stages: stages.to_vec(), mode, ..good }]) {
                Err(Error::Invalid { field, .. }) => field,
                other => other.map(|()| String::new()).unwrap(),
            }
        };
        for stages in [&[][..], &[1, 2, 3, 4]] {
            assert_eq!(at(stages, 0), "", "{stages:?}");
        }
        for stages in [&[0][..], &[1, 0], &[5], &[1, 1]] {
            assert_eq!(at(stages, 0), "agent.guardrails[0].stages", "{stages:?}");
        }
        assert_eq!(at(&[], 3), "agent.guardrails[0].mode");
    }
}
