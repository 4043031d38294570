//! What a session's calls use when the session ends in the midst of them is paid for, although its log takes nothing any more.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use croft_e2e::client::{message, scripted_agent};
use croft_e2e::steady::steady;
use croft_front::Error;
use croft_front::core::Options;
use croft_front::events::log::{Append, Authority, NewEvent};
use croft_front::session::Session;
use croft_front::store::Stores;
use croft_front::turn::store::{Begin, Begun};
use croft_proto::id::TurnId;
use croft_proto::v1::content_block::Block;
use croft_proto::v1::execute_step_request::Message as FromFront;
use croft_proto::v1::execute_step_response::Message as ToFront;
use croft_proto::v1::runtime_service_client::RuntimeServiceClient;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    Budget, BudgetAction, BudgetPeriod, BudgetScope, BusyPolicy, ContentBlock, ExecuteStepRequest, Grant,
    InterruptSessionRequest, ModelAttempt, RuntimeServiceTerminateSessionRequest,
    RuntimeServiceTerminateSessionResponse, SendMessageRequest, SendMessageResponse, SessionRunning, SessionState,
    SessionTerminated, SetBudgetRequest, StepStart, StopReason, TenantRoute, TerminateSessionRequest, Text, TokenUsage,
    UserMessage,
};
use croft_worker::tools::Builtins;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming};

use crate::doubles::{Call, Hook, Made, Outage, hooked};
use crate::played::{Played, Said, Steps};
use crate::world::{Ground, PATIENCE, STALL, World, of_acme, read_all, worker};

const SLOW: &str = r#"{"script": [{"text": "a b c d e f g h i j k l m n o p", "token_delay_ms": 100}]}"#;
const ENDLESS: &str = r#"{"script": [{"text": "word "}, {"delay_ms": 600000}]}"#;

/// A session whose model has begun to talk.
async fn talking(world: &World, script: &str) -> (String, Streaming<SendMessageResponse>) {
    let mut client = world.client();
    let session = client.create(scripted_agent("talker")).await.unwrap();
    let mut events = client.lifecycle.send_message(message(&session.session_id, script)).await.unwrap().into_inner();
    while !matches!(events.message().await.unwrap().unwrap().event.unwrap().kind, Some(Kind::TextDelta(_))) {}
    (session.session_id, events)
}

/// Ends the session without a word to the front that runs its turn, as another does while the relay is away.
async fn end_unheard(world: &World, session_id: &str) {
    let kind = Kind::SessionTerminated(SessionTerminated { reason: "enough".into() });
    let append = Append::of(world.tenant(), session_id.parse().unwrap(), Authority::Fence, vec![NewEvent::now(kind)]);
    world.core.stores.events.append(append).await.unwrap();
}

/// The session once its call is paid for.
async fn paid(world: &World, session_id: &str) -> Session {
    let session = world.wait_for(session_id, |session| session.usage.attempts > 0).await;
    assert_eq!((session.state, session.usage.attempts), (SessionState::Terminated, 1));
    let tokens = session.usage.tokens.unwrap();
    assert!(tokens.input_uncached_tokens > 0 && tokens.output_tokens > 0, "{tokens:?}");
    assert!(session.usage.cost_nano_usd > 0);
    let rows = world.core.stores.usage.list(world.tenant(), Some(session.id), None, None, 10).await.unwrap();
    assert_eq!(rows.len(), 1, "{rows:?}");
    let log = world.log(session_id, 0).await;
    assert!(matches!(log.last().unwrap().kind, Some(Kind::SessionTerminated(_))), "its end is the end");
    let said = log.into_iter().find_map(|event| match event.kind {
        Some(Kind::UserMessage(said)) => Some(said.sender),
        _ => None,
    });
    assert_eq!(rows[0].sender, said.unwrap_or_default(), "it is charged to whom the turn ran for");
    session
}

#[tokio::test]
async fn a_call_that_is_stopped_by_the_end_is_paid_for_as_its_worker_tells() {
    let world = World::start().await;
    let (session_id, _events) = talking(&world, ENDLESS).await;
    let end = TerminateSessionRequest { session_id: session_id.clone(), reason: "enough".into() };
    world.client().lifecycle.terminate_session(end).await.unwrap();
    paid(&world, &session_id).await;
}

#[tokio::test]
async fn a_call_that_ends_behind_an_end_that_nobody_heard_of_is_paid_for() {
    let world = World::start().await;
    let (session_id, _events) = talking(&world, SLOW).await;
    end_unheard(&world, &session_id).await;
    paid(&world, &session_id).await;
}

#[tokio::test]
async fn a_call_whose_end_nobody_waits_for_is_paid_for_as_far_as_it_was_shown() {
    // No renewal tells of the end.
    let options = Options { lease_ttl: Duration::from_mins(10), ..Options::default() };
    let world = World::on(Ground { options, ..Ground::default() }).await;
    let mut client = world.client();
    let budget = |limit_tokens| SetBudgetRequest {
        budget: Some(Budget {
            scope: BudgetScope::Agent.into(),
            subject: "talker".into(),
            period: BudgetPeriod::Life.into(),
            limit_tokens: Some(limit_tokens),
            action: BudgetAction::Block.into(),
            ..Budget::default()
        }),
    };
    client.budgets.set_budget(budget(1_000_000)).await.unwrap();
    let (session_id, _events) = talking(&world, ENDLESS).await;
    end_unheard(&world, &session_id).await;
    // That the call is to be cut is an event, which shows that the session has ended.
    client.budgets.set_budget(budget(1)).await.unwrap();
    let session = paid(&world, &session_id).await;
    let rows = world.core.stores.usage.list(world.tenant(), Some(session.id), None, None, 10).await.unwrap();
    assert_eq!((rows[0].finish_reason.as_str(), rows[0].usage_estimated), ("lost", true));
}

/// A front that makes a call at the worker in a turn under a lease of this epoch, and is lost in the midst of it.
async fn lost_in_mid_call(world: &World, session_id: &str, turn: TurnId, epoch: u64) {
    let mut client = RuntimeServiceClient::connect(format!("http://{}", world.worker())).await.unwrap();
    let (requests, receiver) = mpsc::channel(8);
    let text = ContentBlock { block: Some(Block::Text(Text { text: ENDLESS.into() })) };
    let start = StepStart {
        session_id: session_id.to_owned(),
        turn_id: turn.to_string(),
        tenant: "acme".into(),
        epoch,
        input: vec![text],
        ..StepStart::default()
    };
    let send = |message| requests.send(ExecuteStepRequest { message: Some(message) });
    send(FromFront::Start(start)).await.unwrap();
    let mut heard = client.execute_step(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    loop {
        match heard.message().await.unwrap().unwrap().message.unwrap() {
            ToFront::GrantRequest(asked) => {
                let (provider, model) = ("scripted".into(), asked.model);
                let (request_id, grant_id) = (asked.request_id, TurnId::generate().to_string());
                let grant = Grant { request_id, grant_id, provider, model, ..Grant::default() };
                send(FromFront::Grant(grant)).await.unwrap();
            }
            ToFront::Event(told) if told.event_index == 0 => break,
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_call_whose_front_is_lost_is_paid_for_once_another_ends_the_session() {
    let world = World::start().await;
    let mut client = world.client();
    let session_id = client.create(scripted_agent("orphan")).await.unwrap().session_id;
    lost_in_mid_call(&world, &session_id, TurnId::generate(), 1).await;
    let end = TerminateSessionRequest { session_id: session_id.clone(), reason: "enough".into() };
    client.lifecycle.terminate_session(end).await.unwrap();
    paid(&world, &session_id).await;
}

/// Begins a turn as a front that is lost then. The epoch of its lease.
async fn begun_elsewhere(world: &World, session_id: &str, turn: TurnId) -> u64 {
    let content = message(session_id, r#"{"script": [{"text": "there"}]}"#).content;
    let said = Kind::UserMessage(UserMessage { content, sender: "somebody".into() });
    let events = [said, Kind::SessionRunning(SessionRunning {})].map(|kind| NewEvent::now(kind).of_turn(turn));
    let message = Append::of(world.tenant(), session_id.parse().unwrap(), Authority::Caller, events.into());
    let begin = Begin { message, holder: "a lost front".into(), ttl: Duration::from_hours(1) };
    let Begun::New(opened) = world.core.stores.turns.begin(begin).await.unwrap() else { panic!("it is free") };
    opened.epoch
}

/// The first worker lived and knew of its call, and nobody asked it.
#[tokio::test]
async fn a_call_whose_front_is_lost_is_paid_for_though_another_worker_goes_on_with_the_turn() {
    let world = World::start().await;
    let session_id = world.client().create(scripted_agent("orphan")).await.unwrap().session_id;
    let (tenant, session, turn) = (world.tenant(), session_id.parse().unwrap(), TurnId::generate());
    let epoch = begun_elsewhere(&world, &session_id, turn).await;
    lost_in_mid_call(&world, &session_id, turn, epoch).await;

    let other = worker(of_acme("worker-1"), Builtins::default(), &world.tasks).await;
    world.reroute(|route| {
        route.workers[0].ready = false;
        route.workers.push(other);
    });
    world.core.stores.leases.abandon(tenant, session, epoch).await.unwrap();
    let session = world.wait_for(&session_id, |session| session.state == SessionState::Idle).await;
    assert_eq!((session.last_stop_reason, &*session.worker), (StopReason::EndTurn, "worker-1"));
    let rows = world.core.stores.usage.list(tenant, Some(session.id), None, None, 10).await.unwrap();
    assert_eq!((rows.len(), session.usage.attempts), (2, 2), "{rows:?}");
    for row in rows {
        let tokens = row.tokens.unwrap();
        assert!(tokens.input_uncached_tokens > 0 && tokens.output_tokens > 0, "{row:?}");
        assert_eq!((&*row.sender, row.finish_reason == "lost"), ("somebody", false), "its worker tells: {row:?}");
    }
}

/// A worker that takes no step, and knows of an attempt in the one that a lost front left there.
struct Left {
    /// With the epoch that it is asked under.
    asked: mpsc::Sender<u64>,
    /// Those that it answers.
    answers: Arc<Semaphore>,
}

#[async_trait]
impl Steps for Left {
    async fn step(&self, _: Request<Streaming<ExecuteStepRequest>>) -> Result<Said, Status> {
        Err(Status::unavailable("it is about to stop"))
    }

    async fn forget(&self, asked: RuntimeServiceTerminateSessionRequest) -> RuntimeServiceTerminateSessionResponse {
        self.asked.send(asked.epoch).await.unwrap();
        self.answers.acquire().await.unwrap().forget();
        let usage = TokenUsage { input_uncached_tokens: 7, output_tokens: 5, ..TokenUsage::default() };
        let attempt = ModelAttempt {
            attempt_id: "left".into(),
            grant_id: "left".into(),
            usage: Some(usage),
            finish_reason: "cancelled".into(),
            ..ModelAttempt::default()
        };
        RuntimeServiceTerminateSessionResponse { found: true, untold_attempts: vec![attempt] }
    }
}

/// A turn whose front was lost, at a worker of that kind, with the asking of it.
struct LeftTurn {
    session_id: String,
    /// Of the lease that was lost.
    epoch: u64,
    asked: mpsc::Receiver<u64>,
    answers: Arc<Semaphore>,
}

impl LeftTurn {
    /// Another front goes on with it, among workers as `change` leaves them.
    async fn taken_over(world: &World, change: impl FnOnce(&mut TenantRoute)) -> Self {
        Self::taken_over_from(world, |left| left, change).await
    }

    /// The same, of a worker that is made of such a one.
    async fn taken_over_from<S: Steps>(
        world: &World,
        made: impl FnOnce(Left) -> S,
        change: impl FnOnce(&mut TenantRoute),
    ) -> Self {
        let session_id = world.client().create(scripted_agent("orphan")).await.unwrap().session_id;
        let epoch = begun_elsewhere(world, &session_id, TurnId::generate()).await;
        let ((tells, asked), answers) = (mpsc::channel(8), Arc::new(Semaphore::new(0)));
        let left = made(Left { asked: tells, answers: Arc::clone(&answers) });
        let left = Played(left).serve(world, "left").await;
        world.reroute(|route| {
            route.workers[0].address = left;
            change(route);
        });
        world.core.stores.leases.abandon(world.tenant(), session_id.parse().unwrap(), epoch).await.unwrap();
        Self { session_id, epoch, asked, answers }
    }

    /// Waits until the worker is asked what it knows, under a newer lease.
    async fn asked(&mut self) {
        let asked = timeout(PATIENCE, self.asked.recv()).await.expect("nobody asks the worker").unwrap();
        assert!(asked > self.epoch, "{asked} is not newer than {}", self.epoch);
    }

    /// The session once its turn is over and so many calls are paid for, one of them as the worker tells.
    async fn over(&self, world: &World, attempts: i64) -> Session {
        let is_over = |session: &Session| session.state == SessionState::Idle && session.usage.attempts == attempts;
        let session = world.wait_for(&self.session_id, is_over).await;
        let rows = world.core.stores.usage.list(world.tenant(), Some(session.id), None, None, 10).await.unwrap();
        let left = rows.iter().find(|row| row.attempt_id == "left").unwrap();
        assert_eq!((&*left.sender, left.tokens.unwrap().output_tokens), ("somebody", 5), "{rows:?}");
        session
    }
}

/// It was passed over once it had been tried.
#[tokio::test]
async fn a_worker_that_refuses_the_turn_it_was_left_at_is_asked_what_it_knows_all_the_same() {
    let options = Options { placement_timeout: Duration::from_millis(300), ..Options::default() };
    for is_alone in [false, true] {
        let world = World::on(Ground { options: options.clone(), ..Ground::default() }).await;
        let other = worker(of_acme("worker-1"), Builtins::default(), &world.tasks).await;
        let mut turn = LeftTurn::taken_over(&world, |route| {
            if !is_alone {
                route.workers.push(other);
            }
        })
        .await;
        turn.answers.add_permits(1);
        turn.asked().await;
        let session = turn.over(&world, if is_alone { 1 } else { 2 }).await;
        let expected = if is_alone { StopReason::WorkerLost } else { StopReason::EndTurn };
        assert_eq!(session.last_stop_reason, expected);
        assert!(turn.asked.try_recv().is_err(), "it is asked once");
    }
}

/// What it told behind the two seconds was in no ledger, and who interrupted waited for them.
#[tokio::test]
async fn a_worker_that_tells_late_what_it_knows_is_not_waited_for_and_is_paid_for() {
    for is_interrupted in [true, false] {
        steady(STALL, async || {
            let world = World::start().await;
            let other = worker(of_acme("worker-1"), Builtins::default(), &world.tasks).await;
            let mut turn = LeftTurn::taken_over(&world, |route| {
                route.workers[0].ready = false;
                route.workers.push(other);
            })
            .await;
            turn.asked().await;
            let asked_at = Instant::now();
            if is_interrupted {
                let interrupt = InterruptSessionRequest { session_id: turn.session_id.clone() };
                let told = world.client().lifecycle.interrupt_session(interrupt).await.unwrap().into_inner();
                assert!(told.interrupted);
            }
            let session = world.wait_for(&turn.session_id, |session| session.state == SessionState::Idle).await;
            let expected = if is_interrupted { StopReason::Interrupted } else { StopReason::EndTurn };
            assert_eq!(session.last_stop_reason, expected);
            assert!(!is_interrupted || asked_at.elapsed() < Duration::from_secs(1), "{:?}", asked_at.elapsed());
            let heard = session.usage.attempts;
            assert_eq!(heard, i64::from(!is_interrupted));
            turn.answers.add_permits(1);
            turn.over(&world, heard + 1).await;
        })
        .await;
    }
}

/// A worker that answers no step, and knows of an attempt in the one that a lost front left there.
struct Hangs {
    left: Left,
    /// Steps that were asked of it, and `None` for the answer to what it knows.
    told: mpsc::UnboundedSender<Option<String>>,
}

#[async_trait]
impl Steps for Hangs {
    async fn step(&self, request: Request<Streaming<ExecuteStepRequest>>) -> Result<Said, Status> {
        if let Some(FromFront::Start(start)) = request.into_inner().message().await.unwrap().unwrap().message {
            self.told.send(Some(start.turn_id)).unwrap();
        }
        std::future::pending().await
    }

    async fn forget(&self, asked: RuntimeServiceTerminateSessionRequest) -> RuntimeServiceTerminateSessionResponse {
        let known = self.left.forget(asked).await;
        self.told.send(None).unwrap();
        known
    }
}

/// Nobody asked the worker that was stopped before it could tell; and the step of the next turn has it forget what it has not told.
#[tokio::test]
async fn a_worker_that_is_stopped_before_it_answers_the_turn_it_was_left_at_is_asked_before_the_next_turn() {
    steady(STALL, async || {
        let world = World::start().await;
        let (tells, mut told) = mpsc::unbounded_channel();
        let mut turn = LeftTurn::taken_over_from(&world, |left| Hangs { left, told: tells }, |_| {}).await;
        let mut next = async || timeout(PATIENCE, told.recv()).await.expect("nothing comes to it").unwrap();
        let first = next().await.expect("it is to go on with the turn");
        let mut client = world.client();
        let message = SendMessageRequest {
            busy_policy: BusyPolicy::Interrupt.into(),
            ..message(&turn.session_id, r#"{"script": [{"text": "there"}]}"#)
        };
        let _events = client.lifecycle.send_message(message).await.unwrap();
        turn.asked().await;
        // What waits for its answer would come while it is held back.
        assert!(timeout(Duration::from_millis(300), told.recv()).await.is_err(), "a step comes before it has told");
        turn.answers.add_permits(1);
        let mut next = async || timeout(PATIENCE, told.recv()).await.expect("nothing comes to it").unwrap();
        assert_eq!(next().await, None);
        assert_ne!(next().await.expect("the next turn is to run there"), first);
        let is_paid = |session: &Session| session.usage.attempts == 1;
        let session = world.wait_for(&turn.session_id, is_paid).await;
        let rows = world.core.stores.usage.list(world.tenant(), Some(session.id), None, None, 10).await.unwrap();
        assert_eq!((&*rows[0].attempt_id, &*rows[0].sender), ("left", "somebody"));
        assert_eq!(world.core.metrics.unpriced_attempts.get(), 1, "its model has no price");
    })
    .await;
}

/// The lost front's call was in no ledger.
#[tokio::test]
async fn a_call_whose_front_is_lost_is_paid_for_though_its_turn_is_interrupted_as_it_is_taken_over() {
    let world = World::start().await;
    let mut client = world.client();
    let session_id = client.create(scripted_agent("orphan")).await.unwrap().session_id;
    let (tenant, session, turn) = (world.tenant(), session_id.parse().unwrap(), TurnId::generate());
    let epoch = begun_elsewhere(&world, &session_id, turn).await;
    lost_in_mid_call(&world, &session_id, turn, epoch).await;
    world.core.stores.leases.abandon(tenant, session, epoch).await.unwrap();
    let message = SendMessageRequest {
        busy_policy: BusyPolicy::Interrupt.into(),
        ..message(&session_id, r#"{"script": [{"text": "there"}]}"#)
    };
    let sent = client.lifecycle.send_message(message).await;
    // Whoever looks for turns that are nobody's may have been first.
    let events = timeout(PATIENCE, read_all(sent.unwrap().into_inner())).await.expect("no end");
    assert!(matches!(events.last().unwrap().kind, Some(Kind::SessionIdle(_))), "{events:?}");
    let is_paid = |session: &Session| session.usage.attempts >= 2 && session.state == SessionState::Idle;
    let session = world.wait_for(&session_id, is_paid).await;
    let rows = world.core.stores.usage.list(tenant, Some(session.id), None, None, 10).await.unwrap();
    let orphans = rows.iter().filter(|row| row.sender == "somebody" && row.tokens.unwrap().output_tokens > 0);
    let reasons: Vec<_> = orphans.map(|row| &*row.finish_reason).collect();
    assert!(!reasons.is_empty() && !reasons.contains(&"lost"), "its worker tells: {rows:?}");
}

/// Stores the first end and tells nobody; and is away for some reads behind that.
struct Mute {
    ends: Outage,
    reads: Outage,
}

#[async_trait]
impl Hook for Mute {
    async fn around(&self, call: Call<'_>, made: Made<'_>) -> Result<(), Error> {
        if call.appends(|kind| matches!(kind, Kind::SessionTerminated(_))) {
            let made = made.await;
            return self.ends.meet().and(made);
        }
        if matches!(call, Call::Read) && self.ends.is_over() {
            self.reads.meet()?;
        }
        made.await
    }
}

/// Whoever asked for the end, and once more, changed nothing: the turn ran on, and its provider with it.
#[tokio::test]
async fn an_end_of_which_the_store_does_not_tell_ends_the_turn_all_the_same() {
    for reads in [0, 2] {
        let mut stores = Stores::memory();
        stores.events = hooked(stores.events, Mute { ends: Outage::of(1), reads: Outage::of(reads) });
        // No renewal tells of it.
        let options = Options { lease_ttl: Duration::from_mins(10), ..Options::default() };
        let world = World::on(Ground { stores, options, ..Ground::default() }).await;
        let (session_id, events) = talking(&world, ENDLESS).await;
        let end = TerminateSessionRequest { session_id: session_id.clone(), reason: "enough".into() };
        let mut client = world.client();
        match client.lifecycle.terminate_session(end.clone()).await {
            Ok(_) => assert_eq!(reads, 0),
            Err(status) => {
                assert_eq!((status.code(), reads), (Code::Unavailable, 2), "{status:?}");
                client.lifecycle.terminate_session(end).await.unwrap();
            }
        }
        let seen = timeout(PATIENCE, read_all(events)).await.expect("nobody tells those who watch");
        assert!(matches!(seen.last().unwrap().kind, Some(Kind::SessionTerminated(_))), "{seen:?}");
        paid(&world, &session_id).await;
        world.wait_for(&session_id, |_| world.core.metrics.turns_running.get() == 0).await;
    }
}

/// A renewal told that the lease was lost, and the call that ran was dropped and paid for by nobody.
#[tokio::test]
async fn a_call_whose_lease_is_lost_since_its_session_has_ended_is_paid_for() {
    // A machine that stands still for as long as a lease is good has it taken over.
    steady(Duration::from_secs(1), async || {
        let options = Options { lease_ttl: Duration::from_secs(3), ..Options::default() };
        let world = World::on(Ground { options, ..Ground::default() }).await;
        let (session_id, _events) = talking(&world, ENDLESS).await;
        end_unheard(&world, &session_id).await;
        paid(&world, &session_id).await;
        world.wait_for(&session_id, |_| world.core.metrics.turns_running.get() == 0).await;
        assert_eq!(world.core.metrics.lease_losses.get(), 0, "nobody else has it");
    })
    .await;
}

#[tokio::test]
async fn what_the_ledger_does_not_take_behind_an_end_is_added_later() {
    let (mut stores, outage) = (Stores::memory(), Outage::of(3));
    stores.usage = hooked(stores.usage, outage.before(|call| matches!(call, Call::AddBehindEnd)));
    let world = World::on(Ground { stores, ..Ground::default() }).await;
    let (session_id, _events) = talking(&world, ENDLESS).await;
    let end = TerminateSessionRequest { session_id: session_id.clone(), reason: "enough".into() };
    world.client().lifecycle.terminate_session(end).await.unwrap();
    paid(&world, &session_id).await;
    assert!(outage.is_over(), "the ledger was there all the time");
}
