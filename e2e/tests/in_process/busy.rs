//! A session that is busy: what stops its turn does so within a second, from whichever front; who asks in the moments around a
//! turn is told what is so; and a request that is made twice is carried out once.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use croft_e2e::client::{Client, message, scripted_agent};
use croft_e2e::steady::steady;
use croft_front::Error;
use croft_front::events::relay::memory::MemoryRelay;
use croft_front::events::relay::{Envelope, Relay};
use croft_front::store::Stores;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    AgentSpec, BusyPolicy, InterruptSessionRequest, SendMessageRequest, SendMessageResponse, SessionEvent,
    SessionState, StopReason, TerminateSessionRequest,
};
use futures::future::join_all;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::{Code, Streaming};
use tonic_types::StatusExt;

use crate::approvals::{asked, cautious, say_yes};
use crate::doubles::{Call, Slow, hooked};
use crate::nap;
use crate::world::{Ground, STALL, World, names, read_all, stop_reason};

/// The first token comes after half a second, the last one after half a minute.
const SLOW: &str = r#"{"script": [{"text":
    "a b c d e f g h i j k l m n o p q r s t u v w x y z a b c d e f g h i j k l m n o p q r s t u v w x y z a b c d e f g h",
    "token_delay_ms": 500}]}"#;
const QUICK: &str = r#"{"script": [{"text": "done"}]}"#;

type Turn = Streaming<SendMessageResponse>;

async fn send(client: &mut Client, request: SendMessageRequest) -> Turn {
    client.lifecycle.send_message(request).await.unwrap().into_inner()
}

fn with_policy(session_id: &str, script: &str, policy: BusyPolicy) -> SendMessageRequest {
    SendMessageRequest { busy_policy: policy.into(), ..message(session_id, script) }
}

fn with_key(session_id: &str, script: &str, key: &str) -> SendMessageRequest {
    SendMessageRequest { idempotency_key: key.into(), ..message(session_id, script) }
}

async fn until(turn: &mut Turn, holds: impl Fn(&Kind) -> bool) {
    while !turn.message().await.unwrap().unwrap().event.unwrap().kind.as_ref().is_some_and(&holds) {}
}

fn in_mid_token(kind: &Kind) -> bool {
    matches!(kind, Kind::TextDelta(_))
}

fn in_mid_tool(kind: &Kind) -> bool {
    matches!(kind, Kind::ToolCall(_))
}

async fn interrupt(client: &mut Client, session_id: &str) -> bool {
    let request = InterruptSessionRequest { session_id: session_id.to_owned() };
    client.lifecycle.interrupt_session(request).await.unwrap().into_inner().interrupted
}

async fn within_a_second<T>(what: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let outcome = what.await;
    assert!(began.elapsed() < Duration::from_secs(1), "it took {:?}", began.elapsed());
    outcome
}

fn durable(events: &[SessionEvent]) -> Vec<u64> {
    events.iter().map(|event| event.seq).filter(|seq| *seq > 0).collect()
}

#[tokio::test]
async fn a_turn_is_stopped_in_mid_token_and_in_mid_tool_from_any_front() {
    steady(STALL, async || {
        let world = World::start().await;
        let (mut ours, mut theirs) = (world.client(), world.client_of_another_front().await);
        let agent = AgentSpec { tools: vec![nap::spec()], ..scripted_agent("slow") };
        for (script, moment) in [(SLOW, in_mid_token as fn(&Kind) -> bool), (nap::SCRIPT, in_mid_tool)] {
            for from_another in [false, true] {
                let stopper = if from_another { &mut theirs } else { &mut ours };
                let session_id = stopper.create(agent.clone()).await.unwrap().session_id;
                // The turn runs where it was asked for.
                let mut turn = send(&mut world.client(), message(&session_id, script)).await;
                until(&mut turn, moment).await;
                assert!(interrupt(stopper, &session_id).await);
                let rest = within_a_second(read_all(turn)).await;
                assert_eq!(stop_reason(&rest), Some(StopReason::Interrupted), "{rest:?}");

                let mut turn = send(&mut world.client(), message(&session_id, script)).await;
                until(&mut turn, moment).await;
                let end = TerminateSessionRequest { session_id: session_id.clone(), reason: "enough".into() };
                stopper.lifecycle.terminate_session(end).await.unwrap();
                let rest = within_a_second(read_all(turn)).await;
                assert!(matches!(rest.last().unwrap().kind, Some(Kind::SessionTerminated(_))), "{rest:?}");
            }
        }
    })
    .await;
}

/// Once, a session whose turn had waited for its place said that it was idle: it could not be interrupted, its clock ran, and nobody
/// would have taken it over.
#[tokio::test]
async fn a_turn_that_waited_is_running_and_can_be_interrupted() {
    steady(STALL, async || {
        let world = World::start().await;
        let mut client = world.client();
        let session_id = client.create(scripted_agent("patient")).await.unwrap().session_id;
        let first = send(&mut client, message(&session_id, SLOW)).await;
        let mut second = send(&mut client, with_policy(&session_id, SLOW, BusyPolicy::Enqueue)).await;
        assert!(interrupt(&mut client, &session_id).await);
        assert_eq!(stop_reason(&read_all(first).await), Some(StopReason::Interrupted));
        until(&mut second, in_mid_token).await;
        assert_eq!(world.stored(&session_id).await.state, SessionState::Running);
        assert!(interrupt(&mut client, &session_id).await);
        let rest = within_a_second(read_all(second)).await;
        assert_eq!(stop_reason(&rest), Some(StopReason::Interrupted), "{rest:?}");
    })
    .await;
}

#[tokio::test]
async fn an_interrupt_is_for_the_turn_that_ran_and_not_for_the_next() {
    let world = World::start().await;
    let mut client = world.client();
    let session_id = client.create(scripted_agent("next")).await.unwrap().session_id;
    for _ in 0..20 {
        let first = send(&mut client, message(&session_id, SLOW)).await;
        let second = send(&mut client, with_policy(&session_id, QUICK, BusyPolicy::Enqueue)).await;
        interrupt(&mut client, &session_id).await;
        assert_eq!(stop_reason(&read_all(first).await), Some(StopReason::Interrupted));
        assert_eq!(stop_reason(&read_all(second).await), Some(StopReason::EndTurn));
    }
}

/// A relay that is slow to listen, as one far away.
struct SlowRelay(MemoryRelay);

#[async_trait]
impl Relay for SlowRelay {
    async fn publish(&self, tenant: TenantId, session: SessionId, envelope: &Envelope) -> Result<u64, Error> {
        self.0.publish(tenant, session, envelope).await
    }

    async fn subscribe(&self, tenant: TenantId, session: SessionId) -> Result<mpsc::Receiver<Envelope>, Error> {
        tokio::time::sleep(Duration::from_millis(150)).await;
        self.0.subscribe(tenant, session).await
    }
}

#[tokio::test]
async fn an_interrupt_that_comes_before_the_turn_listens_is_not_lost() {
    steady(STALL, async || {
        let world = World::on(Ground { relay: Arc::new(SlowRelay(MemoryRelay::default())), ..Ground::default() }).await;
        let (mut ours, mut theirs) = (world.client(), world.client_of_another_front().await);
        let session_id = ours.create(scripted_agent("early")).await.unwrap().session_id;
        let mut turn = send(&mut ours, message(&session_id, SLOW)).await;
        until(&mut turn, |kind| matches!(kind, Kind::SessionRunning(_))).await;
        assert!(interrupt(&mut theirs, &session_id).await);
        let rest = within_a_second(read_all(turn)).await;
        assert_eq!(stop_reason(&rest), Some(StopReason::Interrupted), "{rest:?}");
    })
    .await;
}

/// A worker's node that died a moment ago takes connections, by what a front can see, and answers nothing.
#[tokio::test]
async fn a_turn_whose_worker_does_not_answer_can_be_interrupted() {
    steady(STALL, async || {
        let silence = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = silence.local_addr().unwrap().to_string();
        // The session's own worker, and another that has to be told of the session first.
        for worker in ["worker-0", "worker-1"] {
            let world = World::start().await;
            let mut client = world.client();
            let session_id = client.create(scripted_agent("cut-off")).await.unwrap().session_id;
            world.reroute(|route| {
                worker.clone_into(&mut route.workers[0].name);
                route.workers[0].address.clone_from(&address);
            });
            let turn = send(&mut client, message(&session_id, QUICK)).await;
            let (_connection, _) = silence.accept().await.unwrap();
            assert!(interrupt(&mut client, &session_id).await);
            let rest = within_a_second(read_all(turn)).await;
            assert_eq!(stop_reason(&rest), Some(StopReason::Interrupted), "{rest:?}");
        }
    })
    .await;
}

/// Where it takes its time to store anything and to give a lease up, as with a busy database.
async fn slow_world() -> World {
    let (mut stores, by) = (Stores::memory(), Duration::from_millis(20));
    stores.events = hooked(stores.events, Slow { is_meant: |call| matches!(call, Call::Append(_)), by });
    stores.leases = hooked(stores.leases, Slow { is_meant: |call| matches!(call, Call::Release), by });
    World::on(Ground { stores, ..Ground::default() }).await
}

/// Once, whoever answered the end of a turn at once was told that it was running.
#[tokio::test]
async fn a_message_right_after_the_end_of_a_turn_begins_the_next() {
    let world = slow_world().await;
    let (mut ours, mut theirs) = (world.client(), world.client_of_another_front().await);
    let session_id = ours.create(scripted_agent("quick")).await.unwrap().session_id;
    for round in 0..10 {
        let client = if round % 2 == 0 { &mut ours } else { &mut theirs };
        let turn = send(client, message(&session_id, QUICK)).await;
        assert_eq!(stop_reason(&read_all(turn).await), Some(StopReason::EndTurn));
    }
}

#[tokio::test]
async fn of_many_messages_at_once_one_begins_a_turn_and_the_others_are_told_so() {
    let world = slow_world().await;
    let (mut ours, theirs) = (world.client(), world.client_of_another_front().await);
    let session_id = ours.create(scripted_agent("popular")).await.unwrap().session_id;
    let sending = (0..10).map(|number| {
        let (mut client, session_id) = (if number % 2 == 0 { ours.clone() } else { theirs.clone() }, &session_id);
        async move { client.lifecycle.send_message(message(session_id, SLOW)).await }
    });
    let (begun, refused): (Vec<_>, Vec<_>) = join_all(sending).await.into_iter().partition(Result::is_ok);
    assert_eq!((begun.len(), refused.len()), (1, 9));
    for refusal in refused {
        let refusal = refusal.unwrap_err();
        assert_eq!(refusal.code(), Code::Aborted, "{refusal:?}");
        assert_eq!(refusal.get_error_details().error_info().unwrap().reason, "SESSION_BUSY");
    }
}

#[tokio::test]
async fn a_message_that_is_repeated_while_its_turn_runs_streams_the_same_turn() {
    let world = World::start().await;
    let (mut ours, mut theirs) = (world.client(), world.client_of_another_front().await);
    let session_id = ours.create(scripted_agent("again")).await.unwrap().session_id;
    let mut first = send(&mut ours, with_key(&session_id, SLOW, "k")).await;
    let mut seen = Vec::new();
    while !seen.iter().any(|event: &SessionEvent| event.kind.as_ref().is_some_and(in_mid_token)) {
        seen.push(first.message().await.unwrap().unwrap().event.unwrap());
    }
    let again = send(&mut theirs, with_key(&session_id, SLOW, "k")).await;
    let other = theirs.lifecycle.send_message(with_key(&session_id, QUICK, "k")).await.unwrap_err();
    assert_eq!(other.code(), Code::FailedPrecondition);
    assert_eq!(other.get_error_details().error_info().unwrap().reason, "IDEMPOTENCY_KEY_REUSED");
    assert!(interrupt(&mut ours, &session_id).await);
    seen.extend(read_all(first).await);
    let again = read_all(again).await;
    assert_eq!(durable(&again), durable(&seen), "{:?}", names(&again));
    assert_eq!(stop_reason(&again), Some(StopReason::Interrupted));
}

#[tokio::test]
async fn one_message_to_two_fronts_at_once_is_one_turn() {
    let world = slow_world().await;
    let (ours, theirs) = (world.client(), world.client_of_another_front().await);
    for round in 0..5 {
        let session_id = ours.clone().create(scripted_agent("twin")).await.unwrap().session_id;
        let sending = [&ours, &theirs, &ours, &theirs].map(|client| {
            let (mut client, request) = (client.clone(), with_key(&session_id, QUICK, "once"));
            async move { read_all(client.lifecycle.send_message(request).await.unwrap().into_inner()).await }
        });
        let turns = join_all(sending).await;
        for turn in &turns {
            assert_eq!(durable(turn), durable(&turns[0]), "round {round}: {:?}", names(turn));
            assert_eq!(stop_reason(turn), Some(StopReason::EndTurn));
        }
        let stored = world.stored(&session_id).await;
        assert_eq!((stored.usage.attempts, stored.newest_input_seq), (1, stored.input_seq));
    }
}

/// Each is a turn of its own, and their content is held until then.
#[tokio::test]
async fn no_more_messages_wait_in_a_session_than_may() {
    let world = World::start().await;
    let mut client = world.client();
    let session_id = client.create(cautious()).await.unwrap().session_id;
    let (approval_id, first) = asked(&mut client, &session_id).await;
    let mut waiting = Vec::new();
    for number in 0..100 {
        let script = json!({"script": [{"text": format!("answer {number}")}]}).to_string();
        waiting.push(send(&mut client, with_policy(&session_id, &script, BusyPolicy::Enqueue)).await);
    }
    let seq = world.stored(&session_id).await.last_seq;
    for policy in [BusyPolicy::Enqueue, BusyPolicy::Interrupt] {
        let refused = client.lifecycle.send_message(with_policy(&session_id, QUICK, policy)).await.unwrap_err();
        let info = refused.get_error_details().error_info().unwrap().reason.clone();
        assert_eq!((refused.code(), &*info), (Code::ResourceExhausted, "MESSAGE_LIMIT"), "{refused:?}");
    }
    assert_eq!(world.stored(&session_id).await.last_seq, seq, "neither is stored, and nothing is interrupted");

    say_yes(&mut client, &session_id, &approval_id).await;
    assert_eq!(stop_reason(&read_all(first).await), Some(StopReason::EndTurn));
    for (number, turn) in waiting.into_iter().enumerate() {
        let turn = read_all(turn).await;
        assert_eq!(stop_reason(&turn), Some(StopReason::EndTurn), "{turn:?}");
        assert!(format!("{turn:?}").contains(&format!("answer {number}\"")), "its own: {turn:?}");
    }
    let turn = send(&mut client, with_policy(&session_id, QUICK, BusyPolicy::Enqueue)).await;
    assert_eq!(stop_reason(&read_all(turn).await), Some(StopReason::EndTurn), "there is room again");
}
