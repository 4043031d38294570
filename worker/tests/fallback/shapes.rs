//! Answers that were to have a shape, and did not come to their end.

use croft_llm::{Delta, Stop};
use croft_proto::v1::guardrail_spec::Check;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{AgentSpec, GuardrailSpec, GuardrailStage, JsonSchemaCheck, StopReason};

use crate::canned::{Answer, Canned, agent, course, opened, said, says, stops, told, turn, worker};
use crate::support::Heard;

/// An agent whose answers are JSON objects.
fn of_objects() -> AgentSpec {
    let check = Check::JsonSchema(JsonSchemaCheck { schema_json: r#"{"type":"object"}"#.into() });
    let (name, stages) = ("shape".into(), vec![GuardrailStage::Output.into()]);
    let guardrail = GuardrailSpec { name, stages, check: Some(check), ..GuardrailSpec::default() };
    AgentSpec { guardrails: vec![guardrail], ..agent() }
}

fn violations(heard: &Heard) -> usize {
    heard.durables.iter().filter(|kind| matches!(kind, Kind::GuardrailViolation(_))).count()
}

/// It says that it will not, and is no object: the turn ended there.
#[tokio::test(start_paused = true)]
async fn an_answer_that_another_takes_the_place_of_need_not_have_the_shape() {
    for (stop, cause) in [(Stop::Refusal, "content"), (Stop::ContextFull, "context")] {
        let a = Canned::new("a", [stops("I can't help with that.", stop)]);
        let b = Canned::new("b", [says(r#"{"a":1}"#)]);
        let heard = turn(&worker(&[&a, &b]).await, &of_objects(), &[]).await;
        assert_eq!((heard.stop_reason(), violations(&heard)), (StopReason::EndTurn, 0));
        assert_eq!(course(&heard), [("a", "", ""), ("b", "", cause)]);
        assert_eq!(said(&heard), [(r#"{"a":1}"#.to_owned(), "b".to_owned())]);
    }
    let models = ["a", "b", "c"].map(|name| Canned::new(name, [stops("I can't help with that.", Stop::Refusal)]));
    let heard = turn(&worker(&models.each_ref()).await, &of_objects(), &[]).await;
    assert_eq!((heard.stop_reason(), violations(&heard)), (StopReason::Refusal, 0));
    assert!(said(&heard).is_empty(), "what has not the shape is left out");
}

#[tokio::test(start_paused = true)]
async fn words_before_a_call_that_made_no_sense_need_not_have_the_shape() {
    let a = Canned::new("a", [stops("let me look", Stop::BadToolCall), says(r#"{"a":1}"#)]);
    let heard = turn(&worker(&[&a]).await, &of_objects(), &[]).await;
    assert_eq!((heard.stop_reason(), a.calls(), violations(&heard)), (StopReason::EndTurn, 2, 0));
    assert_eq!(said(&heard), [(r#"{"a":1}"#.to_owned(), "a".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_cut_off_ends_for_that_and_not_for_its_shape() {
    let cut: Answer = stops(r#"{"a":"#, Stop::MaxTokens);
    let heard = turn(&worker(&[&Canned::new("a", [cut])]).await, &of_objects(), &[]).await;
    assert_eq!((heard.stop_reason(), violations(&heard)), (StopReason::MaxTokens, 0));
    assert_eq!((said(&heard), told(&heard)), (Vec::new(), vec!["MODEL_OUTPUT_TOKENS_SPENT".to_owned()]));

    // One that came to its end is judged.
    let rambles = vec![Ok(opened()), Ok(Delta::Text { block: 0, text: "noon".into() }), Ok(Delta::Stop(Stop::EndTurn))];
    let heard = turn(&worker(&[&Canned::new("a", [rambles])]).await, &of_objects(), &[]).await;
    assert_eq!((heard.stop_reason(), violations(&heard)), (StopReason::Guardrail, 1));
}
