use croft_proto::v1::{HttpCheck, JsonSchemaCheck, LengthCheck, PatternCheck, PersonalDataCheck, StopReason};
use serde_json::json;

use super::aside::{AT_A_TIME_MAX, PLACES};
use super::*;
use crate::interrupt::{Interrupt, Why};

fn spec(name: &str, check: CheckSpec) -> GuardrailSpec {
    GuardrailSpec { name: name.into(), check: Some(check), ..GuardrailSpec::default() }
}

fn open(guardrails: Vec<GuardrailSpec>) -> Result<Guardrails, Refusal> {
    Guardrails::open(
        &AgentSpec { guardrails, ..AgentSpec::default() },
        &HttpClient::default(),
        &mut Patterns::default(),
    )
}

fn denied(pattern: &str) -> CheckSpec {
    CheckSpec::Pattern(PatternCheck { denied: vec![pattern.into()] })
}

fn redacting() -> CheckSpec {
    CheckSpec::PersonalData(PersonalDataCheck { kinds: Vec::new(), redact: true })
}

#[test]
fn a_check_that_can_not_be_made_is_refused_with_its_name() {
    let cases = [
        (CheckSpec::Length(LengthCheck::default()), "characters_max"),
        (CheckSpec::Pattern(PatternCheck::default()), "patterns"),
        (denied("("), "regular expression"),
        (denied(r"(a)\1"), "regular expression"),
        (denied("a*"), "every text"),
        (denied(&"a".repeat(1_025)), "longer"),
        (denied("((a{100}){100}){100}"), "takes more"),
        (CheckSpec::PersonalData(PersonalDataCheck { kinds: vec!["shoe-size".into()], redact: false }), "shoe-size"),
        (CheckSpec::JsonSchema(JsonSchemaCheck { schema_json: "{".into() }), "JSON"),
        (CheckSpec::JsonSchema(JsonSchemaCheck { schema_json: r#"{"type":"wall"}"#.into() }), "JSON Schema"),
        (CheckSpec::JsonSchema(JsonSchemaCheck { schema_json: r##"{"not":{"$ref":"#"}}"##.into() }), "without an end"),
        (CheckSpec::Http(HttpCheck { url: "ftp://checks.test".into(), ..HttpCheck::default() }), "url"),
    ];
    for (check, expected) in cases {
        match open(vec![spec("strict", check.clone())]) {
            Err(Refusal::GuardrailInvalid { guardrail, problem }) => {
                assert!(guardrail == "strict" && problem.contains(expected), "{check:?}: {problem}");
            }
            other => panic!("{check:?}: {:?}", other.map(|_| "opened")),
        }
    }
    assert!(open(vec![GuardrailSpec::default()]).is_err());
    assert!(open(vec![spec("many", denied("x")); GUARDRAILS_MAX + 1]).is_err());
}

/// They came as nothing, or as the nearest that was known, from a front of a newer release.
#[test]
fn what_a_newer_release_knows_of_checks_is_lacking_here_and_not_wrong() {
    let strict = spec("strict", denied("x"));
    for of_newer_release in [
        GuardrailSpec { check: None, ..strict.clone() },
        GuardrailSpec { mode: 99, ..strict.clone() },
        GuardrailSpec { stages: vec![GuardrailStage::Input.into(), 99], ..strict },
    ] {
        let refused = open(vec![of_newer_release.clone()]).err();
        assert_eq!(refused.map(|refusal| refusal.reason()), Some("GUARDRAIL_UNSUPPORTED"), "{of_newer_release:?}");
    }
}

#[tokio::test]
async fn a_check_looks_where_it_is_told_and_without_a_word_everywhere() {
    let mut told = spec("told", denied("sesame"));
    told.stages = vec![GuardrailStage::Output.into()];
    let guardrails = open(vec![told]).unwrap();
    let mut text = "open sesame".to_owned();
    assert_eq!(guardrails.review(GuardrailStage::Input, &mut [&mut text]).await, Review::default());
    assert!(guardrails.output().is_some() && guardrails.enforces(GuardrailStage::Output));
    let everywhere = open(vec![spec("all", denied("sesame"))]).unwrap();
    let review = everywhere.review(GuardrailStage::Input, &mut [&mut text]).await;
    assert_eq!(review.blocked_by.as_deref(), Some("all"));
    assert_eq!((review.violations[0].point.as_str(), review.violations[0].reason.as_str()), ("input", "pattern"));
}

#[tokio::test]
async fn a_text_that_takes_too_long_to_look_at_is_refused_for_that() {
    let many: Vec<_> = (0..2_000).map(|least| json!({"minLength": least % 3})).collect();
    let schema_json = json!({"items": {"allOf": many}}).to_string();
    let guardrails = open(vec![spec("shape", CheckSpec::JsonSchema(JsonSchemaCheck { schema_json }))]).unwrap();
    let mut text = json!(vec!["abc"; 50_000]).to_string();
    let review = guardrails.review(GuardrailStage::Input, &mut [&mut text]).await;
    assert_eq!((review.blocked_by.as_deref(), review.violations[0].reason.as_str()), (Some("shape"), "schema_late"));
}

/// It was looked through where the step listens to its front, which for a page full of addresses took minutes.
#[tokio::test]
async fn a_step_is_stopped_while_a_long_text_is_looked_through() {
    let why = Why::Stop(StopReason::Interrupted);
    for check in [redacting(), denied("sesame")] {
        let guardrails = open(vec![spec("people", check.clone())]).unwrap();
        let mut text = "a@b.co ".repeat(37_000);
        let mut arguments = json!({"say": text}).to_string();
        // It is looked through no sooner than it is stopped.
        let held = PLACES.acquire_many(AT_A_TIME_MAX).await.unwrap();
        let interrupt = Interrupt::default();
        let mut texts = [&mut text];
        let reviewed = interrupt.or(guardrails.review(GuardrailStage::ToolResult, &mut texts));
        let (reviewed, ()) = tokio::join!(reviewed, async { interrupt.raise(why) });
        assert_eq!(reviewed, Err(why), "{check:?}");
        let interrupt = Interrupt::default();
        let reviewed = interrupt.or_unready(guardrails.review_arguments(&mut arguments));
        let (reviewed, ()) = tokio::join!(reviewed, async { interrupt.raise(why) });
        assert_eq!(reviewed, Err(why), "{check:?}");
        drop(held);
    }
    let guardrails = open(vec![spec("people", redacting()), spec("words", denied("sesame"))]).unwrap();
    let mut text = "a@b.co ".repeat(37_000) + "open sesame";
    let review = guardrails.review(GuardrailStage::ToolResult, &mut [&mut text]).await;
    assert_eq!(text, "[email] ".repeat(37_000) + "open sesame");
    assert_eq!((review.blocked_by.as_deref(), review.violations.len()), (Some("words"), 2));
    let mut arguments = json!({"say": "a@b.co ".repeat(37_000), "and": "open sesame"}).to_string();
    let review = guardrails.review_arguments(&mut arguments).await;
    assert_eq!(arguments, json!({"say": "[email] ".repeat(37_000), "and": "open sesame"}).to_string());
    assert_eq!((review.blocked_by.as_deref(), review.violations.len()), (Some("words"), 2));
}

#[tokio::test]
async fn what_is_said_in_pieces_counts_as_a_whole() {
    let guardrails = open(vec![spec("short", CheckSpec::Length(LengthCheck { characters_max: 5 }))]).unwrap();
    let [mut one, mut other] = ["abc".to_owned(), "def".to_owned()];
    let review = guardrails.review(GuardrailStage::Input, &mut [&mut one, &mut other]).await;
    assert_eq!(review.blocked_by.as_deref(), Some("short"));
}

#[tokio::test]
async fn arguments_are_looked_through_as_they_are_meant_and_stay_json() {
    let guardrails = open(vec![spec("people", redacting()), spec("words", denied("sesame"))]).unwrap();
    let mut arguments = r#"{"to":"jo@doe.example","card":4111111111111111,"n":7}"#.to_owned();
    let review = guardrails.review_arguments(&mut arguments).await;
    assert_eq!(arguments, r#"{"card":"[card]","n":7,"to":"[email]"}"#);
    assert_eq!((review.blocked_by, review.violations[0].redacted), (None, true));
    let mut escaped = r#"{"say":"s\u0065same"}"#.to_owned();
    assert_eq!(guardrails.review_arguments(&mut escaped).await.blocked_by.as_deref(), Some("words"));
    let mut broken = r#"{"say":"sesame"#.to_owned();
    assert_eq!(guardrails.review_arguments(&mut broken).await.blocked_by.as_deref(), Some("words"));
}

/// It became a number with an exponent, which is none that is refused.
#[tokio::test]
async fn a_number_that_no_tool_would_get_as_it_is_stays_what_it_was() {
    let large = r#"{"to":"jo@doe.example","n":[12345678901234567890123,-7.5],"t":"s\u0065same","n2":1,"n2":2}"#;
    let seen = |to: &str| format!(r#"{{"n":[12345678901234567890123,-7.5],"n2":2,"t":"sesame","to":"{to}"}}"#);
    for (check, mode, kept) in [
        (denied("heron"), GuardrailMode::Enforce, "jo@doe.example"),
        (denied("sesame|23,"), GuardrailMode::Shadow, "jo@doe.example"),
        (redacting(), GuardrailMode::Shadow, "jo@doe.example"),
        (redacting(), GuardrailMode::Enforce, "[email]"),
    ] {
        let guardrails = open(vec![GuardrailSpec { mode: mode.into(), ..spec("strict", check) }]).unwrap();
        let mut arguments = large.to_owned();
        assert_eq!(guardrails.review_arguments(&mut arguments).await.blocked_by, None);
        assert_eq!(arguments, seen(kept));
    }
    // What is no JSON does not become any.
    for broken in [r#"{"n":1-2}"#.to_owned(), r#"{"n":-}"#.to_owned(), format!(r#"{{"n":{}}}"#, "9".repeat(400))] {
        let mut arguments = broken.clone();
        open(vec![spec("people", redacting())]).unwrap().review_arguments(&mut arguments).await;
        assert_eq!(arguments, broken);
    }
    for pattern in ["sesame", "^12345678901234567890123$", r#""n":.12345678901234567890123,"#] {
        let guardrails = open(vec![spec("strict", denied(pattern))]).unwrap();
        let review = guardrails.review_arguments(&mut large.to_owned()).await;
        assert_eq!(review.blocked_by.as_deref(), Some("strict"), "{pattern}");
    }
}

/// A pattern over 13 did not see 13.0, which is the same to every tool.
#[tokio::test]
async fn a_whole_number_is_checked_as_one_however_it_is_written() {
    let guardrails = open(vec![spec("strict", denied("^13$|^1[0-9]{30}$"))]).unwrap();
    for number in ["13", "13.0", "1.3e1", "1e30"] {
        let mut arguments = format!(r#"{{"bell":[{number}]}}"#);
        let review = guardrails.review_arguments(&mut arguments).await;
        assert_eq!(review.blocked_by.as_deref(), Some("strict"), "{number}");
    }
    let mut arguments = r#"{"bell":1.2e1,"size":12.5}"#.to_owned();
    assert_eq!(guardrails.review_arguments(&mut arguments).await, Review::default());
    assert_eq!(arguments, r#"{"bell":12,"size":12.5}"#);
}

#[tokio::test]
async fn keys_that_become_equal_lose_none_of_their_values() {
    let guardrails = open(vec![spec("people", redacting())]).unwrap();
    let mut arguments = r#"{"jo@doe.example":1,"al@doe.example":2,"[email]":3}"#.to_owned();
    let review = guardrails.review_arguments(&mut arguments).await;
    assert_eq!(arguments, r#"{"[email]":3,"[email]_2":2,"[email]_3":1}"#);
    assert!(review.violations[0].redacted);
}
