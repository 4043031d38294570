//! Tool calls of which nobody can make sense.

use croft_llm::{Delta, Stop};
use croft_proto::v1::StopReason;
use croft_proto::v1::session_event::Kind;

use crate::canned::{ATTEMPTS_MAX, Canned, agent, attempts, course, opened, said, says, stops, told, turn, worker};

#[tokio::test(start_paused = true)]
async fn a_model_whose_tool_call_made_no_sense_is_asked_again_and_what_it_said_before_does_not_stay() {
    let a = Canned::new("a", [stops("let me look", Stop::BadToolCall), says("noon")]);
    let heard = turn(&worker(&[&a]).await, &agent(), &[]).await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    assert_eq!(said(&heard), [("noon".to_owned(), "a".to_owned())]);
    assert!(told(&heard).is_empty(), "nobody need know");
    let reasons: Vec<_> = attempts(&heard).into_iter().map(|attempt| attempt.finish_reason.as_str()).collect();
    assert_eq!(reasons, ["bad_tool_call", "end_turn"]);
    assert_eq!(heard.checkpoint().model_calls, 1, "a try again is no further call");
}

#[tokio::test(start_paused = true)]
async fn a_model_whose_tool_calls_never_make_sense_gives_way_and_people_hear_why_if_no_other_answers() {
    let confused = |name| Canned::new(name, [stops("let me look", Stop::BadToolCall)]);
    let (a, b) = (confused("a"), Canned::new("b", [says("noon")]));
    let heard = turn(&worker(&[&a, &b]).await, &agent(), &[]).await;
    assert_eq!((heard.stop_reason(), a.calls()), (StopReason::EndTurn, ATTEMPTS_MAX));
    assert_eq!(course(&heard).last(), Some(&("b", "", "error")));

    let models = ["a", "b", "c"].map(confused);
    let heard = turn(&worker(&models.each_ref()).await, &agent(), &[]).await;
    assert_eq!(heard.stop_reason(), StopReason::Error);
    assert_eq!(models.map(|model| model.calls()), [3, 3, 3]);
    let Some(Kind::Error(error)) = heard.durables.iter().find(|kind| matches!(kind, Kind::Error(_))) else { panic!() };
    assert_eq!((error.reason.as_str(), error.retryable), ("MODEL_BAD_TOOL_CALL", true));
    assert_eq!(error.message, "c could make no sense of the tool call that the model wrote");
    assert_eq!(heard.checkpoint().messages.len(), 1, "the question stays, so that it can be asked again");
}

#[tokio::test(start_paused = true)]
async fn whole_calls_beside_one_that_made_no_sense_are_made() {
    let calls = vec![
        Ok(opened()),
        Ok(Delta::ToolCallStarted { block: 0, tool_call_id: "one".into(), name: "clock".into() }),
        Ok(Delta::ToolCallStopped { block: 0, arguments_json: "{}".into() }),
        Ok(Delta::Stop(Stop::BadToolCall)),
    ];
    let a = Canned::new("a", [calls, says("noon")]);
    let heard = turn(&worker(&[&a]).await, &agent(), &[]).await;
    assert_eq!(heard.story(), ["started", "attempt", "message", "call", "result", "attempt", "message", "completed"]);
}
