//! A worker that dies in mid turn: by the kernel's hand, so that it can hand nothing back.

use std::process::Command;

use croft_e2e::client::{message, scripted_agent};
use croft_e2e::system::System;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{SessionEvent, SessionState, StopReason};

use crate::support::{PATIENCE, Tenant, answer, assert_contiguous, eventually, whole_turn};

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_in_mid_turn_leaves_a_clear_state_and_the_next_message_works() {
    let system = System::from_env_file().unwrap();
    let tenant = Tenant::apply(&system, "crash", 1).await;
    let mut client = tenant.client(&system);
    let session = client.create(scripted_agent("crash")).await.unwrap();

    let slow =
        r#"{"script": [{"text": "a b c d e f g h i j k l m n o p q r s t u v w x y z", "token_delay_ms": 400}]}"#;
    let sent = client.lifecycle.send_message(message(&session.session_id, slow)).await.unwrap();
    let mut events = sent.into_inner();
    let mut seen = Vec::new();
    let mut killed = false;
    while let Some(response) = tokio::time::timeout(PATIENCE, events.message()).await.expect("the turn ends").unwrap() {
        let event = response.event.unwrap();
        if matches!(event.kind, Some(Kind::TextDelta(_))) && !killed {
            killed = kill_worker(&tenant.name);
        }
        seen.push(event);
    }
    assert!(killed, "no token came to kill the worker by, or no worker was there");
    let handed_back = |event: &SessionEvent| matches!(&event.kind, Some(Kind::StepCompleted(step)) if step.stop_reason() == StopReason::HandedBack);
    assert!(!seen.iter().any(handed_back), "it had time to hand its turn back: {seen:?}");
    assert_contiguous(&seen);
    let Some(Kind::SessionIdle(idle)) = seen.last().and_then(|event| event.kind.clone()) else {
        panic!("the turn has no end: {:?}", seen.last());
    };
    match idle.stop_reason() {
        // Another pod went on from the last checkpoint and said all of it.
        StopReason::EndTurn => assert!(answer(&seen).ends_with("x y z"), "{}", answer(&seen)),
        // No other pod came in time, and the turn says so.
        StopReason::WorkerLost => {
            assert!(
                seen.iter().any(|event| matches!(&event.kind, Some(Kind::Error(error)) if error.retryable)),
                "{seen:?}"
            );
        }
        other => panic!("{}", other.as_str_name()),
    }

    let session = client
        .lifecycle
        .get_session(croft_proto::v1::GetSessionRequest { session_id: session.session_id })
        .await
        .unwrap()
        .into_inner()
        .session
        .unwrap();
    assert_eq!(session.state(), SessionState::Idle);
    let wait = ["wait", "deployment/workers", "-n", &tenant.namespace, "--for=condition=Available", "--timeout=90s"];
    system.kubectl(&wait).await.unwrap();
    eventually("the next message works", async || {
        let sent = message(&session.session_id, r#"{"script": [{"text": "still here"}]}"#);
        let events = whole_turn(client.lifecycle.send_message(sent).await?.into_inner()).await?;
        anyhow::ensure!(answer(&events) == "still here", "{events:?}");
        Ok(())
    })
    .await;
    tenant.remove(&system).await;
}

/// Kills the tenant's worker, a process of this machine, which is the node. A pod that is deleted, however hard, is asked to end first.
fn kill_worker(tenant: &str) -> bool {
    let whose = format!("CROFT_TENANT={tenant}");
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let is_its_worker = |pid: &String| {
        let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|variable| variable == whose.as_bytes())
    };
    let pids: Vec<String> = processes.filter(|name| name.parse::<u32>().is_ok()).filter(is_its_worker).collect();
    !pids.is_empty() && Command::new("kill").arg("-KILL").args(&pids).status().unwrap().success()
}
