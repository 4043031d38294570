//! Leave that the front asks for in the worker's place, with the start of a turn.

#![expect(clippy::unwrap_used, reason = "a helper of tests may fail loudly")]

mod support;

use croft_proto::v1::execute_step_request::Message as ToWorker;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{AgentSpec, Grant, GrantRefused, GrantRequest, StepStart, StopReason};
use support::*;

/// What the front asks for by itself, with room for so much input.
fn asked_for(input_tokens_estimated: u32) -> GrantRequest {
    GrantRequest {
        request_id: "ahead".into(),
        model: "scripted-1".into(),
        input_tokens_estimated,
        output_tokens_max: 4_096,
        ..GrantRequest::default()
    }
}

/// A turn that begins with what the front asked for.
async fn begun(worker: &Worker, agent: &AgentSpec, request: &GrantRequest) -> Front {
    let session_id = session();
    init(&worker.client, &session_id, agent).await.unwrap();
    let asked_for = Some(request.clone());
    Front::open(&worker.client, StepStart { asked_for, ..start(&session_id, text("hello")) }).await
}

async fn grants_ahead(front: &Front, request: &GrantRequest) {
    let grant = Grant { grant_id: "granted-ahead".into(), ..front.grant(request) };
    front.send(ToWorker::Grant(grant)).await;
}

fn attempts(heard: &Heard) -> Vec<(&str, &str)> {
    let attempts = heard.durables.iter().filter_map(|kind| match kind {
        Kind::ModelAttempt(made) => Some((made.grant_id.as_str(), made.finish_reason.as_str())),
        _ => None,
    });
    attempts.collect()
}

#[tokio::test]
async fn is_taken_up_without_a_question() {
    let worker = worker().await;
    let request = asked_for(10_000);
    let front = begun(&worker, &agent(), &request).await;
    grants_ahead(&front, &request).await;
    let heard = front.finish().await;
    assert_eq!(heard.grants, [], "nothing is asked");
    assert_eq!(attempts(&heard), [("granted-ahead", "end_turn")]);
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
}

#[tokio::test]
async fn is_waited_for() {
    let worker = worker().await;
    let request = asked_for(10_000);
    let mut front = begun(&worker, &agent(), &request).await;
    front.until_event(|kind| matches!(kind, Kind::StepStarted(_))).await;
    grants_ahead(&front, &request).await;
    let heard = front.finish().await;
    assert_eq!((heard.grants.len(), attempts(&heard)), (0, vec![("granted-ahead", "end_turn")]));
}

#[tokio::test]
async fn covers_one_call() {
    let worker = worker().await;
    let request = asked_for(10_000);
    let session_id = session();
    init(&worker.client, &session_id, &agent()).await.unwrap();
    let call = serde_json::json!([{"tool_call": {"name": "clock", "arguments": {}}}, {"text": "late"}]);
    let begins = StepStart { asked_for: Some(request.clone()), ..start(&session_id, script(&call)) };
    let front = Front::open(&worker.client, begins).await;
    grants_ahead(&front, &request).await;
    let heard = front.finish().await;
    assert_eq!(heard.grants.len(), 1, "the second is asked for");
    assert!(heard.grants[0].tools_characters > 0, "and tells what the tools weigh");
    assert_eq!(attempts(&heard), [("granted-ahead", "tool_use"), ("grant-0", "end_turn")]);
}

#[tokio::test]
async fn that_is_for_too_little_is_told_of_and_asked_for_anew() {
    let worker = worker().await;
    let other_model = GrantRequest { model: "scripted-2".into(), ..asked_for(10_000) };
    let less_output = GrantRequest { output_tokens_max: 100, ..asked_for(10_000) };
    for request in [asked_for(1), other_model, less_output] {
        let front = begun(&worker, &agent(), &request).await;
        grants_ahead(&front, &request).await;
        let heard = front.finish().await;
        assert_eq!(heard.grants.len(), 1, "{request:?}");
        let mut attempts = attempts(&heard);
        attempts.sort_unstable();
        assert_eq!(attempts, [("grant-0", "end_turn"), ("granted-ahead", "hedged")], "{request:?}");
        assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    }
}

#[tokio::test]
async fn that_is_not_there_is_asked_for() {
    let worker = worker().await;
    let request = asked_for(10_000);
    let front = begun(&worker, &agent(), &request).await;
    let refused =
        GrantRefused { request_id: request.request_id, reason: "ASK".into(), message: "nothing is decided".into() };
    front.send(ToWorker::GrantRefused(refused)).await;
    let heard = front.finish().await;
    assert_eq!((heard.grants.len(), attempts(&heard)), (1, vec![("grant-0", "end_turn")]));
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
}
