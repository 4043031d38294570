//! A worker that tells, and reads nothing of what it is told: neither that it is to stop, nor that what it told is stored.

use std::sync::Arc;
use std::time::Duration;

use croft_e2e::client::{Client, message, scripted_agent};
use croft_e2e::steady::steady;
use croft_proto::v1::execute_step_response::Message as FromWorker;
use croft_proto::v1::runtime_service_server::RuntimeServiceServer;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    AgentLimits, AgentSpec, ExecuteStepRequest, ExecuteStepResponse, InterruptSessionRequest, SendMessageResponse,
    SessionEvent, StepEvent, StepStarted, StopReason,
};
use futures::{StreamExt as _, stream};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Status, Streaming};

use crate::played::{Played, Said, Steps};
use crate::world::{PATIENCE, STALL, World, read_all, stop_reason};

/// What it tells in a step, each to be answered.
const TOLD: u64 = 300;
/// Answers that are on their way to a worker at a time.
const UNDER_WAY_MAX: usize = 64;
/// Bytes of what it is told that lie unread: less than the first message has.
const WINDOW: u32 = 64;

/// Adds a permit for each step.
#[derive(Clone)]
struct Deaf(Arc<Semaphore>);

#[tonic::async_trait]
impl Steps for Deaf {
    async fn step(&self, request: Request<Streaming<ExecuteStepRequest>>) -> Result<Said, Status> {
        self.0.add_permits(1);
        let told = |event_index| {
            let event = SessionEvent { kind: Some(Kind::StepStarted(StepStarted::default())), ..Default::default() };
            let message = Some(FromWorker::Event(StepEvent { event_index, event: Some(event) }));
            Ok(ExecuteStepResponse { message })
        };
        let rest = stream::once(async move {
            // It is there for as long as the step is.
            let _unread = request;
            std::future::pending().await
        });
        Ok(stream::iter((1..=TOLD).map(told)).chain(rest).boxed())
    }
}

/// A turn at such a worker.
struct Scene {
    _world: World,
    client: Client,
    session_id: String,
    events: Streaming<SendMessageResponse>,
    /// That have begun.
    steps: Arc<Semaphore>,
}

impl Scene {
    async fn of(limits: AgentLimits) -> Self {
        let (world, steps) = (World::start().await, Arc::new(Semaphore::new(0)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        world.route_stranger_to(&listener.local_addr().unwrap().to_string());
        let routes = Server::builder()
            .initial_stream_window_size(WINDOW)
            .add_service(RuntimeServiceServer::new(Played(Deaf(Arc::clone(&steps)))));
        let stopping = world.tasks.stopping().cancelled_owned();
        drop(world.tasks.spawn("deaf", routes.serve_with_incoming_shutdown(TcpIncoming::from(listener), stopping)));
        let mut client = world.stranger();
        let agent = AgentSpec { limits: Some(limits), ..scripted_agent("unheard") };
        let session_id = client.create(agent).await.unwrap().session_id;
        let events = client.lifecycle.send_message(message(&session_id, "hello?")).await.unwrap().into_inner();
        Self { _world: world, client, session_id, events, steps }
    }

    /// Until so much of what the worker told is stored that the answers find no room any more.
    async fn told(&mut self) {
        let told = async {
            for _ in 0..=UNDER_WAY_MAX {
                while !matches!(self.next().await, Some(Kind::StepStarted(_))) {}
            }
        };
        timeout(PATIENCE, told).await.expect("what was told is not stored");
    }

    async fn next(&mut self) -> Option<Kind> {
        self.events.message().await.unwrap().unwrap().event.unwrap().kind
    }

    async fn interrupt(&mut self) {
        let interrupt = InterruptSessionRequest { session_id: self.session_id.clone() };
        assert!(self.client.lifecycle.interrupt_session(interrupt).await.unwrap().into_inner().interrupted);
    }

    async fn end(self) -> Option<StopReason> {
        let events = timeout(PATIENCE, read_all(self.events)).await.expect("the turn does not end");
        stop_reason(&events)
    }
}

/// The front waited for the worker to read, and heard nothing meanwhile.
#[tokio::test]
async fn an_interrupt_ends_the_turn_of_a_worker_that_does_not_read() {
    steady(STALL, async || {
        let mut scene = Scene::of(AgentLimits::default()).await;
        scene.told().await;
        let asked = Instant::now();
        scene.interrupt().await;
        assert_eq!(scene.end().await, Some(StopReason::Interrupted));
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    })
    .await;
}

#[tokio::test]
async fn its_deadline_ends_the_turn_of_a_worker_that_does_not_read() {
    steady(STALL, async || {
        let mut scene = Scene::of(AgentLimits { turn_timeout_ms: 1, ..AgentLimits::default() }).await;
        scene.told().await;
        let told = Instant::now();
        let steps = Arc::clone(&scene.steps);
        assert_eq!(scene.end().await, Some(StopReason::TimeLimit));
        assert_eq!(steps.available_permits(), 1, "it was not lost before");
        // The worker keeps its agent's limit itself, and has two seconds more for that.
        assert!(told.elapsed() < Duration::from_secs(4), "{:?}", told.elapsed());
    })
    .await;
}

/// The turn was held for as long as the worker was there.
#[tokio::test]
async fn a_worker_that_does_not_read_is_lost_and_the_turn_goes_on() {
    let mut scene = Scene::of(AgentLimits::default()).await;
    let another = timeout(PATIENCE, scene.steps.acquire_many(2)).await.expect("it is waited for");
    another.unwrap().forget();
    scene.interrupt().await;
    assert_eq!(scene.end().await, Some(StopReason::Interrupted));
}
