//! What the first token waits for: the message, and nothing that is stored after it.

use croft_e2e::client::{message, scripted_agent};
use croft_front::store::Stores;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{SessionEvent, StopReason, StreamEventsRequest};

use crate::doubles::{Call, Gate, hooked};
use crate::world::{Ground, PATIENCE, World, names, read_all, stop_reason};

#[tokio::test]
async fn the_first_token_does_not_wait_until_the_steps_beginning_is_stored() {
    let (mut stores, gate) = (Stores::memory(), Gate::default());
    let begins = |call: &Call<'_>| call.appends(|kind| matches!(kind, Kind::StepStarted(_)));
    stores.events = hooked(stores.events, gate.before(begins));
    let world = World::on(Ground { stores, ..Ground::default() }).await;
    let mut client = world.client();
    let session = client.create(scripted_agent("quick")).await.unwrap();
    let script = r#"{"script": [{"text": "one two three"}]}"#;
    let mut events = client.lifecycle.send_message(message(&session.session_id, script)).await.unwrap().into_inner();
    let mut heard = Vec::new();
    while !matches!(heard.last(), Some(SessionEvent { kind: Some(Kind::TextDelta(_)), .. })) {
        heard.push(events.message().await.unwrap().unwrap().event.unwrap());
    }
    assert!(!names(&heard).contains(&"step"), "{heard:?}");

    gate.open();
    let rest = read_all(events).await;
    assert!(names(&rest).contains(&"step"), "{rest:?}");
    assert_eq!(stop_reason(&rest), Some(StopReason::EndTurn));
    let durable: Vec<_> = heard.iter().chain(&rest).map(|event| event.seq).filter(|seq| *seq > 0).collect();
    assert_eq!(durable, (3..).take(durable.len()).collect::<Vec<_>>(), "no hole, no double");
}

#[tokio::test]
async fn what_comes_before_it_is_measured_by_stage_and_so_is_who_comes_back() {
    let world = World::start().await;
    let mut client = world.client();
    let session_id = client.create(scripted_agent("measured")).await.unwrap().session_id;
    let script = r#"{"script": [{"text": "done"}]}"#;
    let begun = client.lifecycle.send_message(message(&session_id, script)).await.unwrap().into_inner();
    let last = read_all(begun).await.last().unwrap().seq;
    let request = StreamEventsRequest { session_id, after_seq: last - 1, ..StreamEventsRequest::default() };
    let mut resumed = client.lifecycle.stream_events(request).await.unwrap().into_inner();
    assert_eq!(resumed.message().await.unwrap().unwrap().event.unwrap().seq, last);
    world.core.audit.unwritten(PATIENCE).await;

    let metrics = world.metrics.text().unwrap();
    for measured in [
        "croft_turn_stage_seconds_count{stage=\"accept\"} 1\n",
        "croft_turn_stage_seconds_count{stage=\"place\"} 1\n",
        "croft_turn_stage_seconds_count{stage=\"ready\"} 1\n",
        "croft_first_token_seconds_count 1\n",
        "croft_event_resumes_total 1\n",
        "croft_audit_waiting 0\n",
    ] {
        assert!(metrics.contains(measured), "{measured}{metrics}");
    }
}
