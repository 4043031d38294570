//! Attempts at models of which no front has heard.

use std::time::Duration;

use croft_llm::Providers;
use croft_llm::scripted::Scripted;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{AgentSpec, RuntimeServiceTerminateSessionRequest, StepStart};
use croft_worker::RuntimeOptions;
use croft_worker::tools::Builtins;
use serde_json::json;

use crate::support::*;

/// Breaks a step off in mid answer, and tells the grant of the attempt that nobody heard of.
async fn broken_off_in_mid_answer(worker: &Worker, session_id: &str) -> String {
    init(&worker.client, session_id, &agent()).await.unwrap();
    let slow = script(&json!([{"text": "slow words to say", "token_delay_ms": 400}]));
    let mut front = Front::open(&worker.client, start(session_id, slow)).await;
    front.until_event(|kind| matches!(kind, Kind::TextDelta(_))).await;
    format!("grant-{}", front.heard.grants.len() - 1)
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_nobody_heard_of_is_told_by_the_next_step_of_the_turn() {
    for (settled, story) in [
        (false, &["started", "attempt", "attempt", "message", "completed"][..]),
        (true, &["started", "attempt", "message", "completed"]),
    ] {
        let (worker, session_id) = (worker().await, session());
        let grant_id = broken_off_in_mid_answer(&worker, &session_id).await;
        let settled_grant_ids = if settled { vec![grant_id] } else { Vec::new() };
        let again =
            StepStart { epoch: 2, settled_grant_ids, ..start(&session_id, script(&json!([{"text": "quick"}]))) };
        let heard = Front::open(&worker.client, again).await.finish().await;
        assert_eq!(heard.story(), story);
        let Kind::ModelAttempt(first) = &heard.durables[1] else { panic!() };
        assert_eq!(first.finish_reason == "cancelled", !settled);
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_nobody_heard_of_outlasts_steps_that_are_refused() {
    let (worker, session_id) = (worker().await, session());
    let grant_id = broken_off_in_mid_answer(&worker, &session_id).await;
    let again = StepStart { epoch: 2, ..start(&session_id, script(&json!([{"text": "quick"}]))) };
    let unusable = AgentSpec { model: String::new(), ..agent() };
    for refused in
        [StepStart { agent: Some(unusable), ..again.clone() }, StepStart { input: Vec::new(), ..again.clone() }]
    {
        let status = Front::open(&worker.client, refused).await.failure().await;
        assert_eq!(reason(&status), "MALFORMED");
    }
    let heard = Front::open(&worker.client, again).await.finish().await;
    let Kind::ModelAttempt(first) = &heard.durables[1] else { panic!("{:?}", heard.story()) };
    assert_eq!((&first.grant_id, first.finish_reason.as_str()), (&grant_id, "cancelled"));
}

#[tokio::test(start_paused = true)]
async fn an_attempt_of_a_turn_that_went_on_elsewhere_is_not_told_in_another() {
    let (worker, session_id) = (worker().await, session());
    broken_off_in_mid_answer(&worker, &session_id).await;
    let quick = script(&json!([{"text": "quick"}]));
    let next = StepStart { epoch: 2, turn_id: "turn-2".into(), ..start(&session_id, quick) };
    let heard = Front::open(&worker.client, next).await.finish().await;
    assert_eq!(heard.story(), ["started", "attempt", "message", "completed"]);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_nobody_heard_of_is_told_to_whoever_ends_the_session() {
    let (worker, session_id) = (worker().await, session());
    init(&worker.client, &session_id, &agent()).await.unwrap();
    // The first is stored before its tool is called.
    let steps = json!([
        {"tool_call": {"name": "clock", "arguments": {}}}, {"text": "slow words to say", "token_delay_ms": 400}
    ]);
    let mut front = Front::open(&worker.client, start(&session_id, script(&steps))).await;
    front.until_event(|kind| matches!(kind, Kind::TextDelta(_))).await;
    assert_eq!(front.heard.grants.len(), 2);
    drop(front);
    let request = RuntimeServiceTerminateSessionRequest { session_id, reason: "enough".into(), epoch: 0 };
    let mut told = Vec::new();
    for _ in 0..2 {
        let ended = worker.client.clone().terminate_session(request.clone()).await.unwrap().into_inner();
        told.push((ended.found, ended.untold_attempts));
    }
    let [(true, attempts), (false, none)] = &told[..] else { panic!("{told:?}") };
    let [attempt] = &attempts[..] else { panic!("{told:?}") };
    assert_eq!((&*attempt.attempt_id, &*attempt.finish_reason), ("grant-1", "cancelled"));
    assert!(attempt.usage.unwrap().output_tokens > 0);
    assert!(none.is_empty());
}

/// Other fronts open sessions before one goes on with the turn.
#[tokio::test(start_paused = true)]
async fn an_attempt_that_nobody_heard_of_is_not_forgotten_when_the_worker_is_full() {
    let options = RuntimeOptions { sessions_max: 1, ..options() };
    let worker = worker_with(options, Providers::new().with(Scripted::new()), Builtins::default()).await;
    let [session_id, another] = [session(), session()];
    let grant_id = broken_off_in_mid_answer(&worker, &session_id).await;
    // Time stands still while anything has work to do: the step is over.
    tokio::time::sleep(Duration::from_secs(15)).await;
    let refused = init(&worker.client, &another, &agent()).await.unwrap_err();
    assert_eq!(reason(&refused), "WORKER_FULL");

    let again = StepStart { epoch: 2, ..start(&session_id, script(&json!([{"text": "quick"}]))) };
    let heard = Front::open(&worker.client, again).await.finish().await;
    let Kind::ModelAttempt(first) = &heard.durables[1] else { panic!("{:?}", heard.story()) };
    assert_eq!((&first.grant_id, first.finish_reason.as_str()), (&grant_id, "cancelled"));
    init(&worker.client, &another, &agent()).await.expect("nothing is known here alone any more");
}
