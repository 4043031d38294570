//! Tenants that are cordoned, and those that are suspended: what goes on, and what is refused before anything is stored.

use std::time::Duration;

use croft_e2e::client::{message, scripted_agent};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{BusyPolicy, SendMessageRequest, SessionState, StopReason, TenantAdmission};
use croft_serve::Tasks;
use croft_worker::RuntimeOptions;
use croft_worker::tools::Builtins;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::approvals::{answer, asked, cautious, say_yes};
use crate::world::{PATIENCE, World, of_acme, read_all, stop_reason, worker};

const SLOW: &str = r#"{"script": [{"text": "a b c d e f g h", "token_delay_ms": 60000}]}"#;
const QUICK: &str = r#"{"script": [{"text": "still here"}]}"#;

fn assert_closed(refused: &Status) {
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert_eq!(refused.get_error_details().error_info().unwrap().reason, "TENANT_CLOSED");
}

#[tokio::test]
async fn a_cordon_keeps_new_sessions_out_and_lets_open_ones_go_on() {
    let world = World::start().await;
    let mut client = world.client();
    let session_id = client.create(scripted_agent("inside")).await.unwrap().session_id;
    let asked_id = client.create(cautious()).await.unwrap().session_id;
    let (approval_id, waiting) = asked(&mut client, &asked_id).await;
    world.reroute(|route| route.set_admission(TenantAdmission::Cordoned));
    assert_closed(&client.create(scripted_agent("outside")).await.unwrap_err());
    let turn = client.lifecycle.send_message(message(&session_id, QUICK)).await.unwrap();
    assert_eq!(stop_reason(&read_all(turn.into_inner()).await), Some(StopReason::EndTurn));
    say_yes(&mut client, &asked_id, &approval_id).await;
    assert_eq!(stop_reason(&read_all(waiting).await), Some(StopReason::EndTurn));
}

/// Each was stored, and ended ten seconds later with a worker that was lost: who tried again said it again and again.
#[tokio::test]
async fn what_is_said_to_a_suspended_tenant_is_not_stored() {
    let world = World::start().await;
    let mut client = world.client();
    let session_id = client.create(cautious()).await.unwrap().session_id;
    let (approval_id, _waiting) = asked(&mut client, &session_id).await;
    let idle_id = client.create(scripted_agent("idle")).await.unwrap().session_id;
    world.reroute(|route| route.set_admission(TenantAdmission::Suspended));
    let before = [world.stored(&session_id).await.last_seq, world.stored(&idle_id).await.last_seq];
    for busy_policy in [BusyPolicy::Reject, BusyPolicy::Enqueue, BusyPolicy::Interrupt] {
        for id in [&session_id, &idle_id] {
            let said = SendMessageRequest { busy_policy: busy_policy.into(), ..message(id, QUICK) };
            assert_closed(&client.lifecycle.send_message(said).await.unwrap_err());
        }
    }
    assert_closed(&answer(&mut client, &session_id, &approval_id, true).await.unwrap_err());
    assert_closed(&client.create(scripted_agent("new")).await.unwrap_err());
    let after = [world.stored(&session_id).await.last_seq, world.stored(&idle_id).await.last_seq];
    assert_eq!(before, after);

    world.reroute(|route| route.set_admission(TenantAdmission::Open));
    let turn = client.lifecycle.send_message(message(&idle_id, QUICK)).await.unwrap();
    assert_eq!(stop_reason(&read_all(turn.into_inner()).await), Some(StopReason::EndTurn));
}

/// Its workers are told to end, and have the time for it. What they hand back then waited for others that never came.
#[tokio::test]
async fn turns_that_the_workers_of_a_suspended_tenant_hand_back_end_and_say_why() {
    let world = World::start().await;
    let going = Tasks::new();
    let hasty = RuntimeOptions { drain: Duration::from_millis(100), ..of_acme("hasty") };
    let hasty = worker(hasty, Builtins::default(), &going).await;
    world.reroute(|route| route.workers = vec![hasty]);
    let mut client = world.client();
    let session_id = client.create(scripted_agent("under-way")).await.unwrap().session_id;
    let mut events = client.lifecycle.send_message(message(&session_id, SLOW)).await.unwrap().into_inner();
    let waits = SendMessageRequest { busy_policy: BusyPolicy::Enqueue.into(), ..message(&session_id, QUICK) };
    let waiting = client.lifecycle.send_message(waits).await.unwrap().into_inner();
    while !matches!(events.message().await.unwrap().unwrap().event.unwrap().kind, Some(Kind::StepStarted(_))) {}
    world.reroute(|route| {
        route.set_admission(TenantAdmission::Suspended);
        route.workers.clear();
    });
    let (left, turn) = tokio::join!(going.shutdown(PATIENCE), read_all(events));
    assert_eq!(left, 0);
    for turn in [turn, read_all(waiting).await] {
        assert_eq!(stop_reason(&turn), Some(StopReason::Interrupted), "{turn:?}");
        let said = turn.iter().any(|event| matches!(&event.kind, Some(Kind::Error(e)) if e.reason == "TENANT_CLOSED"));
        assert!(said, "{turn:?}");
    }
    world.wait_for(&session_id, |session| session.state == SessionState::Idle).await;
}

/// It was taken for open.
#[tokio::test]
async fn a_tenant_of_whom_a_newer_operator_says_what_is_not_known_here_opens_no_session() {
    let world = World::start().await;
    world.reroute(|route| route.admission = 99);
    assert_closed(&world.client().create(scripted_agent("early")).await.unwrap_err());
    world.reroute(|route| route.set_admission(TenantAdmission::Unspecified));
    world.client().create(scripted_agent("in-time")).await.unwrap();
}
