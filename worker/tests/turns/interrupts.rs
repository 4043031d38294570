//! What an interrupt leaves.

use std::time::Duration;

use croft_proto::v1::execute_step_request::Message as ToWorker;
use croft_proto::v1::execute_step_response::Message as FromWorker;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{StepCancel, StopReason};
use serde_json::json;
use tokio::time::Instant;

use crate::support::*;
use crate::{attempts, clock_call, message};

#[tokio::test(start_paused = true)]
async fn an_interrupt_in_mid_token_keeps_what_was_said() {
    let worker = worker().await;
    let session_id = session();
    init(&worker.client, &session_id, &agent()).await.unwrap();
    let steps = json!([{"text": "one two three four", "token_delay_ms": 1_000}, clock_call()]);
    let mut front = Front::open(&worker.client, start(&session_id, script(&steps))).await;
    front.until_event(|kind| matches!(kind, Kind::TextDelta(delta) if delta.text == "two ")).await;
    let began = Instant::now();
    let stop_reason = StopReason::Interrupted.into();
    front.send(ToWorker::Cancel(StepCancel { stop_reason })).await;
    let heard = front.finish().await;
    assert!(began.elapsed() < Duration::from_millis(500));
    assert_eq!(heard.stop_reason(), StopReason::Interrupted);
    assert_eq!(heard.story(), ["started", "attempt", "message", "completed"]);
    assert_eq!(message(&heard), "one two ");
    let [attempt] = &attempts(&heard)[..] else { panic!() };
    assert_eq!((attempt.finish_reason.as_str(), attempt.usage_estimated), ("cancelled", true));
    let usage = attempt.usage.unwrap();
    assert!(usage.input_uncached_tokens > 0 && usage.output_tokens == 2, "{usage:?}");
    assert_eq!(heard.checkpoint().messages.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_interrupt_before_the_first_token_leaves_only_the_attempt() {
    let worker = worker().await;
    let session_id = session();
    init(&worker.client, &session_id, &agent()).await.unwrap();
    let steps = json!([{"delay_ms": 60_000}, {"text": "late"}]);
    let mut front = Front::open(&worker.client, start(&session_id, script(&steps))).await;
    front.until(|message| matches!(message, FromWorker::GrantRequest(_))).await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    front.send(ToWorker::Cancel(StepCancel { stop_reason: StopReason::Terminated.into() })).await;
    let heard = front.finish().await;
    assert_eq!(heard.stop_reason(), StopReason::Terminated);
    assert_eq!(heard.story(), ["started", "attempt", "completed"]);
}

#[tokio::test(start_paused = true)]
async fn an_interrupt_while_a_grant_is_awaited_makes_no_attempt() {
    let worker = worker().await;
    let session_id = session();
    init(&worker.client, &session_id, &agent()).await.unwrap();
    let mut front = Front::open(&worker.client, start(&session_id, text("hello"))).await;
    front.grants = false;
    front.until(|message| matches!(message, FromWorker::GrantRequest(_))).await;
    front.send(ToWorker::Cancel(StepCancel { stop_reason: StopReason::Interrupted.into() })).await;
    let heard = front.finish().await;
    assert_eq!(heard.stop_reason(), StopReason::Interrupted);
    assert_eq!(heard.story(), ["started", "completed"]);
}
