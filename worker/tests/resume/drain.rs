//! A worker that shuts down hands its turns back.

use std::sync::Arc;
use std::time::Duration;

use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{AgentSpec, Permission, ReplayClass, StopReason, ToolSpec};
use serde_json::json;
use tokio::sync::Semaphore;
use tonic::Code;

use crate::calls::approval_id;
use crate::support::*;
use crate::{dig, elsewhere, resumed, with_replay};

#[tokio::test(start_paused = true)]
async fn a_worker_that_shuts_down_ends_its_superstep_and_hands_the_turn_back() {
    let spade = Spade { gate: Some(Arc::new(Semaphore::new(0))), ..Spade::default() };
    let (worker, agent) = worker_with_spade(&spade).await;
    let session_id = session();
    init(&worker.client, &session_id, &agent).await.unwrap();
    let mut front = Front::open(&worker.client, start(&session_id, script(&json!([dig(1), {"text": "done"}])))).await;
    front.until_event(|kind| matches!(kind, Kind::ToolCall(_))).await;
    spade.digging().await;
    worker.tasks.stopping().cancel();
    spade.gate.as_ref().unwrap().add_permits(1);
    let heard = front.finish().await;
    assert_eq!(heard.stop_reason(), StopReason::HandedBack);
    assert_eq!(heard.story(), ["started", "attempt", "message", "call", "result", "completed"]);

    let rest = elsewhere(&Spade::default(), &agent, resumed(&session_id, heard.checkpoint(), Vec::new())).await;
    assert_eq!(rest.stop_reason(), StopReason::EndTurn);
    assert_eq!(rest.story(), ["started", "attempt", "message", "completed"], "the call is not made again");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_shuts_down_while_a_person_is_asked_hands_the_question_back() {
    let spade = Spade::default();
    let (worker, agent) = worker_with_spade(&spade).await;
    let asks = ToolSpec { permission: Permission::Ask.into(), ..builtin("spade") };
    let agent = AgentSpec { tools: vec![asks, builtin("calculator")], ..agent };
    let session_id = session();
    init(&worker.client, &session_id, &agent).await.unwrap();
    let sum = json!({"tool_call": {"name": "calculator", "arguments": {"expression": "1+1"}}});
    let steps = script(&json!([dig(1), sum, {"text": "done"}]));
    let mut front = Front::open(&worker.client, start(&session_id, steps)).await;
    front.until_event(|kind| matches!(kind, Kind::ApprovalRequired(_))).await;
    worker.tasks.stopping().cancel();
    let heard = front.finish().await;
    assert_eq!(heard.stop_reason(), StopReason::HandedBack);
    assert_eq!(spade.digs(), 0);

    let (other, _) = worker_with_spade(&spade).await;
    init(&other.client, &session_id, &agent).await.unwrap();
    let mut front = Front::open(&other.client, resumed(&session_id, heard.checkpoint(), Vec::new())).await;
    let asked = front.until_event(|kind| matches!(kind, Kind::ApprovalRequired(_))).await;
    let Kind::ApprovalRequired(asked) = asked else { panic!() };
    assert_eq!(asked.approval_id, approval_id(&heard), "it is the same question");
    let resolved = croft_proto::v1::ApprovalResolved {
        approval_id: asked.approval_id,
        approved: true,
        ..croft_proto::v1::ApprovalResolved::default()
    };
    front.send(croft_proto::v1::execute_step_request::Message::ApprovalResolved(resolved)).await;
    let rest = front.finish().await;
    assert_eq!(rest.stop_reason(), StopReason::EndTurn);
    assert_eq!(spade.digs(), 1);
    let calls = rest.story().iter().filter(|name| **name == "call").count();
    assert_eq!(calls, 1, "the calculator is not asked again");
}

/// A worker that gives a superstep half a second when it shuts down, with a spade.
async fn impatient(spade: &Spade) -> Worker {
    let options = croft_worker::RuntimeOptions { drain: Duration::from_millis(500), ..options() };
    let builtins = croft_worker::tools::Builtins::default().with("spade", spade.clone());
    worker_with(options, croft_llm::Providers::new().with(croft_llm::scripted::Scripted::new()), builtins).await
}

#[tokio::test(start_paused = true)]
async fn a_model_call_that_outlasts_the_drain_is_given_up_told_and_made_again_elsewhere() {
    let worker = impatient(&Spade::default()).await;
    let session_id = session();
    init(&worker.client, &session_id, &agent()).await.unwrap();
    let slow = script(&json!([{"text": "very slow words", "token_delay_ms": 400}]));
    let mut front = Front::open(&worker.client, start(&session_id, slow)).await;
    front.until_event(|kind| matches!(kind, Kind::TextDelta(_))).await;
    worker.tasks.stopping().cancel();
    let heard = front.finish().await;
    assert_eq!(heard.stop_reason(), StopReason::HandedBack);
    assert_eq!(heard.story(), ["started", "attempt", "completed"], "its usage is told, its text is not");
    let state = heard.checkpoint();
    assert_eq!((state.messages.len(), state.model_calls), (1, 0));

    let rest = elsewhere(&Spade::default(), &agent(), resumed(&session_id, state, Vec::new())).await;
    assert_eq!(rest.stop_reason(), StopReason::EndTurn);
    assert_eq!(rest.checkpoint().messages.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_outlasts_the_drain_is_handed_back_as_begun() {
    for (replay, digs_elsewhere, stop_reason) in
        [(ReplayClass::Idempotent, 1, StopReason::EndTurn), (ReplayClass::Unsafe, 0, StopReason::RequiresAction)]
    {
        let spade = Spade { gate: Some(Arc::new(Semaphore::new(0))), ..Spade::default() };
        let worker = impatient(&spade).await;
        let agent = with_replay(&agent(), replay);
        let session_id = session();
        init(&worker.client, &session_id, &agent).await.unwrap();
        let steps = script(&json!([dig(1), {"text": "done"}]));
        let mut front = Front::open(&worker.client, start(&session_id, steps)).await;
        front.until_event(|kind| matches!(kind, Kind::ToolCall(_))).await;
        worker.tasks.stopping().cancel();
        let heard = front.finish().await;
        assert_eq!((heard.stop_reason(), spade.digs()), (StopReason::HandedBack, 1));
        assert_eq!(heard.story(), ["started", "attempt", "message", "call", "completed"], "no result is made up");

        let other = Spade::default();
        let rest = elsewhere(&other, &agent, resumed(&session_id, heard.checkpoint(), Vec::new())).await;
        assert_eq!((rest.stop_reason(), other.digs()), (stop_reason, digs_elsewhere), "{replay:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_shuts_down_begins_nothing_new() {
    let worker = worker().await;
    let session_id = session();
    init(&worker.client, &session_id, &agent()).await.unwrap();
    worker.tasks.stopping().cancel();
    assert_eq!(init(&worker.client, &session(), &agent()).await.unwrap_err().code(), Code::Unavailable);
    let (_requests, receiver) = tokio::sync::mpsc::channel(1);
    let requests = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let refused = worker.client.clone().execute_step(requests).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
}
