//! A tenant that is stopped in an emergency: what runs ends at once, and nothing but reading is left.

use std::time::Duration;

use croft_e2e::client::{message, scripted_agent};
use croft_e2e::steady::steady;
use croft_front::store::Stores;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    BusyPolicy, GetSessionRequest, ResolveApprovalRequest, SendMessageRequest, SessionState, StopReason,
    TenantAdmission, TenantLimits, TerminateSessionRequest,
};
use tokio::time::{Instant, timeout};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::doubles::{Call, Gate, hooked};
use crate::world::{PATIENCE, STALL, World, names, read_all, stop_reason};

const SLOW: &str = r#"{"script": [{"text": "a b c d e f g h", "token_delay_ms": 60000}]}"#;

fn assert_stopped(refused: &Status) {
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert_eq!(refused.get_error_details().error_info().unwrap().reason, "TENANT_STOPPED");
}

#[tokio::test]
async fn running_turns_end_within_a_second_and_no_more_begin() {
    steady(STALL, async || {
        let world = World::start().await;
        let mut client = world.client();
        let session = client.create(scripted_agent("running")).await.unwrap();
        let id = session.session_id;
        let mut events = client.lifecycle.send_message(message(&id, SLOW)).await.unwrap().into_inner();
        let waits = SendMessageRequest { busy_policy: BusyPolicy::Enqueue.into(), ..message(&id, SLOW) };
        let waiting = client.lifecycle.send_message(waits).await.unwrap().into_inner();
        while !matches!(events.message().await.unwrap().unwrap().event.unwrap().kind, Some(Kind::StepStarted(_))) {}

        let stopped = Instant::now();
        world.reroute(|route| route.set_admission(TenantAdmission::Stopped));
        for turn in [read_all(events).await, read_all(waiting).await] {
            assert_eq!(stop_reason(&turn), Some(StopReason::Interrupted), "{turn:?}");
            let said =
                turn.iter().any(|event| matches!(&event.kind, Some(Kind::Error(e)) if e.reason == "TENANT_STOPPED"));
            assert!(said, "{turn:?}");
        }
        assert!(stopped.elapsed() < Duration::from_secs(1), "{:?}", stopped.elapsed());

        assert_stopped(&client.lifecycle.send_message(message(&id, "hello?")).await.unwrap_err());
        assert_stopped(&client.create(scripted_agent("late")).await.unwrap_err());
        let approval = ResolveApprovalRequest { session_id: id.clone(), ..ResolveApprovalRequest::default() };
        assert_stopped(&client.lifecycle.resolve_approval(approval).await.unwrap_err());
        client.lifecycle.get_session(GetSessionRequest { session_id: id.clone() }).await.unwrap();

        // It goes on where it was.
        world.reroute(|route| route.set_admission(TenantAdmission::Open));
        let quick = r#"{"script": [{"text": "back again"}]}"#;
        let turn = client.lifecycle.send_message(message(&id, quick)).await.unwrap();
        assert_eq!(stop_reason(&read_all(turn.into_inner()).await), Some(StopReason::EndTurn));
        world.reroute(|route| route.set_admission(TenantAdmission::Stopped));
        let end = TerminateSessionRequest { session_id: id.clone(), ..TerminateSessionRequest::default() };
        client.lifecycle.terminate_session(end).await.unwrap();
        assert_eq!(world.stored(&id).await.state, SessionState::Terminated, "ending is always allowed");
    })
    .await;
}

/// Lets whatever can go on do so: all of it is on this thread.
async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

/// The turn was cut off behind what was being stored, and its calls with it, of which nobody told.
#[tokio::test]
async fn a_call_that_is_out_while_the_store_is_slow_is_paid_for() {
    let (mut stores, gate) = (Stores::memory(), Gate::default());
    let begins = |call: &Call<'_>| call.appends(|kind| matches!(kind, Kind::StepStarted(_)));
    stores.events = hooked(stores.events, gate.before(begins));
    let world = World::over(stores, TenantLimits::default()).await;
    let mut client = world.client();
    let id = client.create(scripted_agent("running")).await.unwrap().session_id;
    let endless = r#"{"script": [{"text": "word "}, {"delay_ms": 600000}]}"#;
    let mut events = client.lifecycle.send_message(message(&id, endless)).await.unwrap().into_inner();
    timeout(PATIENCE, gate.reached()).await.expect("its beginning is not stored");
    while !matches!(events.message().await.unwrap().unwrap().event.unwrap().kind, Some(Kind::TextDelta(_))) {}

    world.reroute(|route| route.set_admission(TenantAdmission::Stopped));
    settle().await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(1)).await;
    tokio::time::resume();
    settle().await;
    gate.open();
    let turn = timeout(PATIENCE, read_all(events)).await.expect("no end");
    assert_eq!(stop_reason(&turn), Some(StopReason::Interrupted), "{turn:?}");
    assert_eq!(names(&turn), ["step", "attempt", "other", "idle"]);
    let rows = world.core.stores.usage.list(world.tenant(), id.parse().ok(), None, None, 10).await.unwrap();
    let rows: Vec<_> = rows.iter().map(|row| (&*row.finish_reason, row.usage_estimated)).collect();
    assert_eq!(rows, [("lost", true)]);
}

/// A worker that neither answers nor goes away: nothing listens to what the front says to it.
#[tokio::test]
async fn a_worker_that_does_not_listen_holds_nothing_up() {
    steady(STALL, async || {
        let world = World::start().await;
        let mut client = world.client();
        let session = client.create(scripted_agent("deaf")).await.unwrap();
        // Takes connections, and reads none of them.
        let deaf = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = deaf.local_addr().unwrap().to_string();
        world.reroute(|route| route.workers[0].address = address);
        let events = client.lifecycle.send_message(message(&session.session_id, SLOW)).await.unwrap().into_inner();
        // The turn is on its way to that worker.
        let (_connection, _) = deaf.accept().await.unwrap();
        let stopped = Instant::now();
        world.reroute(|route| {
            route.set_admission(TenantAdmission::Stopped);
            route.workers.clear();
        });
        let turn = read_all(events).await;
        assert_eq!(stop_reason(&turn), Some(StopReason::Interrupted), "{turn:?}");
        assert!(stopped.elapsed() < Duration::from_secs(1), "{:?}", stopped.elapsed());
        let rested = world.wait_for(&session.session_id, |session| session.state == SessionState::Idle).await;
        assert_eq!(rested.input_seq, rested.newest_input_seq, "the message has been taken up");
    })
    .await;
}
