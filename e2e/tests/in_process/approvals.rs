//! What people are asked, and may still answer.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use croft_e2e::client::{Client, message, scripted_agent};
use croft_front::Error;
use croft_front::core::Options;
use croft_front::events::log::{Append, Appended, Authority, EventLog, IdempotencyKey, NewEvent, StoredCheckpoint};
use croft_front::session::Session;
use croft_front::store::Stores;
use croft_front::turn::store::{Begin, Begun, Ended, TurnStore};
use croft_proto::Timestamp;
use croft_proto::id::{SessionId, TenantId, TurnId};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::tool_spec::Source;
use croft_proto::v1::{
    AgentLimits, AgentSpec, ApprovalRequired, ApprovalResolved, BuiltinTool, ContentBlock, InterruptSessionRequest,
    Permission, ReplayClass, ResolveApprovalRequest, SendMessageResponse, SessionEvent, SessionIdle, SessionRunning,
    SessionState, StopReason, ToolSpec, UserMessage,
};
use croft_serve::Tasks;
use croft_worker::tools::{Builtins, Error as ToolError, Invocation, Tool};
use futures::FutureExt as _;
use futures::future::join_all;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::timeout;
use tonic::{Code, Streaming};

use crate::paused_log::paused;
use crate::world::{Ground, World, read_all, stop_reason};

pub(crate) fn cautious() -> AgentSpec {
    let clock = ToolSpec {
        name: "clock".into(),
        source: Some(Source::Builtin(BuiltinTool { name: "clock".into() })),
        replay: ReplayClass::Safe.into(),
        permission: Permission::Ask.into(),
        ..ToolSpec::default()
    };
    AgentSpec { tools: vec![clock], ..scripted_agent("cautious") }
}

/// Has the question asked; its id, and the turn's stream.
pub(crate) async fn asked(client: &mut Client, session_id: &str) -> (String, Streaming<SendMessageResponse>) {
    let script = r#"{"script": [{"tool_call": {"name": "clock"}}, {"text": "done"}]}"#;
    let mut events = client.lifecycle.send_message(message(session_id, script)).await.unwrap().into_inner();
    loop {
        if let Some(Kind::ApprovalRequired(asked)) = events.message().await.unwrap().unwrap().event.unwrap().kind {
            return (asked.approval_id, events);
        }
    }
}

#[tokio::test]
async fn of_several_who_decide_at_the_same_time_the_first_one_counts() {
    let world = World::start().await;
    let mut client = world.client();
    let session_id = client.create(cautious()).await.unwrap().session_id;
    let (approval_id, events) = asked(&mut client, &session_id).await;
    let answers = join_all((0..8).map(|person| {
        let mut client = world.client();
        let answer = ResolveApprovalRequest {
            session_id: session_id.clone(),
            approval_id: approval_id.clone(),
            approved: person % 2 == 0,
            message: String::new(),
        };
        async move { client.lifecycle.resolve_approval(answer).await.map_err(|status| status.code()) }
    }));
    let answers = answers.await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1, "{answers:?}");
    assert!(answers.iter().filter_map(|answer| answer.as_ref().err()).all(|code| *code == Code::FailedPrecondition));
    let rest = read_all(events).await;
    assert_eq!(stop_reason(&rest), Some(StopReason::EndTurn));
    let decisions = rest.iter().filter(|event| matches!(event.kind, Some(Kind::ApprovalResolved(_)))).count();
    assert_eq!(decisions, 1, "{rest:?}");
}

/// A yes was taken once the turn had been interrupted, and told to all who watched, and nothing came of it.
#[tokio::test]
async fn an_approval_that_comes_after_its_call_is_over_is_refused() {
    let world = World::start().await;
    let mut client = world.client();
    let session_id = client.create(cautious()).await.unwrap().session_id;
    let (approval_id, events) = asked(&mut client, &session_id).await;
    let interrupt = InterruptSessionRequest { session_id: session_id.clone() };
    assert!(client.lifecycle.interrupt_session(interrupt).await.unwrap().into_inner().interrupted);
    assert_eq!(stop_reason(&read_all(events).await), Some(StopReason::Interrupted));
    let before = world.stored(&session_id).await;
    let yes =
        ResolveApprovalRequest { session_id: session_id.clone(), approval_id, approved: true, ..Default::default() };
    let late = client.lifecycle.resolve_approval(yes).await.unwrap_err();
    assert_eq!(late.code(), Code::FailedPrecondition, "{late:?}");
    assert_eq!(world.stored(&session_id).await.last_seq, before.last_seq);
}

/// Reads fail while it is said.
struct FailingReads(Arc<dyn EventLog>, Arc<AtomicBool>, Arc<AtomicUsize>);

#[async_trait]
impl EventLog for FailingReads {
    async fn append(&self, append: Append) -> Result<Appended, Error> {
        self.0.append(append).await
    }

    async fn find_sent(&self, t: TenantId, s: SessionId, key: &IdempotencyKey) -> Result<Option<u64>, Error> {
        self.0.find_sent(t, s, key).await
    }

    async fn read(&self, t: TenantId, s: SessionId, after: u64, limit: u32) -> Result<Vec<SessionEvent>, Error> {
        if self.1.load(Ordering::SeqCst) {
            self.2.fetch_add(1, Ordering::SeqCst);
            return Err(Error::unavailable("postgres", anyhow::anyhow!("connection refused")));
        }
        self.0.read(t, s, after, limit).await
    }

    async fn checkpoint(&self, t: TenantId, s: SessionId) -> Result<Option<StoredCheckpoint>, Error> {
        self.0.checkpoint(t, s).await
    }
}

/// The store was away for a second, and every turn that waited for a person was torn down.
#[tokio::test]
async fn a_turn_that_waits_for_a_person_waits_also_while_the_log_cannot_be_read() {
    let (mut stores, is_away, failed) = (Stores::memory(), Arc::new(AtomicBool::new(false)), Arc::default());
    stores.events = Arc::new(FailingReads(stores.events, Arc::clone(&is_away), Arc::clone(&failed)));
    let world = World::on(Ground { stores, ..Ground::default() }).await;
    let mut client = world.client();
    let session_id = client.create(cautious()).await.unwrap().session_id;
    let (approval_id, events) = asked(&mut client, &session_id).await;
    is_away.store(true, Ordering::SeqCst);
    // Its own looks, and those of whoever watches: two of each at least.
    while failed.load(Ordering::SeqCst) < 4 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    is_away.store(false, Ordering::SeqCst);
    let yes =
        ResolveApprovalRequest { session_id: session_id.clone(), approval_id, approved: true, ..Default::default() };
    client.lifecycle.resolve_approval(yes).await.unwrap();
    assert_eq!(stop_reason(&read_all(events).await), Some(StopReason::EndTurn));
    let session = world.stored(&session_id).await;
    let log = world.core.stores.events.read(world.tenant(), session.id, 0, 100).await.unwrap();
    let steps = log.iter().filter(|event| matches!(event.kind, Some(Kind::StepStarted(_)))).count();
    assert_eq!((steps, world.core.metrics.takeovers.get()), (1, 0), "{log:?}");
}

/// A session whose turn has ended with its question open, as people may take longer than a turn.
async fn asked_in_vain(world: &World, client: &mut Client) -> (String, String) {
    let agent = AgentSpec { limits: Some(AgentLimits { turn_timeout_ms: 3_000, ..Default::default() }), ..cautious() };
    let session_id = client.create(agent).await.unwrap().session_id;
    let (approval_id, events) = asked(client, &session_id).await;
    assert_eq!(stop_reason(&read_all(events).await), Some(StopReason::RequiresAction));
    world.wait_for(&session_id, |session| session.state == SessionState::Idle).await;
    (session_id, approval_id)
}

/// A yes at minute eleven was taken, told to all who watched, recorded as done, and nothing came of it.
#[tokio::test]
async fn an_answer_to_a_turn_that_is_over_begins_the_next() {
    for approved in [true, false] {
        let world = World::start().await;
        let mut client = world.client();
        let (session_id, approval_id) = asked_in_vain(&world, &mut client).await;
        let before = world.stored(&session_id).await.last_seq;
        let answer = ResolveApprovalRequest {
            session_id: session_id.clone(),
            approval_id,
            approved,
            message: "as I say".into(),
        };
        client.lifecycle.resolve_approval(answer.clone()).await.unwrap();
        let again = client.lifecycle.resolve_approval(answer).await.unwrap_err();
        assert_eq!(again.code(), Code::FailedPrecondition, "the first word counts");
        let session = world
            .wait_for(&session_id, |session| session.state == SessionState::Idle && session.last_seq > before + 3)
            .await;
        let log = world.core.stores.events.read(world.tenant(), session.id, before, 100).await.unwrap();
        assert_eq!(stop_reason(&log), Some(StopReason::EndTurn), "{log:?}");
        let Some(Kind::UserMessage(opening)) = &log[0].kind else { panic!("{log:?}") };
        let first = world.core.stores.events.read(world.tenant(), session.id, 2, 1).await.unwrap();
        let Some(Kind::UserMessage(asker)) = &first[0].kind else { panic!("{first:?}") };
        assert_eq!(
            (opening.content.len(), &opening.sender),
            (0, &asker.sender),
            "it runs for whoever it ran for before"
        );
        assert_eq!(questions(&log), Vec::<String>::new(), "what is decided is not asked again");
        let results: Vec<_> = log
            .iter()
            .filter_map(|event| match &event.kind {
                Some(Kind::ToolResult(result)) => Some(result),
                _ => None,
            })
            .collect();
        assert_eq!(results.len(), 1, "{log:?}");
        assert_eq!(results[0].is_error, !approved, "{results:?}");
        assert_eq!(format!("{results:?}").contains("as I say"), !approved, "the model is told why");
    }
}

/// Where something in a turn's life is held up for once, until somebody lets it go on.
#[derive(Clone, Default)]
struct Gate {
    is_reached: Arc<Notify>,
    goes_on: Arc<Notify>,
    is_open: Arc<AtomicBool>,
}

impl Gate {
    async fn pass(&self) {
        if !self.is_open.swap(true, Ordering::SeqCst) {
            self.is_reached.notify_one();
            self.goes_on.notified().await;
        }
    }
}

/// Holds up the end of a turn.
struct LateEnd(Arc<dyn TurnStore>, Gate);

#[async_trait]
impl TurnStore for LateEnd {
    async fn begin(&self, begin: Begin) -> Result<Begun, Error> {
        self.0.begin(begin).await
    }

    async fn end(&self, last: Append) -> Result<Ended, Error> {
        self.1.pass().await;
        self.0.end(last).await
    }
}

/// The turn's time is over, and the person decides in that moment: just before the turn's last word is stored, or just behind it. Either
/// was taken, told to all who watched, and nothing came of it.
#[tokio::test]
async fn an_answer_while_its_turn_ends_has_its_effect() {
    for is_before in [true, false] {
        let (mut stores, ends, answer) = (Stores::memory(), Gate::default(), Gate::default());
        stores.turns = Arc::new(LateEnd(stores.turns, ends.clone()));
        let held = answer.clone();
        stores.events = paused(stores.events, move |moment| {
            let (decides, held) = (moment.appends(|kind| matches!(kind, Kind::ApprovalResolved(_))), held.clone());
            async move {
                if decides {
                    held.pass().await;
                }
            }
            .boxed()
        });
        let world = World::on(Ground { stores, ..Ground::default() }).await;
        let mut client = world.client();
        let agent =
            AgentSpec { limits: Some(AgentLimits { turn_timeout_ms: 3_000, ..Default::default() }), ..cautious() };
        let session_id = client.create(agent).await.unwrap().session_id;
        let (approval_id, events) = asked(&mut client, &session_id).await;
        let yes = ResolveApprovalRequest {
            session_id: session_id.clone(),
            approval_id,
            approved: true,
            ..Default::default()
        };
        let answering = async {
            if is_before {
                ends.is_reached.notified().await;
                answer.is_open.store(true, Ordering::SeqCst);
            }
            client.lifecycle.resolve_approval(yes).await.unwrap();
            ends.goes_on.notify_one();
        };
        let ending = async {
            if !is_before {
                answer.is_reached.notified().await;
                ends.is_reached.notified().await;
                ends.goes_on.notify_one();
                world.wait_for(&session_id, |session| session.state == SessionState::Idle).await;
                answer.goes_on.notify_one();
            }
        };
        tokio::join!(answering, ending);
        assert_eq!(stop_reason(&read_all(events).await), Some(StopReason::RequiresAction), "{is_before}");
        let done =
            |session: &Session| session.state == SessionState::Idle && session.last_stop_reason == StopReason::EndTurn;
        let session = world.wait_for(&session_id, done).await;
        let log = world.core.stores.events.read(world.tenant(), session.id, 0, 100).await.unwrap();
        assert_eq!(failures(&log), [false], "the call was made: {log:?}");
        assert_eq!(questions(&log).len(), 1, "nobody is asked again");
    }
}

/// Ends turns late, and is away behind the first end until it is told otherwise.
struct Severed {
    turns: LateEnd,
    is_away: Arc<AtomicBool>,
    tried: Arc<Notify>,
}

#[async_trait]
impl TurnStore for Severed {
    async fn begin(&self, begin: Begin) -> Result<Begun, Error> {
        if self.is_away.load(Ordering::SeqCst) {
            self.tried.notify_one();
            return Err(Error::unavailable("postgres", anyhow::anyhow!("connection refused")));
        }
        self.turns.begin(begin).await
    }

    async fn end(&self, last: Append) -> Result<Ended, Error> {
        let is_first = !self.turns.1.is_open.load(Ordering::SeqCst);
        let ended = self.turns.end(last).await?;
        if is_first {
            self.is_away.store(true, Ordering::SeqCst);
        }
        Ok(ended)
    }
}

/// A session whose turn gives up waiting after three seconds and ends as the gate lets it. The store is away for what is to begin behind
/// it, and tells of each try.
struct Scene {
    world: World,
    session_id: String,
    ends: Gate,
    is_away: Arc<AtomicBool>,
    tried: Arc<Notify>,
}

async fn severed() -> Scene {
    let (mut stores, ends, tried) = (Stores::memory(), Gate::default(), Arc::new(Notify::new()));
    let (turns, is_away) = (LateEnd(stores.turns, ends.clone()), Arc::new(AtomicBool::new(false)));
    stores.turns = Arc::new(Severed { turns, is_away: Arc::clone(&is_away), tried: Arc::clone(&tried) });
    let options = Options { lease_ttl: Duration::from_secs(3), ..Options::default() };
    let world = World::on(Ground { stores, options, ..Ground::default() }).await;
    let agent = AgentSpec { limits: Some(AgentLimits { turn_timeout_ms: 3_000, ..Default::default() }), ..cautious() };
    let session_id = world.client().create(agent).await.unwrap().session_id;
    Scene { world, session_id, ends, is_away, tried }
}

/// Nobody went on with it by themselves, and the call was made only for who said yes again.
#[tokio::test]
async fn a_decision_whose_turn_cannot_go_on_with_it_at_once_has_its_effect_later() {
    let Scene { world, session_id, ends, is_away, tried } = severed().await;
    let mut client = world.client();
    let (approval_id, _events) = asked(&mut client, &session_id).await;
    let yes =
        ResolveApprovalRequest { session_id: session_id.clone(), approval_id, approved: true, ..Default::default() };
    ends.is_reached.notified().await;
    client.lifecycle.resolve_approval(yes).await.unwrap();
    ends.goes_on.notify_one();
    tried.notified().await;
    is_away.store(false, Ordering::SeqCst);
    let done =
        |session: &Session| session.state == SessionState::Idle && session.last_stop_reason == StopReason::EndTurn;
    let session = world.wait_for(&session_id, done).await;
    let log = world.core.stores.events.read(world.tenant(), session.id, 0, 100).await.unwrap();
    assert_eq!(failures(&log), [false], "the call was made: {log:?}");
}

/// Says at once that nobody knows what has become of the first end, which is stored as late as the test will have it.
struct Unknown {
    turns: Arc<dyn TurnStore>,
    last: Mutex<Option<Append>>,
    is_under_way: Notify,
    is_first: AtomicBool,
}

#[async_trait]
impl TurnStore for Unknown {
    async fn begin(&self, begin: Begin) -> Result<Begun, Error> {
        self.turns.begin(begin).await
    }

    async fn end(&self, last: Append) -> Result<Ended, Error> {
        if self.is_first.swap(false, Ordering::SeqCst) {
            *self.last.lock().unwrap() = Some(last);
            self.is_under_way.notify_one();
            return Err(Error::unavailable("postgres", anyhow::anyhow!("the connection was lost")));
        }
        self.turns.end(last).await
    }
}

/// The turn looked as if it went on, and was left to hear of the answer by itself.
#[tokio::test]
async fn an_answer_to_a_turn_whose_end_takes_its_time_has_its_effect() {
    let mut stores = Stores::memory();
    let (last, is_under_way) = (Mutex::default(), Notify::new());
    let unknown = Unknown { turns: stores.turns, last, is_under_way, is_first: AtomicBool::new(true) };
    let unknown = Arc::new(unknown);
    stores.turns = unknown.clone();
    let world = World::on(Ground { stores, ..Ground::default() }).await;
    let mut client = world.client();
    let agent = AgentSpec { limits: Some(AgentLimits { turn_timeout_ms: 3_000, ..Default::default() }), ..cautious() };
    let session_id = client.create(agent).await.unwrap().session_id;
    let (approval_id, _events) = asked(&mut client, &session_id).await;
    let yes =
        ResolveApprovalRequest { session_id: session_id.clone(), approval_id, approved: true, ..Default::default() };
    unknown.is_under_way.notified().await;
    client.lifecycle.resolve_approval(yes).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let last = unknown.last.lock().unwrap().take().unwrap();
    unknown.turns.end(last).await.unwrap();
    let done =
        |session: &Session| session.state == SessionState::Idle && session.last_stop_reason == StopReason::EndTurn;
    let session = world.wait_for(&session_id, done).await;
    let log = world.core.stores.events.read(world.tenant(), session.id, 0, 100).await.unwrap();
    assert_eq!(failures(&log), [false], "the call was made: {log:?}");
}

/// The front that ended the turn was lost before it went on with what a person had decided meanwhile. Whoever pressed yes again was told
/// that nothing is pending, and the call was never made.
#[tokio::test]
async fn a_decision_whose_turn_could_not_go_on_with_it_can_be_made_again() {
    let Scene { world, session_id, ends, is_away, tried } = severed().await;
    let mut client = world.client();
    let (approval_id, events) = asked(&mut client, &session_id).await;
    let yes =
        ResolveApprovalRequest { session_id: session_id.clone(), approval_id, approved: true, ..Default::default() };
    ends.is_reached.notified().await;
    client.lifecycle.resolve_approval(yes.clone()).await.unwrap();
    let early = client.lifecycle.resolve_approval(yes.clone()).await.unwrap_err();
    assert_eq!(early.code(), Code::FailedPrecondition, "the turn is not over, and may hear of it: {early:?}");
    ends.goes_on.notify_one();
    // Until it gives up.
    while timeout(Duration::from_secs(1), tried.notified()).await.is_ok() {}
    drop(events);
    let session = world.wait_for(&session_id, |session| session.state == SessionState::Idle).await;
    assert_eq!(session.last_stop_reason, StopReason::RequiresAction, "nothing goes on by itself");

    is_away.store(false, Ordering::SeqCst);
    client.lifecycle.resolve_approval(yes.clone()).await.unwrap();
    let done =
        |session: &Session| session.state == SessionState::Idle && session.last_stop_reason == StopReason::EndTurn;
    let session = world.wait_for(&session_id, done).await;
    let log = world.core.stores.events.read(world.tenant(), session.id, 0, 100).await.unwrap();
    assert_eq!(failures(&log), [false], "the call was made: {log:?}");
    assert_eq!(questions(&log).len(), 1, "nobody is asked again");
    let late = client.lifecycle.resolve_approval(yes).await.unwrap_err();
    assert_eq!(late.code(), Code::FailedPrecondition, "{late:?}");
}

/// The first word counts, also where it came to nothing: who says no to it has it carried out, and is told that they came too late.
#[tokio::test]
async fn another_decision_about_what_was_decided_changes_nothing() {
    let Scene { world, session_id, ends, is_away, tried } = severed().await;
    let mut client = world.client();
    let (approval_id, _events) = asked(&mut client, &session_id).await;
    let no = ResolveApprovalRequest { session_id: session_id.clone(), approval_id, ..Default::default() };
    let yes = ResolveApprovalRequest { approved: true, ..no.clone() };
    ends.is_reached.notified().await;
    client.lifecycle.resolve_approval(no).await.unwrap();
    ends.goes_on.notify_one();
    tried.notified().await;
    is_away.store(false, Ordering::SeqCst);
    world.wait_for(&session_id, |session| session.state == SessionState::Idle).await;
    let late = client.lifecycle.resolve_approval(yes).await.unwrap_err();
    assert_eq!(late.code(), Code::FailedPrecondition, "{late:?}");
    let done =
        |session: &Session| session.state == SessionState::Idle && session.last_stop_reason == StopReason::EndTurn;
    let session = world.wait_for(&session_id, done).await;
    let log = world.core.stores.events.read(world.tenant(), session.id, 0, 100).await.unwrap();
    assert_eq!(failures(&log), [true], "the call was denied: {log:?}");
}

/// Of each result of a tool, whether it is an error.
fn failures(log: &[SessionEvent]) -> Vec<bool> {
    let failure = |event: &SessionEvent| match &event.kind {
        Some(Kind::ToolResult(result)) => Some(result.is_error),
        _ => None,
    };
    log.iter().filter_map(failure).collect()
}

fn questions(log: &[SessionEvent]) -> Vec<String> {
    let question = |event: &SessionEvent| match &event.kind {
        Some(Kind::ApprovalRequired(asked)) => Some(asked.approval_id.clone()),
        _ => None,
    };
    log.iter().filter_map(question).collect()
}

/// A tool whose first call never returns, and each other one at once.
#[derive(Clone, Default)]
struct StuckOnce {
    is_called: Arc<Notify>,
    was_called: Arc<AtomicBool>,
}

#[async_trait]
impl Tool for StuckOnce {
    fn description(&self) -> &'static str {
        "Gets stuck once."
    }

    fn input_schema(&self) -> Value {
        json!({ "type": "object" })
    }

    async fn call(&self, _: Invocation) -> Result<Vec<ContentBlock>, ToolError> {
        if !self.was_called.swap(true, Ordering::SeqCst) {
            self.is_called.notify_one();
            std::future::pending::<()>().await;
        }
        Ok(Vec::new())
    }
}

/// The answer was stored, and the worker asked the same question again, which nobody could answer a second time.
#[tokio::test]
async fn a_yes_has_a_call_repeated_whose_outcome_is_unknown() {
    let (tool, theirs) = (StuckOnce::default(), Tasks::new());
    let builtins = Builtins::default().with("stuck-once", tool.clone());
    let world = World::on(Ground { builtins, ..Ground::default() }).await;
    let mut client = world.client_of_a_front_with(&theirs).await;
    let mut once = cautious();
    once.tools[0].source = Some(Source::Builtin(BuiltinTool { name: "stuck-once".into() }));
    once.tools[0].set_permission(Permission::Allow);
    once.tools[0].set_replay(ReplayClass::Unsafe);
    let session_id = client.create(once).await.unwrap().session_id;
    let script = r#"{"script": [{"tool_call": {"name": "clock", "arguments": {}}}, {"text": "done"}]}"#;
    let _turn = client.lifecycle.send_message(message(&session_id, script)).await.unwrap();
    tool.is_called.notified().await;
    // Whoever takes the turn over hangs up on the worker that makes the call.
    assert!(theirs.shutdown(Duration::from_millis(50)).await > 0, "the turn is not over");
    let session = world.wait_for(&session_id, |session| session.state == SessionState::Idle).await;
    let log = world.core.stores.events.read(world.tenant(), session.id, 0, 100).await.unwrap();
    assert_eq!(stop_reason(&log), Some(StopReason::RequiresAction), "{log:?}");
    let [approval_id] = &questions(&log)[..] else { panic!("{log:?}") };
    let yes = ResolveApprovalRequest {
        session_id: session_id.clone(),
        approval_id: approval_id.clone(),
        approved: true,
        ..Default::default()
    };
    world.client().lifecycle.resolve_approval(yes).await.unwrap();
    let before = session.last_seq;
    let session = world
        .wait_for(&session_id, |session| session.state == SessionState::Idle && session.last_seq > before + 3)
        .await;
    let rest = world.core.stores.events.read(world.tenant(), session.id, before, 100).await.unwrap();
    assert_eq!((stop_reason(&rest), questions(&rest)), (Some(StopReason::EndTurn), Vec::new()), "{rest:?}");
    let calls = [&log, &rest].map(|log| {
        let call = |event: &SessionEvent| match &event.kind {
            Some(Kind::ToolCall(call)) => Some(call.clone()),
            _ => None,
        };
        log.iter().filter_map(call).collect::<Vec<_>>()
    });
    assert_eq!((calls[0].len(), &calls[0]), (1, &calls[1]), "it is told once more, under its key");
    assert_eq!(failures(&rest), [false]);
}

#[tokio::test]
async fn an_answer_that_comes_behind_another_message_is_refused() {
    let world = World::start().await;
    let mut client = world.client();
    let (session_id, approval_id) = asked_in_vain(&world, &mut client).await;
    let script = r#"{"script": [{"text": "done"}]}"#;
    let events = client.lifecycle.send_message(message(&session_id, script)).await.unwrap().into_inner();
    assert_eq!(stop_reason(&read_all(events).await), Some(StopReason::EndTurn));
    let yes = ResolveApprovalRequest { session_id, approval_id, approved: true, ..Default::default() };
    assert_eq!(client.lifecycle.resolve_approval(yes).await.unwrap_err().code(), Code::FailedPrecondition);
}

/// What is stored of turns that nobody drives.
struct Written<'world> {
    world: &'world World,
    session: SessionId,
    epoch: u64,
}

impl Written<'_> {
    fn append(&self, authority: Authority, turn: TurnId, kind: Kind) -> Append {
        Append {
            tenant: self.world.tenant(),
            session: self.session,
            authority,
            events: vec![NewEvent { kind, turn: Some(turn), elapsed_ms: 0, create_time: Timestamp::default() }],
            checkpoint: None,
            idempotency_key: None,
            input_seq: None,
        }
    }

    /// By the turn itself, which takes up the message of this number if there is one.
    async fn told(&self, turn: TurnId, kind: Kind, input_seq: Option<u64>) {
        let append = Append { input_seq, ..self.append(Authority::Lease { epoch: self.epoch }, turn, kind) };
        self.world.core.stores.events.append(append).await.unwrap();
    }

    async fn said(&self, turn: TurnId, kind: Kind) -> u64 {
        let append = self.append(Authority::Caller, turn, kind);
        let Appended::New(events) = self.world.core.stores.events.append(append).await.unwrap() else { panic!() };
        events[0].seq
    }
}

/// A message that had waited since before the question began the next turn, and whoever said yes again was told that it counts, or had
/// a turn begun for a call that was closed long ago.
#[tokio::test]
async fn a_decision_of_a_turn_behind_which_another_has_begun_is_not_gone_on_with() {
    let world = World::start().await;
    let session_id = world.client().create(cautious()).await.unwrap().session_id;
    let (first, second) = (TurnId::generate(), TurnId::generate());
    let mut written = Written { world: &world, session: session_id.parse().unwrap(), epoch: 0 };
    let words = || Kind::UserMessage(UserMessage { sender: "somebody".into(), ..UserMessage::default() });
    let running = || Kind::SessionRunning(SessionRunning {});
    let asks = |approval_id: &str| {
        let (approval_id, tool_call_id) = (approval_id.to_owned(), format!("call of {approval_id}"));
        Kind::ApprovalRequired(ApprovalRequired { approval_id, tool_call_id, ..ApprovalRequired::default() })
    };
    let stops = || Kind::SessionIdle(SessionIdle { stop_reason: StopReason::RequiresAction.into() });
    let message = written.append(Authority::Caller, first, words());
    let begin = Begin { message, holder: "nobody".into(), ttl: Duration::from_hours(1) };
    let Begun::New(opened) = world.core.stores.turns.begin(begin).await.unwrap() else { panic!("a turn runs") };
    written.epoch = opened.epoch;
    written.told(first, running(), Some(opened.events[0].seq)).await;
    let waits = written.said(second, words()).await;
    written.told(first, asks("a"), None).await;
    let decided = ApprovalResolved { approval_id: "a".into(), approved: true, ..ApprovalResolved::default() };
    written.said(first, Kind::ApprovalResolved(decided)).await;
    written.told(first, stops(), None).await;

    let refused = async |when: &str| {
        let before = world.stored(&session_id).await.last_seq;
        for approved in [true, false] {
            let answer = ResolveApprovalRequest {
                session_id: session_id.clone(),
                approval_id: "a".into(),
                approved,
                ..Default::default()
            };
            let told = world.client().lifecycle.resolve_approval(answer).await.expect_err(when);
            assert_eq!(told.code(), Code::FailedPrecondition, "{when}: {told:?}");
        }
        assert_eq!(world.stored(&session_id).await.last_seq, before, "{when}");
    };
    refused("before the next turn has begun").await;
    written.told(second, running(), Some(waits)).await;
    refused("while the next turn runs").await;
    written.told(second, asks("b"), None).await;
    let last = written.append(Authority::Lease { epoch: written.epoch }, second, stops());
    assert!(world.core.stores.turns.end(last).await.unwrap().released);
    refused("behind a turn that has ended with a question of its own").await;
}
