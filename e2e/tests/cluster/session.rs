//! A session by gRPC runs in a worker pod and can be watched from anywhere.

use anyhow::Context;
use croft_e2e::client::{Client, message, scripted_agent};
use croft_e2e::system::System;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{SessionState, StopReason, StreamEventsRequest, TerminateSessionRequest};
use futures::{SinkExt, Stream, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::Message;

use crate::support::{PATIENCE, answer, assert_contiguous, front_pods, pods, whole_turn};

#[tokio::test(flavor = "multi_thread")]
async fn a_session_streams_from_a_worker_pod() {
    let system = System::from_env_file().unwrap();
    let mut client = Client::new(&system.grpc, &system.api_key).unwrap();
    let session = client.create(scripted_agent("streams")).await.unwrap();
    assert_eq!(session.state(), SessionState::Ready);
    assert_eq!(session.tenant, "demo");

    let script = r#"{"script": [{"text": "one two three four", "token_delay_ms": 20}]}"#;
    let sent = client.lifecycle.send_message(message(&session.session_id, script)).await.unwrap();
    let events = whole_turn(sent.into_inner()).await.unwrap();
    assert_contiguous(&events);
    assert_eq!(answer(&events), "one two three four");
    let previews: String = events
        .iter()
        .filter_map(|event| match &event.kind {
            Some(Kind::TextDelta(delta)) => Some(delta.text.as_str()),
            _ => None,
        })
        .collect();
    // The turn began when the stream was there, so no token was spoken before.
    assert_eq!(previews, "one two three four");

    let step = events.iter().find_map(|event| match &event.kind {
        Some(Kind::StepStarted(step)) => Some(step.clone()),
        _ => None,
    });
    let step = step.expect("the turn says where it runs");
    assert_eq!(step.namespace, "tenant-demo");
    let workers = pods(&system, "tenant-demo", "app.kubernetes.io/component=worker").await.unwrap();
    assert!(
        workers.iter().any(|pod| pod.name == step.worker),
        "{} is none of the worker pods {workers:?}",
        step.worker
    );

    let last = events.last().and_then(|event| event.kind.clone());
    assert!(matches!(last, Some(Kind::SessionIdle(idle)) if idle.stop_reason() == StopReason::EndTurn));
    let ended = TerminateSessionRequest { session_id: session.session_id, reason: "done".into() };
    let ended = client.lifecycle.terminate_session(ended).await.unwrap().into_inner().session.unwrap();
    assert_eq!(ended.state(), SessionState::Terminated);
    assert_eq!(ended.usage.unwrap().attempts, 1);
}

/// The events that a socket shows, up to the first that is such.
async fn shown(
    socket: &mut (impl Stream<Item = Result<Message, Error>> + Unpin),
    is_last: impl Fn(&Value) -> bool,
) -> Vec<Value> {
    let mut seen: Vec<Value> = Vec::new();
    while let Some(frame) = tokio::time::timeout(PATIENCE, socket.next()).await.expect("it shows what happens") {
        let Message::Text(text) = frame.unwrap() else { continue };
        let frame: Value = serde_json::from_str(&text).unwrap();
        if let Some(event) = frame.get("event") {
            seen.push(event.clone());
            if is_last(event) {
                return seen;
            }
        }
    }
    panic!("the socket closed; it had shown {seen:?}")
}

/// P3: provider → worker → front → Redis → gateway of another front → browser.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_reaches_a_websocket_of_another_front() {
    let system = System::from_env_file().unwrap();
    let fronts = front_pods(&system).await;
    assert!(fronts.len() >= 2, "this wants two fronts, not {fronts:?}");
    let mut client = Client::new(&format!("{}:50051", fronts[0].ip), &system.api_key).unwrap();
    let session = client.create(scripted_agent("watched")).await.unwrap();

    let mut request = format!("ws://{}:8080/v1/ws", fronts[1].ip).into_client_request().unwrap();
    request.headers_mut().insert("authorization", format!("Bearer {}", system.api_key).parse().unwrap());
    let (mut socket, _) = tokio_tungstenite::connect_async(request).await.unwrap();
    let subscribe = json!({ "subscribe": { "sessionId": session.session_id, "since": 0 } });
    socket.send(Message::text(subscribe.to_string())).await.unwrap();

    // Once it shows what was before, it misses nothing that is said.
    let mut seen = shown(&mut socket, |event| event["seq"] == "2").await;
    let script = r#"{"script": [{"text": "hello from afar", "token_delay_ms": 50}]}"#;
    let spoken = async {
        let sent = client.lifecycle.send_message(message(&session.session_id, script)).await.unwrap();
        whole_turn(sent.into_inner()).await.unwrap()
    };
    let watched = shown(&mut socket, |event| event.get("sessionIdle").is_some());
    let (rest, spoken) = futures::future::join(watched, spoken).await;
    seen.extend(rest);

    let numbers: Vec<u64> =
        seen.iter().filter_map(|event| event["seq"].as_str()?.parse().ok()).filter(|seq| *seq > 0).collect();
    let last = spoken.last().unwrap().seq;
    assert_eq!(numbers, (1..=last).collect::<Vec<_>>(), "every durable event once, in order");
    let tokens: String = seen.iter().filter_map(|event| event["textDelta"]["text"].as_str()).collect();
    assert_eq!(tokens, "hello from afar", "tokens crossed from one front to the other");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_resumes_at_another_front_without_hole_or_double() {
    let system = System::from_env_file().unwrap();
    let fronts = front_pods(&system).await;
    let mut first = Client::new(&format!("{}:50051", fronts[0].ip), &system.api_key).unwrap();
    let mut second = Client::new(&format!("{}:50051", fronts[fronts.len() - 1].ip), &system.api_key).unwrap();
    let session = first.create(scripted_agent("resumes")).await.unwrap();
    let sent = first.lifecycle.send_message(message(&session.session_id, "one")).await.unwrap();
    let before = whole_turn(sent.into_inner()).await.unwrap();
    let cursor = before.last().unwrap().seq;
    let sent = second.lifecycle.send_message(message(&session.session_id, "two")).await.unwrap();
    let after = whole_turn(sent.into_inner()).await.unwrap();

    let request = StreamEventsRequest { session_id: session.session_id.clone(), after_seq: cursor, durable_only: true };
    let mut replay = second.lifecycle.stream_events(request).await.unwrap().into_inner();
    let mut numbers = Vec::new();
    let last = after.last().unwrap().seq;
    while numbers.last() != Some(&last) {
        let next = tokio::time::timeout(PATIENCE, replay.message()).await.expect("the replay goes on");
        numbers.push(next.unwrap().context("the replay ended").unwrap().event.unwrap().seq);
    }
    assert_eq!(numbers, (cursor + 1..=last).collect::<Vec<_>>());
}
