//! Fronts, operator and workers of the installed system are replaced, as by an upgrade or a drained node, while a client has a
//! conversation and resumes what breaks off. It must end as one that nothing disturbed.
//!
//! A program of its own: other tests of the same cluster would have to expect it.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

#[path = "../cluster/support.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod support;

use std::time::Duration;

use croft_e2e::client::{Client, message, scripted_agent};
use croft_e2e::system::System;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{SessionEvent, StopReason, StreamEventsRequest};
use tokio::time::timeout;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::support::{PATIENCE, Tenant, answer, assert_contiguous, pods};

/// About five seconds.
const SLOW: &str =
    r#"{"script": [{"text": "a b c d e f g h i j k l m n o p q r s t u v w x y z", "token_delay_ms": 200}]}"#;

/// A call that a client is to make again. What came just after its connection had been told to go, or as it closed, is an internal or a
/// cancelled call to this client; others make such a call again by themselves.
fn assert_to_be_repeated(status: &Status) {
    let shown = format!("{status:?}");
    let is_late = match status.code() {
        Code::Unavailable => true,
        Code::Internal => shown.contains("GoAway"),
        Code::Cancelled => shown.contains("connection closed"),
        _ => false,
    };
    assert!(is_late, "{shown}");
}

/// Sends a slow message until it is taken, and reads on until the turn has ended, at whichever front answers. Gives what is durable.
async fn converse(client: &mut Client, session_id: &str, after_seq: u64) -> Vec<SessionEvent> {
    let mut request = message(session_id, SLOW);
    request.idempotency_key = Uuid::new_v4().to_string();
    while let Err(status) = client.lifecycle.send_message(request.clone()).await {
        assert_to_be_repeated(&status);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut seen: Vec<SessionEvent> = Vec::new();
    loop {
        let after_seq = seen.last().map_or(after_seq, |event| event.seq);
        let request = StreamEventsRequest { session_id: session_id.to_owned(), after_seq, durable_only: true };
        let mut events = match client.lifecycle.stream_events(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                assert_to_be_repeated(&status);
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        loop {
            match events.message().await {
                Ok(Some(response)) => seen.push(response.event.unwrap()),
                Ok(None) => break,
                Err(status) => {
                    assert_eq!(status.code(), Code::Unavailable, "what breaks off says so: {status:?}");
                    break;
                }
            }
            if seen.last().is_some_and(|event| matches!(event.kind, Some(Kind::SessionIdle(_)))) {
                return seen;
            }
        }
    }
}

/// Replaces the pods of a Deployment, and tells that none of the old ones is left. Workers go as from a drained node, since only the
/// operator may change their Deployment; the others as by an upgrade.
async fn replace(system: &System, namespace: &str, deployment: &str, component: &str) {
    let selector = format!("app.kubernetes.io/component={component}");
    let before = pods(system, namespace, &selector).await.unwrap();
    assert!(!before.is_empty());
    // Not before the turn has begun.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let name = format!("deployment/{deployment}");
    if component == "worker" {
        system.kubectl(&["delete", "pods", "-n", namespace, "-l", &selector]).await.unwrap();
    } else {
        system.kubectl(&["rollout", "restart", &name, "-n", namespace]).await.unwrap();
    }
    system.kubectl(&["rollout", "status", &name, "-n", namespace, "--timeout=120s"]).await.unwrap();
    let after = pods(system, namespace, &selector).await.unwrap();
    assert!(after.iter().all(|pod| before.iter().all(|old| old.name != pod.name)), "{after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_outlives_the_replacement_of_all_programs() {
    let system = System::from_env_file().unwrap();
    let tenant = Tenant::apply(&system, "rolling", 1).await;
    let mut client = tenant.client(&system);
    let session_id = client.create(scripted_agent("rolling")).await.unwrap().session_id;
    let mut whole: Vec<SessionEvent> = Vec::new();
    let replaced = [
        (tenant.namespace.as_str(), "workers", "worker"),
        ("croft-system", "croft-front", "front"),
        ("croft-system", "croft-operator", "operator"),
    ];
    for (namespace, deployment, component) in replaced {
        let after_seq = whole.last().map_or(0, |event| event.seq);
        let talk = timeout(PATIENCE, converse(&mut client, &session_id, after_seq));
        let (seen, ()) = tokio::join!(talk, replace(&system, namespace, deployment, component));
        let seen = seen.unwrap_or_else(|_| panic!("while {component}s were replaced the turn came to no end"));
        let Some(Kind::SessionIdle(idle)) = seen.last().and_then(|event| event.kind.as_ref()) else { unreachable!() };
        assert_eq!(idle.stop_reason(), StopReason::EndTurn, "while {component}s were replaced: {seen:?}");
        assert!(answer(&seen).ends_with("x y z"), "while {component}s were replaced: {}", answer(&seen));
        whole.extend(seen);
    }
    assert_contiguous(&whole);
    let messages = whole.iter().filter(|event| matches!(event.kind, Some(Kind::UserMessage(_)))).count();
    assert_eq!(messages, replaced.len(), "a message that was sent again is taken once");
    tenant.remove(&system).await;
}
