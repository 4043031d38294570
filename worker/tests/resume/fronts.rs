//! Fronts that go away, and others that take over.

use std::sync::Arc;
use std::time::Duration;

use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{StepStart, StopReason};
use serde_json::json;
use tokio::sync::Semaphore;
use tonic::Code;

use crate::dig;
use crate::support::*;

#[tokio::test(start_paused = true)]
async fn a_front_that_goes_away_ends_its_step() {
    let spade = Spade { gate: Some(Arc::new(Semaphore::new(0))), ..Spade::default() };
    let (worker, agent) = worker_with_spade(&spade).await;
    let session_id = session();
    init(&worker.client, &session_id, &agent).await.unwrap();
    let mut front = Front::open(&worker.client, start(&session_id, script(&json!([dig(1), {"text": "done"}])))).await;
    front.until_event(|kind| matches!(kind, Kind::ToolCall(_))).await;
    spade.digging().await;
    drop(front);
    // Time stands still while anything has work to do.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let gate = spade.gate.as_ref().unwrap();
    gate.add_permits(1);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(gate.available_permits(), 1, "nobody waits at the gate any more");
}

#[tokio::test(start_paused = true)]
async fn a_front_with_a_newer_lease_takes_over_and_an_older_one_is_refused() {
    let worker = worker().await;
    let session_id = session();
    init(&worker.client, &session_id, &agent()).await.unwrap();
    let slow = script(&json!([{"delay_ms": 60_000}, {"text": "late"}]));
    let at_epoch = |epoch| StepStart { epoch, ..start(&session_id, slow.clone()) };
    let mut old = Front::open(&worker.client, at_epoch(5)).await;
    old.until_event(|kind| matches!(kind, Kind::StepStarted(_))).await;

    let mut new = Front::open(&worker.client, at_epoch(6)).await;
    new.until_event(|kind| matches!(kind, Kind::StepStarted(_))).await;
    assert_eq!(old.failure().await.code(), Code::Cancelled);

    let stale = Front::open(&worker.client, at_epoch(5)).await;
    let refused = stale.failure().await;
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Aborted, "EPOCH_STALE"));
    assert_eq!(new.finish().await.stop_reason(), StopReason::EndTurn, "the newer one is left alone");
}
