//! A caller who hangs up in the midst of a call has done it all, or nothing: what was stored is told, carried on and recorded.

use croft_e2e::client::{message, scripted_agent};
use croft_e2e::steady::steady;
use croft_front::core::Options;
use croft_front::store::Stores;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{AuditRecord, GetSessionRequest, SendMessageRequest, TerminateSessionRequest};
use tokio::time::{Duration, timeout};
use tonic::Code;

use crate::doubles::{Call, Gate, hooked};
use crate::world::{Ground, PATIENCE, STALL, World, read_all};

const ENDLESS: &str = r#"{"script": [{"text": "word "}, {"delay_ms": 600000}]}"#;

/// Waits for a record of this action on the session.
async fn recorded(world: &World, action: &str, session_id: &str) -> AuditRecord {
    let look = async {
        loop {
            let records = world.core.stores.audit.list(world.tenant(), 0, 100).await.unwrap();
            let named = |record: &AuditRecord| record.action == action && record.resource.ends_with(session_id);
            if let Some(record) = records.into_iter().find(named) {
                return record;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, look).await.expect("nobody recorded it")
}

#[tokio::test]
async fn who_hangs_up_on_the_end_of_a_session_has_ended_it_and_its_turn() {
    steady(STALL, async || {
        let (mut stores, answers) = (Stores::memory(), Gate::default());
        let ends = |call: &Call<'_>| call.appends(|kind| matches!(kind, Kind::SessionTerminated(_)));
        stores.events = hooked(stores.events, answers.after(ends));
        let world = World::on(Ground { stores, ..Ground::default() }).await;
        let mut client = world.client();
        let session_id = client.create(scripted_agent("left")).await.unwrap().session_id;
        let mut turn = client.lifecycle.send_message(message(&session_id, ENDLESS)).await.unwrap().into_inner();
        while !matches!(turn.message().await.unwrap().unwrap().event.unwrap().kind, Some(Kind::TextDelta(_))) {}

        let mut leaver = world.client();
        let request = TerminateSessionRequest { session_id: session_id.clone(), ..TerminateSessionRequest::default() };
        tokio::select! {
            _ = leaver.lifecycle.terminate_session(request) => panic!("its answer is held back"),
            () = answers.reached() => {}
        }
        // On the same connection behind the hanging up, so that the front has noticed.
        leaver.lifecycle.get_session(GetSessionRequest { session_id: session_id.clone() }).await.unwrap();
        answers.open();
        let events = timeout(Duration::from_secs(1), read_all(turn)).await.expect("its turn goes on");
        assert!(matches!(events.last().unwrap().kind, Some(Kind::SessionTerminated(_))), "{events:?}");
        assert_eq!(recorded(&world, "session.terminate", &session_id).await.outcome, "ok");
        let session = world.wait_for(&session_id, |session| session.usage.attempts > 0).await;
        assert_eq!(session.usage.attempts, 1, "what its call used is paid for");
    })
    .await;
}

#[tokio::test]
async fn who_hangs_up_on_a_message_has_sent_it_and_it_is_answered() {
    let (mut stores, answers) = (Stores::memory(), Gate::default());
    stores.turns = hooked(stores.turns, answers.after(|call| matches!(call, Call::Begin)));
    // Another front would take the turn over once its lease has run out.
    let options = Options { lease_ttl: Duration::from_mins(10), ..Options::default() };
    let world = World::on(Ground { stores, options, ..Ground::default() }).await;
    let mut client = world.client();
    let session_id = client.create(scripted_agent("left")).await.unwrap().session_id;
    let script = r#"{"script": [{"text": "done"}]}"#;
    let request = SendMessageRequest { idempotency_key: "once".into(), ..message(&session_id, script) };
    tokio::select! {
        _ = client.lifecycle.send_message(request) => panic!("its answer is held back"),
        () = answers.reached() => {}
    }
    client.lifecycle.get_session(GetSessionRequest { session_id: session_id.clone() }).await.unwrap();
    answers.open();
    assert_eq!(recorded(&world, "session.send_message", &session_id).await.outcome, "ok");
    world.wait_for(&session_id, |session| session.usage.attempts > 0).await;
}

#[tokio::test]
async fn what_somebody_left_behind_counts_for_as_long_as_it_is_worked_on() {
    const LARGE: usize = 13 << 20;
    let (mut stores, answers) = (Stores::memory(), Gate::default());
    stores.turns = hooked(stores.turns, answers.after(|call| matches!(call, Call::Begin)));
    let options = Options { message_bytes_max: 2 * LARGE, ..Options::default() };
    let world = World::on(Ground { stores, options, ..Ground::default() }).await;
    let mut client = world.client();
    let session_id = client.create(scripted_agent("left")).await.unwrap().session_id;
    let large = message(&session_id, &"x".repeat(LARGE));
    tokio::select! {
        answer = client.lifecycle.send_message(large.clone()) => panic!("its answer is held back: {answer:?}"),
        () = answers.reached() => {}
    }
    // On the same connection behind the hanging up, so that the front has noticed.
    client.lifecycle.get_session(GetSessionRequest { session_id: session_id.clone() }).await.unwrap();
    let refused = tokio::select! {
        answer = client.lifecycle.send_message(large.clone()) => answer.expect_err("two are more than a tenant's share"),
        () = answers.reached() => panic!("two are held at a time"),
    };
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");

    answers.open();
    assert_eq!(recorded(&world, "session.send_message", &session_id).await.outcome, "ok");
    let next = client.create(scripted_agent("next")).await.unwrap().session_id;
    let large = SendMessageRequest { session_id: next, ..large };
    client.lifecycle.send_message(large).await.expect("its room has been given back");
}
