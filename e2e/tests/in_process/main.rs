//! P1: the whole path in one process, on the stores in memory: front, worker and a client, on loopback, in milliseconds.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod approvals;
mod behind_end;
mod bounds;
mod browser;
mod budgets;
mod busy;
mod changed_calls;
mod colleague;
mod cut_off_decisions;
mod deaf;
mod declared;
#[path = "../../../operator/front/tests/doubles/mod.rs"]
mod doubles;
mod first_token;
mod guarded;
mod halves;
mod hang_up;
mod heartbeats;
mod hedging;
mod hooks;
mod hostile;
mod inbox;
mod late_answers;
mod liar;
mod limits;
mod lost_front;
mod nap;
mod overtaken_decisions;
mod own_credentials;
mod panics;
mod played;
mod previews;
mod receiver;
mod requests;
mod resolvers;
mod resumes;
mod retention;
mod rolled;
mod routing;
mod senders;
mod slow;
mod stop;
mod sub_agent_starts;
mod sub_agents;
mod suspended;
mod tenure;
mod told;
mod trace;
mod unknown_outcome;
mod unread;
mod waits;
mod workers;
mod world;

use std::time::Duration;

use croft_e2e::client::{message, scripted_agent};
use croft_e2e::steady::steady;
use croft_front::core::Options;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    BusyPolicy, GetSessionRequest, InterruptSessionRequest, ListSessionsRequest, ListUsageEventsRequest, SessionEvent,
    SessionState, StopReason, StreamEventsRequest, TenantLimits, TerminateSessionRequest,
};
use tokio::time::{Instant, timeout};
use tonic::Code;

use crate::world::{Ground, PATIENCE, STALL, World, names, read_all, stop_reason};

#[tokio::test]
async fn a_session_is_created_talked_to_and_terminated() {
    let world = World::start().await;
    let mut client = world.client();
    let began = Instant::now();
    let session = client.create(scripted_agent("first")).await.unwrap();
    assert_eq!(session.state(), SessionState::Ready);
    let script = r#"{"script": [{"text": "to be or not"}]}"#;
    let sent = client.lifecycle.send_message(message(&session.session_id, script)).await.unwrap();
    let events = read_all(sent.into_inner()).await;
    let terminate = TerminateSessionRequest { session_id: session.session_id.clone(), reason: "done".into() };
    let ended = client.lifecycle.terminate_session(terminate.clone()).await.unwrap().into_inner().session.unwrap();
    eprintln!("create, one turn, terminate: {:?}", began.elapsed());

    assert_eq!(stop_reason(&events), Some(StopReason::EndTurn), "{events:?}");
    assert_eq!(names(&events), ["user", "running", "step", "attempt", "agent", "checkpoint", "stepped", "idle"]);
    let numbers: Vec<u64> = events.iter().map(|event| event.seq).filter(|seq| *seq > 0).collect();
    assert_eq!(numbers, (3..=10).collect::<Vec<_>>(), "created and ready came first");
    assert!(events.iter().any(|event| matches!(event.kind, Some(Kind::TextDelta(_)))), "nothing streamed");
    assert_eq!((ended.state(), ended.terminate_reason.as_str()), (SessionState::Terminated, "done"));
    let again = client.lifecycle.terminate_session(terminate).await.unwrap().into_inner().session.unwrap();
    assert_eq!(again.last_seq, ended.last_seq, "ending twice changes nothing");

    let usage = ListUsageEventsRequest { session_id: session.session_id.clone(), ..ListUsageEventsRequest::default() };
    let usage = client.usage.list_usage_events(usage).await.unwrap().into_inner().usage_events;
    assert_eq!(usage.len(), 1);
    assert!(usage[0].cost_nano_usd.is_some_and(|cost| cost > 0));
    let late = client.lifecycle.send_message(message(&session.session_id, "hello?")).await.unwrap_err();
    assert_eq!(late.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn a_conversation_remembers_and_replays() {
    let world = World::start().await;
    let mut client = world.client();
    let session = client.create(scripted_agent("memory")).await.unwrap();
    for text in ["one", "two", "three"] {
        let sent = client.lifecycle.send_message(message(&session.session_id, text)).await.unwrap();
        assert_eq!(stop_reason(&read_all(sent.into_inner()).await), Some(StopReason::EndTurn));
    }
    let last = client.lifecycle.get_session(GetSessionRequest { session_id: session.session_id.clone() });
    let last = last.await.unwrap().into_inner().session.unwrap();
    assert_eq!(last.usage.unwrap().attempts, 3);
    let stored = world
        .core
        .stores
        .events
        .checkpoint(world.core.tenants.by_name("acme").unwrap().id, session.session_id.parse().unwrap());
    let messages = stored.await.unwrap().unwrap().checkpoint.messages;
    assert_eq!(messages.len(), 6, "three of the user's, three of the agent's: {messages:?}");

    let request = StreamEventsRequest { session_id: session.session_id.clone(), after_seq: 0, durable_only: true };
    let mut replay = client.lifecycle.stream_events(request).await.unwrap().into_inner();
    for seq in 1..=last.last_seq {
        assert_eq!(replay.message().await.unwrap().unwrap().event.unwrap().seq, seq);
    }
    let beyond = StreamEventsRequest { session_id: session.session_id, after_seq: 1_000, durable_only: true };
    assert_eq!(client.lifecycle.stream_events(beyond).await.unwrap_err().code(), Code::OutOfRange);
}

#[tokio::test]
async fn a_tool_is_called_and_its_result_read() {
    let world = World::start().await;
    let mut client = world.client();
    let mut agent = scripted_agent("tools");
    agent.tools.push(croft_proto::v1::ToolSpec {
        name: "calculator".into(),
        source: Some(croft_proto::v1::tool_spec::Source::Builtin(croft_proto::v1::BuiltinTool {
            name: "calculator".into(),
        })),
        replay: croft_proto::v1::ReplayClass::Safe.into(),
        ..croft_proto::v1::ToolSpec::default()
    });
    let session = client.create(agent).await.unwrap();
    let script = r#"{"script": [
        {"tool_call": {"name": "calculator", "arguments": {"expression": "6 * 7"}}},
        {"text": "as I thought"}
    ]}"#;
    let sent = client.lifecycle.send_message(message(&session.session_id, script)).await.unwrap();
    let events = read_all(sent.into_inner()).await;
    assert_eq!(stop_reason(&events), Some(StopReason::EndTurn), "{events:?}");
    let result = events.iter().find_map(|event| match &event.kind {
        Some(Kind::ToolResult(result)) => Some(format!("{result:?}")),
        _ => None,
    });
    assert!(result.is_some_and(|result| result.contains("42")), "{events:?}");
    let order = names(&events);
    let position = |name: &str| order.iter().position(|other| *other == name).unwrap();
    assert!(position("call") < position("result"), "{order:?}");
    assert_eq!(order.iter().filter(|name| **name == "attempt").count(), 2, "{order:?}");
}

#[tokio::test]
async fn a_running_turn_is_interrupted_within_a_second() {
    steady(STALL, async || {
        let world = World::start().await;
        let mut client = world.client();
        let session = client.create(scripted_agent("slow")).await.unwrap();
        let slow = r#"{"script": [{"text": "a b c d e f g h i j k l m n o p", "token_delay_ms": 60000}]}"#;
        let mut events = client.lifecycle.send_message(message(&session.session_id, slow)).await.unwrap().into_inner();
        while !matches!(
            events.message().await.unwrap().unwrap().event.unwrap().kind,
            Some(Kind::TextDelta(_) | Kind::StepStarted(_))
        ) {}
        let busy = client.lifecycle.send_message(message(&session.session_id, "me too")).await.unwrap_err();
        assert_eq!(busy.code(), Code::Aborted);
        let asked = Instant::now();
        let interrupt = InterruptSessionRequest { session_id: session.session_id.clone() };
        assert!(client.lifecycle.interrupt_session(interrupt).await.unwrap().into_inner().interrupted);
        let rest = read_all(events).await;
        assert_eq!(stop_reason(&rest), Some(StopReason::Interrupted), "{rest:?}");
        assert!(asked.elapsed().as_millis() < 1_000, "{:?}", asked.elapsed());
    })
    .await;
}

/// Three calls that nobody took, within milliseconds, once counted as three lost workers.
#[tokio::test]
async fn a_turn_whose_only_worker_starts_again_waits_for_it() {
    let options = Options { placement_timeout: Duration::from_mins(10), ..Options::default() };
    let world = World::on(Ground { options, ..Ground::default() }).await;
    let mut client = world.client();
    let session = client.create(scripted_agent("patient")).await.unwrap();
    // Where the worker was, every connection is refused or breaks at once.
    let starting = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut address = starting.local_addr().unwrap().to_string();
    world.reroute(|route| std::mem::swap(&mut route.workers[0].address, &mut address));
    let script = r#"{"script": [{"text": "there you are"}]}"#;
    let events = client.lifecycle.send_message(message(&session.session_id, script)).await.unwrap().into_inner();
    for _ in 0..5 {
        drop(timeout(PATIENCE, starting.accept()).await.expect("it is not tried again").unwrap());
    }
    world.reroute(|route| route.workers[0].address.clone_from(&address));
    assert_eq!(stop_reason(&read_all(events).await), Some(StopReason::EndTurn));
}

#[tokio::test]
async fn a_message_to_a_busy_session_waits_or_interrupts_as_asked() {
    let world = World::start().await;
    let mut client = world.client();
    let session = client.create(scripted_agent("busy")).await.unwrap();
    let slow = r#"{"script": [{"text": "a b c", "token_delay_ms": 60000}]}"#;
    let first = client.lifecycle.send_message(message(&session.session_id, slow)).await.unwrap().into_inner();
    let mut second = message(&session.session_id, r#"{"script": [{"text": "second"}]}"#);
    second.set_busy_policy(BusyPolicy::Enqueue);
    let second = client.lifecycle.send_message(second).await.unwrap().into_inner();
    let mut third = message(&session.session_id, r#"{"script": [{"text": "third"}]}"#);
    third.set_busy_policy(BusyPolicy::Interrupt);
    let third = client.lifecycle.send_message(third).await.unwrap().into_inner();

    assert_eq!(stop_reason(&read_all(first).await), Some(StopReason::Interrupted));
    for (answer, turn) in [("second", read_all(second).await), ("third", read_all(third).await)] {
        assert_eq!(stop_reason(&turn), Some(StopReason::EndTurn), "{turn:?}");
        assert!(format!("{turn:?}").contains(&format!("text: \"{answer}\"")), "{turn:?}");
    }
}

#[tokio::test]
async fn a_repeated_message_attaches_to_its_turn() {
    let world = World::start().await;
    let mut client = world.client();
    let session = client.create(scripted_agent("twice")).await.unwrap();
    let mut request = message(&session.session_id, r#"{"script": [{"text": "once only"}]}"#);
    request.idempotency_key = "key-1".into();
    let first = read_all(client.lifecycle.send_message(request.clone()).await.unwrap().into_inner()).await;
    let again = read_all(client.lifecycle.send_message(request.clone()).await.unwrap().into_inner()).await;
    let durable =
        |events: &[SessionEvent]| -> Vec<u64> { events.iter().map(|event| event.seq).filter(|seq| *seq > 0).collect() };
    assert_eq!(durable(&first), durable(&again));
    let mut other = request;
    other.content = message("", "another body").content;
    let refused = client.lifecycle.send_message(other).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
}

#[tokio::test]
async fn another_tenant_sees_nothing() {
    let world = World::start().await;
    let (mut client, mut stranger) = (world.client(), world.stranger());
    let session = client.create(scripted_agent("private")).await.unwrap();
    let session_id = session.session_id;
    let get = GetSessionRequest { session_id: session_id.clone() };
    assert_eq!(stranger.lifecycle.get_session(get).await.unwrap_err().code(), Code::NotFound);
    let sent = stranger.lifecycle.send_message(message(&session_id, "hello")).await;
    assert_eq!(sent.unwrap_err().code(), Code::NotFound);
    let watched = StreamEventsRequest { session_id: session_id.clone(), ..StreamEventsRequest::default() };
    assert_eq!(stranger.lifecycle.stream_events(watched).await.unwrap_err().code(), Code::NotFound);
    let ended = TerminateSessionRequest { session_id: session_id.clone(), ..TerminateSessionRequest::default() };
    assert_eq!(stranger.lifecycle.terminate_session(ended).await.unwrap_err().code(), Code::NotFound);
    let interrupted = InterruptSessionRequest { session_id };
    assert_eq!(stranger.lifecycle.interrupt_session(interrupted).await.unwrap_err().code(), Code::NotFound);
    let listed = stranger.lifecycle.list_sessions(ListSessionsRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.sessions, []);
    // And it has no worker of its own to open one on.
    let refused = stranger.create(scripted_agent("homeless")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
}

#[tokio::test]
async fn a_tenants_limit_on_sessions_holds_and_frees_up() {
    let world = World::with_limits(TenantLimits { sessions_max: 2, ..TenantLimits::default() }).await;
    let mut client = world.client();
    let first = client.create(scripted_agent("one")).await.unwrap();
    client.create(scripted_agent("two")).await.unwrap();
    let refused = client.create(scripted_agent("three")).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    let ended = TerminateSessionRequest { session_id: first.session_id, ..TerminateSessionRequest::default() };
    client.lifecycle.terminate_session(ended).await.unwrap();
    client.create(scripted_agent("three")).await.unwrap();
}

#[tokio::test]
async fn shutdown_waits_for_the_turn_at_hand() {
    let world = World::start().await;
    let mut client = world.client();
    let session = client.create(scripted_agent("last")).await.unwrap();
    let script = r#"{"script": [{"text": "a b c d e", "token_delay_ms": 30}]}"#;
    let sent = client.lifecycle.send_message(message(&session.session_id, script)).await.unwrap().into_inner();
    drop(sent); // The caller leaves, the turn goes on.
    let rested = world.wait_for(&session.session_id, |session| session.state == SessionState::Idle).await;
    assert_eq!(rested.last_stop_reason, StopReason::EndTurn);
    world.tasks.stopping().cancel();
}

#[tokio::test]
async fn an_idle_stream_does_not_hold_up_the_shutdown() {
    let world = World::start().await;
    let mut client = world.client();
    let session = client.create(scripted_agent("idle")).await.unwrap();
    let request = StreamEventsRequest { session_id: session.session_id, after_seq: 2, durable_only: false };
    let mut events = client.lifecycle.stream_events(request).await.unwrap().into_inner();
    world.tasks.stopping().cancel();
    let cut = events.message().await.unwrap_err();
    assert_eq!(cut.code(), Code::Unavailable, "the caller is told to resume elsewhere: {cut:?}");
}
