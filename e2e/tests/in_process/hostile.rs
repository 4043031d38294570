//! A worker in the hands of somebody who means harm: it may spoil its own tenant's turns, and nothing else.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use croft_e2e::client::{message, scripted_agent};
use croft_e2e::steady::steady;
use croft_front::Error;
use croft_front::store::Stores;
use croft_proto::v1::execute_step_response::Message as FromWorker;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    AgentLimits, AgentMessage, AgentSpec, ApprovalResolved, ContentBlock, ExecuteStepRequest, ExecuteStepResponse,
    GrantRequest, ModelAttempt, SessionEvent, SessionTerminated, StepEvent, StepStarted, StopReason, SubAgentCall,
    TenantLimits, UserMessage,
};
use futures::{StreamExt as _, stream};
use tonic::{Request, Status, Streaming};

use crate::doubles::{Call, Hook, Made, hooked};
use crate::played::{Played, Said, Steps};
use crate::world::{PATIENCE, STALL, World, read_all, stop_reason};

const GRANTS: u32 = 100_000;
/// Grants of one turn at most, for each of the workers that it may lose.
const RESERVED_MAX: usize = 3 * 64;

/// Says in each step what this makes.
#[derive(Clone)]
struct Hostile(fn() -> Vec<FromWorker>);

#[tonic::async_trait]
impl Steps for Hostile {
    async fn step(&self, mut request: Request<Streaming<ExecuteStepRequest>>) -> Result<Said, Status> {
        request.get_mut().message().await?;
        let said = (self.0)().into_iter().map(|message| Ok(ExecuteStepResponse { message: Some(message) }));
        // Then it listens, and says nothing.
        let rest = stream::unfold(request, |mut request| async move {
            while let Ok(Some(_)) = request.get_mut().message().await {}
            None::<(Result<ExecuteStepResponse, Status>, _)>
        });
        Ok(stream::iter(said).chain(rest).boxed())
    }
}

/// A world whose second tenant has such a worker.
async fn world(says: fn() -> Vec<FromWorker>) -> World {
    world_over(Stores::memory(), says).await
}

async fn world_over(stores: Stores, says: fn() -> Vec<FromWorker>) -> World {
    let world = World::over(stores, TenantLimits::default()).await;
    let address = Played(Hostile(says)).serve(&world, "hostile").await;
    world.route_stranger_to(&address);
    world
}

fn told(event_index: u64, kind: Kind) -> FromWorker {
    let event = SessionEvent { kind: Some(kind), ..SessionEvent::default() };
    FromWorker::Event(StepEvent { event_index, event: Some(event) })
}

#[tokio::test]
async fn a_worker_that_asks_for_grants_without_end_is_broken_off_and_others_are_not_held_up() {
    let world = world(|| {
        let ask = |number: u32| GrantRequest {
            request_id: number.to_string(),
            model: "scripted-1".into(),
            output_tokens_max: 10,
            ..GrantRequest::default()
        };
        (0..GRANTS).map(|number| FromWorker::GrantRequest(ask(number))).collect()
    })
    .await;
    let (mut stranger, mut client) = (world.stranger(), world.client());
    let theirs = stranger.create(scripted_agent("theirs")).await.unwrap().session_id;
    let hostile = stranger.lifecycle.send_message(message(&theirs, "hello")).await.unwrap();
    let ours = client.create(scripted_agent("ours")).await.unwrap().session_id;
    let script = r#"{"script": [{"text": "done"}]}"#;
    let sent = client.lifecycle.send_message(message(&ours, script)).await.unwrap();
    let turn = tokio::time::timeout(Duration::from_mins(1), read_all(sent.into_inner())).await;
    assert_eq!(stop_reason(&turn.expect("held up")), Some(StopReason::EndTurn));
    let events = tokio::time::timeout(PATIENCE, read_all(hostile.into_inner())).await.expect("no end");
    assert_eq!(stop_reason(&events), Some(StopReason::WorkerLost), "{events:?}");
    let attempts = events.iter().filter(|event| matches!(event.kind, Some(Kind::ModelAttempt(_)))).count();
    assert!(attempts <= RESERVED_MAX, "{attempts} grants were given");
}

#[tokio::test]
async fn what_is_not_a_workers_to_tell_is_neither_stored_nor_shown() {
    let says: [fn() -> Vec<FromWorker>; 4] = [
        || vec![told(1, Kind::SessionTerminated(SessionTerminated { reason: "mine".into() }))],
        || {
            let decision = ApprovalResolved { resolver: "user/root".into(), ..ApprovalResolved::default() };
            vec![told(1, Kind::ApprovalResolved(decision))]
        },
        || vec![told(1, Kind::UserMessage(UserMessage { sender: "user/root".into(), ..UserMessage::default() }))],
        || vec![told(0, Kind::SessionTerminated(SessionTerminated { reason: "mine".into() }))],
    ];
    for says in says {
        let world = world(says).await;
        let mut stranger = world.stranger();
        let session_id = stranger.create(scripted_agent("theirs")).await.unwrap().session_id;
        let sent = stranger.lifecycle.send_message(message(&session_id, "hello")).await.unwrap();
        let events = tokio::time::timeout(PATIENCE, read_all(sent.into_inner())).await.expect("no end");
        assert_eq!(stop_reason(&events), Some(StopReason::WorkerLost), "{events:?}");
        assert_eq!(world.core.metrics.workers_lost.get(), 3, "it says so each time");
        for event in events {
            match event.kind {
                Some(Kind::SessionTerminated(_)) => panic!("a worker ends no session"),
                Some(Kind::ApprovalResolved(_)) => panic!("a worker answers no question"),
                Some(Kind::UserMessage(message)) => assert_ne!(message.sender, "user/root"),
                _ => {}
            }
        }
    }
}

/// Nothing of what it says for a single call may become more than the machine has memory, or than an index takes.
#[tokio::test]
async fn what_is_more_than_a_worker_may_say_at_a_time_is_never_stored() {
    let says: [fn() -> Vec<FromWorker>; 4] = [
        || {
            let content = vec![ContentBlock::default(); 500_000];
            vec![told(1, Kind::AgentMessage(AgentMessage { content, ..AgentMessage::default() }))]
        },
        || vec![call("a\0b")],
        || vec![call(&"a".repeat(256))],
        || vec![call("")],
    ];
    for says in says {
        let world = world(says).await;
        let mut stranger = world.stranger();
        let session_id = stranger.create(scripted_agent("theirs")).await.unwrap().session_id;
        let sent = stranger.lifecycle.send_message(message(&session_id, "hello")).await.unwrap();
        let events = tokio::time::timeout(PATIENCE, read_all(sent.into_inner())).await.expect("no end");
        assert_eq!(stop_reason(&events), Some(StopReason::WorkerLost), "{events:?}");
        assert!(!events.iter().any(|event| matches!(event.kind, Some(Kind::AgentMessage(_)))), "{events:?}");
    }
}

fn call(tool_call_id: &str) -> FromWorker {
    FromWorker::SubAgentCall(SubAgentCall { tool_call_id: tool_call_id.to_owned(), ..SubAgentCall::default() })
}

#[tokio::test]
async fn a_turn_without_end_ends_at_its_bound_with_an_error_of_its_own() {
    const TOLD: u64 = 100_000;
    let world = world(|| {
        let step = |index| told(index, Kind::StepStarted(StepStarted::default()));
        (1..=TOLD).map(step).collect()
    })
    .await;
    let mut stranger = world.stranger();
    let limits = Some(AgentLimits { model_calls_max: 2, tool_calls_max: 3, ..AgentLimits::default() });
    let agent = AgentSpec { limits, ..scripted_agent("theirs") };
    let session_id = stranger.create(agent).await.unwrap().session_id;
    let sent = stranger.lifecycle.send_message(message(&session_id, "hello")).await.unwrap();
    let events = tokio::time::timeout(PATIENCE, read_all(sent.into_inner())).await.expect("no end");
    let error = events.iter().find_map(|event| match &event.kind {
        Some(Kind::Error(error)) => Some(error.reason.as_str()),
        _ => None,
    });
    assert_eq!((error, stop_reason(&events)), (Some("TURN_TOO_LARGE"), Some(StopReason::Error)));
    let steps = events.iter().filter(|event| matches!(event.kind, Some(Kind::StepStarted(_)))).count();
    assert_eq!(steps, 5 * 16 + 1_000, "all that fits is kept");
}

/// How many of an attempt and its answer were stored at once, each time.
#[derive(Default)]
struct Together(Mutex<Vec<usize>>);

#[async_trait]
impl Hook for Together {
    async fn around(&self, call: Call<'_>, made: Made<'_>) -> Result<(), Error> {
        if let Call::Append(append) = call {
            let kinds = append.events.iter().map(|event| &event.kind);
            let ours = kinds.filter(|kind| matches!(kind, Kind::ModelAttempt(_) | Kind::AgentMessage(_))).count();
            self.0.lock().unwrap().extend((ours > 0).then_some(ours));
        }
        made.await
    }
}

/// The attempt was together by itself, and would have been paid for without its answer had the front been lost then.
#[tokio::test]
async fn an_attempt_at_the_bound_of_what_is_stored_together_waits_for_its_answer() {
    steady(STALL, async || {
        let (mut stores, together) = (Stores::memory(), Arc::new(Together::default()));
        stores.events = hooked(stores.events, Arc::clone(&together));
        let world = world_over(stores, || {
            // As many bytes as are taken together.
            let attempt = ModelAttempt { response_id: "a".repeat(8 << 20), ..ModelAttempt::default() };
            vec![told(1, Kind::ModelAttempt(attempt)), told(2, Kind::AgentMessage(AgentMessage::default()))]
        })
        .await;
        let mut stranger = world.stranger();
        let session_id = stranger.create(scripted_agent("theirs")).await.unwrap().session_id;
        let _sent = stranger.lifecycle.send_message(message(&session_id, "hello")).await.unwrap();
        let both = async {
            while together.0.lock().unwrap().iter().sum::<usize>() < 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, both).await.expect("both are together");
        assert_eq!(*together.0.lock().unwrap(), [2]);
    })
    .await;
}
