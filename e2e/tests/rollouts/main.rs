//! Fronts, operator and workers of the installed system are replaced, one after the other as when a node is drained, and together by an upgrade
//! of the chart, while a client has a conversation and resumes what breaks off. It must end as one that nothing disturbed. Then the
//! chart is taken away, and installed again.
//!
//! A program of its own: other tests of the same cluster would have to expect it.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

#[path = "../cluster/support.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod support;

use std::fmt;
use std::time::Duration;

use croft_e2e::client::{Client, message, scripted_agent};
use croft_e2e::system::System;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{SessionEvent, StopReason, StreamEventsRequest};
use tokio::time::timeout;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::support::{PATIENCE, Pod, Tenant, answer, assert_contiguous, eventually, pods, whole_turn};

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

/// The pods of fronts and operator.
async fn platform(system: &System) -> Vec<Pod> {
    let selector = "app.kubernetes.io/component in (front,operator)";
    pods(system, "croft-system", selector).await.unwrap()
}

/// Upgrades the chart with a value that replaces fronts and operator.
async fn upgrade(system: &System) {
    let before = platform(system).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let values = "operator.podAnnotations.upgraded=yes,front.podAnnotations.upgraded=yes";
    let upgrade = ["upgrade", "croft", "charts/croft", "--namespace", "croft-system", "--reset-then-reuse-values"];
    let waits = ["--set", values, "--wait", "--timeout", "180s"];
    system.helm(&[&upgrade[..], &waits].concat()).await.unwrap();
    eventually("none of the old pods is left", async || {
        let left = platform(system).await.into_iter().filter(|pod| before.iter().any(|old| old.name == pod.name));
        let left: Vec<Pod> = left.collect();
        anyhow::ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await;
}

/// What is done to the system in one turn of the conversation.
enum Disturbance {
    Replaced { namespace: String, deployment: &'static str, component: &'static str },
    Upgraded,
}

impl Disturbance {
    async fn happens(&self, system: &System) {
        match self {
            Self::Replaced { namespace, deployment, component } => {
                replace(system, namespace, deployment, component).await;
            }
            Self::Upgraded => upgrade(system).await,
        }
    }
}

impl fmt::Display for Disturbance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replaced { component, .. } => write!(f, "{component}s were replaced"),
            Self::Upgraded => f.write_str("the chart was upgraded"),
        }
    }
}

/// One test, as each part is about the whole system.
#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_outlives_the_replacement_of_all_programs_and_the_chart_itself() {
    let system = System::from_env_file().unwrap();
    let tenant = Tenant::apply(&system, "rolling", 1).await;
    let mut client = tenant.client(&system);
    let session_id = client.create(scripted_agent("rolling")).await.unwrap().session_id;
    let mut whole: Vec<SessionEvent> = Vec::new();
    let replaced = |namespace: &str, deployment, component| Disturbance::Replaced {
        namespace: namespace.to_owned(),
        deployment,
        component,
    };
    let disturbances = [
        replaced(&tenant.namespace, "workers", "worker"),
        replaced("croft-system", "croft-front", "front"),
        replaced("croft-system", "croft-operator", "operator"),
        Disturbance::Upgraded,
    ];
    for disturbance in &disturbances {
        let after_seq = whole.last().map_or(0, |event| event.seq);
        let talk = timeout(PATIENCE, converse(&mut client, &session_id, after_seq));
        let (seen, ()) = tokio::join!(talk, disturbance.happens(&system));
        let seen = seen.unwrap_or_else(|_| panic!("while {disturbance} the turn came to no end"));
        let Some(Kind::SessionIdle(idle)) = seen.last().and_then(|event| event.kind.as_ref()) else { unreachable!() };
        assert_eq!(idle.stop_reason(), StopReason::EndTurn, "while {disturbance}: {seen:?}");
        assert!(answer(&seen).ends_with("x y z"), "while {disturbance}: {}", answer(&seen));
        whole.extend(seen);
    }
    assert_contiguous(&whole);
    let messages = whole.iter().filter(|event| matches!(event.kind, Some(Kind::UserMessage(_)))).count();
    assert_eq!(messages, disturbances.len(), "a message that was sent again is taken once");

    reinstall(&system).await;
    eventually("the session goes on behind a new front", async || {
        let sent = client.lifecycle.send_message(message(&session_id, "still there")).await?.into_inner();
        let seen = whole_turn(sent).await?;
        anyhow::ensure!(matches!(seen.last().and_then(|event| event.kind.as_ref()), Some(Kind::SessionIdle(idle)) if idle.stop_reason() == StopReason::EndTurn), "{seen:?}");
        Ok(())
    })
    .await;
    // The new operator has taken it up, or it would never be let go.
    tenant.remove(&system).await;
}

/// Takes the chart away, whose kinds and tenants stay, and installs it again with the values that it had.
async fn reinstall(system: &System) {
    let release = ["croft", "--namespace", "croft-system"];
    let values = system.helm(&[&["get", "values"], &release[..], &["--output", "json"]].concat()).await.unwrap();
    let file = tempfile::NamedTempFile::with_suffix(".json").unwrap();
    std::fs::write(file.path(), values).unwrap();
    system.helm(&[&["uninstall"], &release[..], &["--wait", "--timeout", "120s"]].concat()).await.unwrap();
    eventually("no program of the platform is left", async || {
        let left = system.kubectl(&["get", "pods", "-n", "croft-system", "-o", "name"]).await?;
        anyhow::ensure!(left.is_empty(), "{left}");
        Ok(())
    })
    .await;
    let tenants = system.kubectl(&["get", "agenttenants", "-o", "name"]).await.unwrap();
    assert!(tenants.contains("agenttenant.croft.dev/rolling"), "{tenants}");
    let given = ["--values", file.path().to_str().unwrap(), "--wait", "--timeout", "180s"];
    system.helm(&[&["install", "croft", "charts/croft"], &release[1..], &given].concat()).await.unwrap();
    system.kubectl(&["wait", "agenttenant/rolling", "--for=condition=Ready", "--timeout=120s"]).await.unwrap();
}
