//! The calls of `LifecycleService` at two fronts over PostgreSQL and Redis: each answers for the other, also once that one is gone.

use std::collections::BTreeSet;
use std::time::Duration;

use croft_e2e::client::{Client, message, scripted_agent};
use croft_e2e::steady::steady;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::tool_spec::Source;
use croft_proto::v1::{
    AgentSpec, BuiltinTool, GetSessionRequest, InterruptSessionRequest, ListSessionsRequest, ListUsageEventsRequest,
    Permission, ReplayClass, ResolveApprovalRequest, SendMessageResponse, SessionEvent, SessionState, StopReason,
    StreamEventsRequest, StreamEventsResponse, TerminateSessionRequest, ToolSpec,
};
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Streaming};

use crate::PATIENCE;
use crate::stage::Stage;
use crate::transcript::Record;

/// What stops a turn does so within this, from any front.
const STOPS_WITHIN: Duration = Duration::from_secs(1);
/// A pause of this process in which that may be missed for no fault of the fronts'.
const STALL: Duration = Duration::from_millis(200);
/// Asks for a tool, and says a word afterwards.
const CAUTIOUS: &str = r#"{"script": [{"tool_call": {"name": "ask"}}, {"text": "done"}]}"#;
/// Goes on for ten minutes behind its first word.
const ENDLESS: &str = r#"{"script": [{"text": "word "}, {"delay_ms": 600000}]}"#;

/// Has to ask before it looks at the clock.
fn agent() -> AgentSpec {
    let ask = ToolSpec {
        name: "ask".into(),
        source: Some(Source::Builtin(BuiltinTool { name: "clock".into() })),
        replay: ReplayClass::Safe.into(),
        permission: Permission::Ask.into(),
        ..ToolSpec::default()
    };
    AgentSpec { tools: vec![ask], ..scripted_agent("asked-at-two") }
}

/// Whatever tells a session's events one after the other.
trait Told {
    async fn next(&mut self) -> Option<SessionEvent>;
}

impl Told for Streaming<SendMessageResponse> {
    async fn next(&mut self) -> Option<SessionEvent> {
        Some(self.message().await.unwrap()?.event.unwrap())
    }
}

impl Told for Streaming<StreamEventsResponse> {
    async fn next(&mut self) -> Option<SessionEvent> {
        Some(self.message().await.unwrap()?.event.unwrap())
    }
}

/// All up to the first that is such, with it.
async fn until(told: &mut impl Told, is_it: impl Fn(&Kind) -> bool) -> Vec<SessionEvent> {
    let mut events = Vec::new();
    let reading = async {
        loop {
            let event = told.next().await.expect("it goes on");
            let found = event.kind.as_ref().is_some_and(&is_it);
            events.push(event);
            if found {
                return;
            }
        }
    };
    timeout(PATIENCE, reading).await.expect("it comes");
    events
}

async fn rest(told: &mut impl Told) -> Vec<SessionEvent> {
    let mut events = Vec::new();
    let reading = async {
        while let Some(event) = told.next().await {
            events.push(event);
        }
    };
    timeout(PATIENCE, reading).await.expect("it ends");
    events
}

/// Opens a session, again where the machine stood still for so long that a worker was given up.
async fn create(client: &mut Client, agent: AgentSpec) -> String {
    let created = async {
        loop {
            match client.create(agent.clone()).await {
                Ok(session) => return session.session_id,
                Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status:?}"),
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, created).await.expect("a session is opened")
}

async fn send(client: &mut Client, session_id: &str, script: &str) -> Streaming<SendMessageResponse> {
    client.lifecycle.send_message(message(session_id, script)).await.unwrap().into_inner()
}

async fn stream(client: &mut Client, session_id: &str) -> Streaming<StreamEventsResponse> {
    let request = StreamEventsRequest { session_id: session_id.to_owned(), ..StreamEventsRequest::default() };
    client.lifecycle.stream_events(request).await.unwrap().into_inner()
}

fn question(events: &[SessionEvent]) -> String {
    let Some(Kind::ApprovalRequired(asked)) = &events.last().unwrap().kind else { panic!("no question in {events:?}") };
    asked.approval_id.clone()
}

fn yes(session_id: &str, approval_id: String) -> ResolveApprovalRequest {
    let session_id = session_id.to_owned();
    ResolveApprovalRequest { session_id, approval_id, approved: true, ..ResolveApprovalRequest::default() }
}

fn stop_reason(events: &[SessionEvent]) -> Option<StopReason> {
    match &events.last()?.kind {
        Some(Kind::SessionIdle(idle)) => Some(idle.stop_reason()),
        _ => None,
    }
}

fn count(events: &[SessionEvent], is_it: impl Fn(&Kind) -> bool) -> usize {
    events.iter().filter(|event| event.kind.as_ref().is_some_and(&is_it)).count()
}

fn is_word(kind: &Kind) -> bool {
    matches!(kind, Kind::TextDelta(_))
}

fn is_question(kind: &Kind) -> bool {
    matches!(kind, Kind::ApprovalRequired(_))
}

fn is_idle(kind: &Kind) -> bool {
    matches!(kind, Kind::SessionIdle(_))
}

fn durable(events: Vec<SessionEvent>) -> Vec<SessionEvent> {
    events.into_iter().filter(|event| event.seq > 0).collect()
}

/// The log of a session that has ended.
async fn whole(mut told: Streaming<StreamEventsResponse>) -> Vec<SessionEvent> {
    durable(rest(&mut told).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_front_answers_for_the_other() {
    steady(STALL, async || {
        let stage = Stage::set().await;
        answer_for_each_other(&stage).await;
        stage.strike().await;
    })
    .await;
}

async fn answer_for_each_other(stage: &Stage) {
    let [mut ours, mut theirs] = <[Client; 2]>::try_from(stage.clients()).ok().expect("two fronts");
    let session_id = create(&mut ours, agent()).await;
    let get = GetSessionRequest { session_id: session_id.clone() };

    // Approved there.
    let mut turn = send(&mut ours, &session_id, CAUTIOUS).await;
    let answer = yes(&session_id, question(&until(&mut turn, is_question).await));
    theirs.lifecycle.resolve_approval(answer.clone()).await.unwrap();
    let told = rest(&mut turn).await;
    assert_eq!(stop_reason(&told), Some(StopReason::EndTurn), "{told:?}");
    assert_eq!(count(&told, |kind| matches!(kind, Kind::ToolResult(result) if !result.is_error)), 1, "{told:?}");
    for client in [&mut ours, &mut theirs] {
        let twice = client.lifecycle.resolve_approval(answer.clone()).await.unwrap_err();
        assert_eq!(twice.code(), Code::FailedPrecondition, "{twice:?}");
    }

    // Interrupted there, in mid token.
    let mut turn = send(&mut ours, &session_id, ENDLESS).await;
    until(&mut turn, is_word).await;
    let running = theirs.lifecycle.get_session(get.clone()).await.unwrap().into_inner().session.unwrap();
    assert_eq!(running.state(), SessionState::Running);
    let (asked, interrupt) = (Instant::now(), InterruptSessionRequest { session_id: session_id.clone() });
    assert!(theirs.lifecycle.interrupt_session(interrupt.clone()).await.unwrap().into_inner().interrupted);
    let told = rest(&mut turn).await;
    assert!(asked.elapsed() < STOPS_WITHIN, "it took {:?}", asked.elapsed());
    assert_eq!(stop_reason(&told), Some(StopReason::Interrupted), "{told:?}");
    assert!(!theirs.lifecycle.interrupt_session(interrupt).await.unwrap().into_inner().interrupted, "nothing runs");
    let idle = theirs.lifecycle.get_session(get.clone()).await.unwrap().into_inner().session.unwrap();
    assert_eq!((idle.state(), idle.session_id.as_str()), (SessionState::Idle, session_id.as_str()));

    // Listed, a page at the one and the next at the other.
    let mut expected = BTreeSet::from([session_id.clone()]);
    for place in 0..4 {
        let client = if place % 2 == 0 { &mut ours } else { &mut theirs };
        expected.insert(create(client, scripted_agent("listed")).await);
    }
    let (mut listed, mut page_token, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let client = if pages % 2 == 0 { &mut theirs } else { &mut ours };
        let request = ListSessionsRequest { page_size: 1, page_token, ..ListSessionsRequest::default() };
        let page = client.lifecycle.list_sessions(request).await.unwrap().into_inner();
        assert!(page.sessions.len() <= 1, "{page:?}");
        listed.extend(page.sessions.into_iter().map(|session| session.session_id));
        (page_token, pages) = (page.next_page_token, pages + 1);
        if page_token.is_empty() {
            break;
        }
        assert!(pages < 20, "it has no end: {listed:?}");
    }
    assert_eq!(listed.len(), expected.len(), "each once: {listed:?}");
    assert_eq!(BTreeSet::from_iter(listed), expected);

    // Ended there while a turn runs.
    let mut turn = send(&mut ours, &session_id, ENDLESS).await;
    until(&mut turn, is_word).await;
    let asked = Instant::now();
    let end = TerminateSessionRequest { session_id: session_id.clone(), reason: "enough".into() };
    let ended = theirs.lifecycle.terminate_session(end).await.unwrap().into_inner().session.unwrap();
    assert_eq!(ended.state(), SessionState::Terminated);
    let told = rest(&mut turn).await;
    assert!(asked.elapsed() < STOPS_WITHIN, "it took {:?}", asked.elapsed());
    assert!(matches!(told.last().unwrap().kind, Some(Kind::SessionTerminated(_))), "{told:?}");
    for client in [&mut ours, &mut theirs] {
        let late = client.lifecycle.send_message(message(&session_id, "and on")).await.unwrap_err();
        assert_eq!(late.code(), Code::FailedPrecondition, "{late:?}");
    }

    // All of it is told from the beginning, by either in the same words.
    let [ours, theirs] = [stream(&mut ours, &session_id).await, stream(&mut theirs, &session_id).await];
    let logs = [whole(ours).await, whole(theirs).await];
    assert_eq!(logs[0], logs[1]);
    let numbers: Vec<u64> = logs[0].iter().map(|event| event.seq).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    assert_eq!(count(&logs[0], |kind| matches!(kind, Kind::UserMessage(_))), 3, "{:?}", logs[0]);
    assert!(matches!(logs[0].last().unwrap().kind, Some(Kind::SessionTerminated(_))));
}

/// When the answer to a question comes whose front was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comes {
    /// While the turn is still the dead front's.
    AtOnce,
    /// Once another has taken it over.
    Later,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_counts_though_the_front_that_asked_was_killed() {
    let mut stage = Stage::set().await;
    for comes in [Comes::AtOnce, Comes::Later] {
        let record = answered(&mut stage, comes).await;
        let events = &record.events;
        assert_eq!(record.faults(), Vec::<String>::new(), "{comes:?}: {events:?}");
        assert_eq!(stop_reason(events), Some(StopReason::EndTurn), "{comes:?}: {events:?}");
        let is_named = |resolver: &str| resolver.starts_with("api-key/ck_");
        let is_decision =
            |kind: &Kind| matches!(kind, Kind::ApprovalResolved(told) if told.approved && is_named(&told.resolver));
        let is_result = |kind: &Kind| matches!(kind, Kind::ToolResult(result) if !result.is_error);
        let is_call = |kind: &Kind| matches!(kind, Kind::ToolCall(_));
        let is_start = |kind: &Kind| matches!(kind, Kind::StepStarted(_));
        let counts = [
            ("asked", count(events, is_question)),
            ("decided", count(events, is_decision)),
            ("called", count(events, is_call)),
            ("done", count(events, is_result)),
        ];
        assert_eq!(counts, counts.map(|(what, _)| (what, 1)), "{comes:?}: {events:?}");
        assert!(count(events, is_start) > 1, "{comes:?}: it was taken over: {events:?}");
        stage.run_front(0).await;
    }
    stage.strike().await;
}

/// Has a question asked at the first front, which is killed, and answered at the other.
async fn answered(stage: &mut Stage, comes: Comes) -> Record {
    let [mut ours, mut theirs] = <[Client; 2]>::try_from(stage.clients()).ok().expect("two fronts");
    let session_id = create(&mut ours, agent()).await;
    let mut watching = stream(&mut theirs, &session_id).await;
    let takeovers = stage.metrics(1).await.sum("croft_turn_takeovers_total", &[]);
    drop(send(&mut ours, &session_id, CAUTIOUS).await);
    let mut events = until(&mut watching, is_question).await;
    stage.end_front(0).await;
    if comes == Comes::Later {
        let taken_over = async {
            while stage.metrics(1).await.sum("croft_turn_takeovers_total", &[]) <= takeovers {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, taken_over).await.expect("it is taken over");
    }
    let answer = yes(&session_id, question(&events));
    theirs.lifecycle.resolve_approval(answer).await.unwrap();
    events.extend(until(&mut watching, is_idle).await);
    let usage = ListUsageEventsRequest { session_id, page_size: 500, ..ListUsageEventsRequest::default() };
    let usage = theirs.usage.list_usage_events(usage).await.unwrap().into_inner().usage_events;
    Record::new(durable(events), usage, None)
}
