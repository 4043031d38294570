//! Answers that are stored are not asked for again.

use croft_proto::v1::execute_step_response::Message as FromWorker;
use croft_proto::v1::{Message, ReplayClass, Role, SessionCheckpoint, StepStart, StopReason};
use serde_json::json;

use crate::calls::Broken;
use crate::support::*;
use crate::{elsewhere, resumed};

/// A checkpoint of this turn whose last word is an answer that ended so.
fn answered(finish_reason: &str) -> SessionCheckpoint {
    let message = |role: Role, content| Message { role: role.into(), content, ..Message::default() };
    let asked = script(&json!([{"text": "first", "stop": "pause"}, {"text": "second"}]));
    SessionCheckpoint {
        messages: vec![message(Role::User, asked), message(Role::Assistant, text("first"))],
        superstep: 1,
        model_calls: 1,
        turn_id: "turn-1".into(),
        finish_reason: finish_reason.into(),
        ..SessionCheckpoint::default()
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_stored_is_neither_asked_for_again_nor_ends_otherwise() {
    for (finish_reason, stop_reason) in [
        ("end_turn", StopReason::EndTurn),
        ("max_tokens", StopReason::MaxTokens),
        ("context_full", StopReason::ContextFull),
        ("refusal", StopReason::Refusal),
        ("cancelled", StopReason::Interrupted),
    ] {
        let session_id = session();
        let start = resumed(&session_id, answered(finish_reason), Vec::new());
        let heard = elsewhere(&Spade::default(), &agent(), start).await;
        assert_eq!(heard.story(), ["started", "completed"], "{finish_reason}");
        assert_eq!(heard.stop_reason(), stop_reason);
        assert_eq!(heard.checkpoint().messages, answered(finish_reason).messages);
    }
}

/// Whoever had the turn was lost before it told of the end.
#[tokio::test(start_paused = true)]
async fn an_answer_without_a_word_is_told_once_and_not_asked_for_again_after_a_loss() {
    let (worker, agent) = worker_with_spade(&Spade::default()).await;
    let session_id = session();
    init(&worker.client, &session_id, &agent).await.unwrap();
    let steps = json!([{"thinking": "Roses first, or the hedge?", "stop": "max_tokens"}]);
    let mut front = Front::open(&worker.client, start(&session_id, script(&steps))).await;
    let checkpoint = front.until(|message| matches!(message, FromWorker::Checkpoint(_))).await;
    assert_eq!(front.heard.story(), ["started", "attempt", "error"], "whoever has the checkpoint has the error");
    let FromWorker::Checkpoint(checkpoint) = checkpoint else { panic!() };
    let heard = elsewhere(&Spade::default(), &agent, resumed(&session_id, checkpoint, Vec::new())).await;
    assert_eq!(heard.story(), ["started", "completed"]);
    assert_eq!(heard.stop_reason(), StopReason::MaxTokens);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_paused_goes_on_after_a_loss() {
    let session_id = session();
    let start = resumed(&session_id, answered("pause"), Vec::new());
    let heard = elsewhere(&Spade::default(), &agent(), start).await;
    assert_eq!(heard.story(), ["started", "attempt", "message", "completed"]);
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    assert_eq!((heard.checkpoint().messages.len(), heard.checkpoint().finish_reason.as_str()), (3, "end_turn"));
}

#[tokio::test(start_paused = true)]
async fn input_that_the_checkpoint_already_holds_is_not_added_again() {
    let broken = Broken::new(ReplayClass::Safe).await;
    let spade = Spade::default();
    let again = resumed(&broken.session_id, broken.checkpoint.clone(), broken.journal(None));
    let heard = elsewhere(&spade, &broken.agent, StepStart { input: text("twice?"), ..again }).await;
    let users = heard.checkpoint().messages.iter().filter(|message| message.role() == Role::User).count();
    assert_eq!(users, 1);
}
