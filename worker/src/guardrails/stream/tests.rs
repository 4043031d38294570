use croft_proto::v1::guardrail_spec::Check as CheckSpec;
use croft_proto::v1::{
    AgentSpec, GuardrailMode, GuardrailSpec, JsonSchemaCheck, LengthCheck, PatternCheck, PersonalDataCheck,
};
use proptest::prelude::*;

use super::super::Guardrails;
use crate::http_client::HttpClient;
use crate::patterns::Patterns;

fn guardrails(checks: Vec<CheckSpec>, mode: GuardrailMode) -> Guardrails {
    let specs = checks.into_iter().map(|check| GuardrailSpec {
        name: "check".into(),
        mode: mode.into(),
        check: Some(check),
        ..GuardrailSpec::default()
    });
    let agent = AgentSpec { guardrails: specs.collect(), ..AgentSpec::default() };
    Guardrails::open(&agent, &HttpClient::default(), &mut Patterns::default()).unwrap()
}

fn denied(patterns: &[&str]) -> CheckSpec {
    CheckSpec::Pattern(PatternCheck { denied: patterns.iter().map(|&pattern| pattern.to_owned()).collect() })
}

fn redacting() -> CheckSpec {
    CheckSpec::PersonalData(PersonalDataCheck { kinds: Vec::new(), redact: true })
}

fn ended(finish: impl Future<Output = String>) -> String {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(finish)
}

/// What is let through of a text that comes in these pieces, before its end and then.
fn streamed(guardrails: &Guardrails, pieces: &[&str]) -> (String, String, bool) {
    let mut output = guardrails.output().unwrap();
    let before: String = pieces.iter().map(|piece| output.push(piece)).collect();
    let end = ended(output.finish(false));
    assert_eq!(output.released(), format!("{before}{end}"));
    (before, end, output.is_blocked())
}

#[test]
fn what_is_refused_is_not_shown_however_it_is_cut() {
    let guardrails = guardrails(vec![denied(&["open sesame"])], GuardrailMode::Enforce);
    let text = "He stood before the rock and said: open sesame, and it moved.";
    for cut in 0..=text.len() {
        let (before, end, blocked) = streamed(&guardrails, &[&text[..cut], &text[cut..]]);
        assert_eq!((format!("{before}{end}").as_str(), blocked), ("He stood before the rock and said: ", true));
    }
}

#[test]
fn a_window_lets_text_through_while_it_comes_and_a_pattern_without_bound_does_not() {
    let text = ["It was a long, long day on the river, ", "and nobody said a word of it. ", "Then it rained."];
    let bounded = guardrails(vec![denied(&["secrets?"])], GuardrailMode::Enforce);
    let (before, end, blocked) = streamed(&bounded, &text);
    assert_eq!(format!("{before}{end}"), text.concat());
    assert_eq!((end.len(), blocked), ("secrets".len() + 4, false));
    let unbounded = guardrails(vec![denied(&["secret.*plan"])], GuardrailMode::Enforce);
    let (before, end, blocked) = streamed(&unbounded, &text);
    assert_eq!((before, end, blocked), (String::new(), text.concat(), false));
    assert_eq!(streamed(&unbounded, &["a secret ", "bad plan"]), (String::new(), String::new(), true));
}

#[test]
fn an_end_of_text_in_a_pattern_means_the_end_of_the_answer() {
    let guardrails = guardrails(vec![denied(&[r"done\z", r"\bcat\b"])], GuardrailMode::Enforce);
    assert!(!streamed(&guardrails, &["done", " and more, con", "cat", "enated"]).2);
    assert!(streamed(&guardrails, &["all do", "ne"]).2);
    assert!(streamed(&guardrails, &["a ", "cat", " sat"]).2);
}

#[test]
fn a_text_that_is_too_long_ends_at_the_bound() {
    let guardrails = guardrails(vec![CheckSpec::Length(LengthCheck { characters_max: 5 })], GuardrailMode::Enforce);
    assert_eq!(streamed(&guardrails, &["äö", "üß!"]), ("äöüß!".to_owned(), String::new(), false));
    assert_eq!(streamed(&guardrails, &["äö", "üß!?", "more"]), ("äöüß!".to_owned(), String::new(), true));
}

#[test]
fn a_shape_is_judged_in_the_end_and_nothing_is_shown_before() {
    let schema_json = r#"{"type":"object","required":["day"]}"#.to_owned();
    let guardrails = guardrails(vec![CheckSpec::JsonSchema(JsonSchemaCheck { schema_json })], GuardrailMode::Enforce);
    assert_eq!(streamed(&guardrails, &["{\"day\"", ":1}"]), (String::new(), "{\"day\":1}".to_owned(), false));
    assert_eq!(streamed(&guardrails, &["no ", "JSON"]), (String::new(), String::new(), true));
}

#[test]
fn a_shadow_holds_nothing_back_and_tells() {
    let guardrails = guardrails(vec![denied(&["sesame"]), redacting()], GuardrailMode::Shadow);
    let mut output = guardrails.output().unwrap();
    let text = "open sesame, jo@doe.example";
    assert_eq!(output.push(text), text);
    assert_eq!(ended(output.finish(false)), "");
    let told: Vec<_> =
        output.violations().iter().map(|told| (told.reason.as_str(), told.blocked, told.redacted)).collect();
    assert_eq!((told, output.is_blocked()), (vec![("pattern", false, false), ("personal_data", false, false)], false));
}

#[test]
fn each_check_sees_what_the_one_before_let_through() {
    let guardrails = guardrails(vec![redacting(), denied(&[r"\[card\]"])], GuardrailMode::Enforce);
    let (before, end, blocked) = streamed(&guardrails, &["pay with 4111 1111 ", "1111 1111 today"]);
    assert_eq!((format!("{before}{end}").as_str(), blocked), ("pay with ", true));
}

proptest! {
    /// Text in pieces is judged like the whole, wherever it is cut.
    #[test]
    fn cuts_change_nothing(
        words in prop::collection::vec(prop::sample::select(vec![
            "jo.doe@mail.example", "a", "@", ".", " ", "+49 30 1234567", "4111 1111 1111 1111", "4111-1111", "17", "\n",
            "DE89 3704 0044 0532 0130 00", "DE89", "192.0.2.7", "::1", "2001:db8::7", "ä", "secret", "secrets", "x", "-",
        ]), 0..24),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let text = words.concat();
        let mut cuts: Vec<_> = cuts.iter().map(|cut| text.floor_char_boundary(cut.index(text.len() + 1))).collect();
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut from = 0;
        for cut in cuts {
            pieces.push(&text[from..cut]);
            from = cut;
        }
        pieces.push(&text[from..]);
        for checks in [vec![redacting()], vec![denied(&[r"\bsecrets?\b"])], vec![redacting(), denied(&["secrets?x"])]] {
            let guardrails = guardrails(checks, GuardrailMode::Enforce);
            let whole = streamed(&guardrails, &[&text]);
            let cut = streamed(&guardrails, &pieces);
            prop_assert_eq!(format!("{}{}", whole.0, whole.1), format!("{}{}", cut.0, cut.1));
            prop_assert_eq!(whole.2, cut.2);
        }
    }
}
