//! What `RuntimeService` refuses, holds and forgets.

#![expect(clippy::unwrap_used, reason = "a helper of tests may fail loudly")]

mod support;

use std::time::Duration;

use async_trait::async_trait;
use croft_llm::Providers;
use croft_llm::scripted::Scripted;
use croft_proto::v1::execute_step_request::Message as ToWorker;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::tool_spec::Source;
use croft_proto::v1::{
    AgentSpec, CheckpointRequest, ContentBlock, InitWorkerSessionRequest, McpTool,
    RuntimeServiceTerminateSessionRequest, SessionCheckpoint, StepCancel, StepStart, StopReason, ToolSpec,
};
use croft_worker::RuntimeOptions;
use croft_worker::tools::{Builtins, Error as ToolError, Invocation, Tool};
use prost::Message as _;
use serde_json::{Value, json};
use support::*;
use tokio::time::Instant;
use tonic::{Code, Status};

async fn small_worker(sessions_max: usize) -> Worker {
    let options = RuntimeOptions { sessions_max, session_idle: Duration::from_mins(10), ..options() };
    worker_with(options, Providers::new().with(Scripted::new()), Builtins::default()).await
}

async fn terminate(worker: &Worker, session_id: &str) -> Result<bool, Status> {
    let request =
        RuntimeServiceTerminateSessionRequest { session_id: session_id.into(), reason: "test".into(), epoch: 0 };
    worker.client.clone().terminate_session(request).await.map(|response| response.into_inner().found)
}

async fn checkpoint(worker: &Worker, session_id: &str) -> Result<Option<SessionCheckpoint>, Status> {
    let request = CheckpointRequest { session_id: session_id.into() };
    worker.client.clone().checkpoint(request).await.map(|response| response.into_inner().checkpoint)
}

fn refusal<T: std::fmt::Debug>(outcome: Result<T, Status>) -> (Code, String) {
    let status = outcome.unwrap_err();
    (status.code(), reason(&status))
}

fn refused(code: Code, reason: &str) -> (Code, String) {
    (code, reason.to_owned())
}

#[tokio::test(start_paused = true)]
async fn a_session_is_known_once_and_again() {
    let worker = worker().await;
    let request = InitWorkerSessionRequest {
        session_id: session(),
        tenant: "meadow".into(),
        agent: Some(agent()),
        provider: String::new(),
    };
    for _ in 0..2 {
        let response = worker.client.clone().init_worker_session(request.clone()).await.unwrap().into_inner();
        assert_eq!((response.worker.as_str(), response.namespace.as_str()), ("worker-0", "tenant-meadow"));
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_cannot_run_here_is_refused_with_its_reason() {
    let worker = worker().await;
    let mcp = Some(Source::Mcp(McpTool { server_url: "https://tools.test/mcp".into(), ..McpTool::default() }));
    let with_tool = |tool: ToolSpec| AgentSpec { tools: vec![tool], ..agent() };
    let cases = [
        (AgentSpec { model: String::new(), ..agent() }, Code::InvalidArgument, "MALFORMED"),
        (AgentSpec { model: "claude-haiku-4-5".into(), ..agent() }, Code::FailedPrecondition, "PROVIDER_MISSING"),
        (with_tool(ToolSpec { source: mcp, ..builtin("search") }), Code::FailedPrecondition, "TOOL_UNSUPPORTED"),
        (with_tool(builtin("spade")), Code::FailedPrecondition, "TOOL_UNSUPPORTED"),
        (with_tool(ToolSpec { name: "a b".into(), ..builtin("clock") }), Code::FailedPrecondition, "TOOL_INVALID"),
        (
            with_tool(ToolSpec { input_schema_json: "{".into(), ..builtin("clock") }),
            Code::FailedPrecondition,
            "TOOL_INVALID",
        ),
    ];
    for (agent, code, reason) in cases {
        assert_eq!(refusal(init(&worker.client, &session(), &agent).await), refused(code, reason));
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_certificate_nobody_gets_in_where_one_is_demanded() {
    let options = RuntimeOptions { require_front_certificate: true, ..options() };
    let worker = worker_with(options, Providers::new().with(Scripted::new()), Builtins::default()).await;
    assert_eq!(init(&worker.client, &session(), &agent()).await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(checkpoint(&worker, &session()).await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(terminate(&worker, &session()).await.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test(start_paused = true)]
async fn another_tenants_session_is_refused_at_both_doors() {
    let worker = worker().await;
    let request = InitWorkerSessionRequest {
        session_id: session(),
        tenant: "hill".into(),
        agent: Some(agent()),
        provider: String::new(),
    };
    let outcome = worker.client.clone().init_worker_session(request).await;
    assert_eq!(refusal(outcome), refused(Code::PermissionDenied, "TENANT_MISMATCH"));

    let session_id = session();
    init(&worker.client, &session_id, &agent()).await.unwrap();
    let start = StepStart { tenant: "hill".into(), ..start(&session_id, text("hello")) };
    let status = Front::open(&worker.client, start).await.failure().await;
    assert_eq!((status.code(), reason(&status)), refused(Code::PermissionDenied, "TENANT_MISMATCH"));
}

/// A tool with a mistake in it.
struct Clumsy;

#[async_trait]
impl Tool for Clumsy {
    fn description(&self) -> &'static str {
        "Stumbles."
    }

    fn input_schema(&self) -> Value {
        json!({"type": "object"})
    }

    async fn call(&self, _: Invocation) -> Result<Vec<ContentBlock>, ToolError> {
        panic!("on purpose")
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_that_panics_ends_its_stream_at_once_behind_what_it_told_and_the_session_is_free() {
    let builtins = Builtins::default().with("clumsy", Clumsy);
    let worker = worker_with(options(), Providers::new().with(Scripted::new()), builtins).await;
    let (agent, session_id) = (AgentSpec { tools: vec![builtin("clumsy")], ..agent() }, session());
    init(&worker.client, &session_id, &agent).await.unwrap();
    let began = Instant::now();
    let steps = script(&json!([{"tool_call": {"name": "clumsy", "arguments": {}}}, {"text": "never"}]));
    let mut front = Front::open(&worker.client, start(&session_id, steps)).await;
    let status = loop {
        match front.next().await {
            Ok(message) => assert!(message.is_some(), "it ended in order: {:?}", front.heard),
            Err(status) => break status,
        }
    };
    assert_eq!((status.code(), reason(&status)), refused(Code::Internal, "STEP_BROKEN_OFF"));
    assert_eq!(front.heard.story(), ["started", "attempt", "message", "call"]);
    assert!(began.elapsed() < Duration::from_secs(1), "nobody waits for the turn's time to be over");

    let heard = Front::open(&worker.client, start(&session_id, text("hello"))).await.finish().await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    assert_eq!(worker.tasks.shutdown(Duration::from_secs(1)).await, 0, "nothing of it is left");
}

#[tokio::test(start_paused = true)]
async fn an_unknown_session_is_not_found_and_an_odd_id_is_malformed() {
    let worker = worker().await;
    let unknown = session();
    assert_eq!(refusal(checkpoint(&worker, &unknown).await), refused(Code::NotFound, "SESSION_UNKNOWN"));
    assert_eq!(refusal(checkpoint(&worker, "x").await), refused(Code::InvalidArgument, "MALFORMED"));
    assert!(!terminate(&worker, &unknown).await.unwrap(), "not an error");
    let status = Front::open(&worker.client, start(&unknown, text("hello"))).await.failure().await;
    assert_eq!((status.code(), reason(&status)), refused(Code::NotFound, "SESSION_UNKNOWN"));
}

#[tokio::test(start_paused = true)]
async fn a_step_that_makes_no_sense_is_refused() {
    let worker = worker().await;
    let session_id = session();
    init(&worker.client, &session_id, &agent()).await.unwrap();
    let nothing_to_do = start(&session_id, Vec::new());
    let no_turn = StepStart { turn_id: String::new(), ..start(&session_id, text("hello")) };
    for start in [nothing_to_do, no_turn] {
        let status = Front::open(&worker.client, start).await.failure().await;
        assert_eq!((status.code(), reason(&status)), refused(Code::InvalidArgument, "MALFORMED"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_that_is_never_started_is_given_up() {
    let worker = worker().await;
    let (requests, receiver) = tokio::sync::mpsc::channel(1);
    let receiver = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut responses = worker.client.clone().execute_step(receiver).await.unwrap().into_inner();
    let status = responses.message().await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), refused(Code::DeadlineExceeded, "START_MISSING"));
    drop(requests);
}

/// Running turns may wait for the lock under which agents are compiled.
#[tokio::test(start_paused = true)]
async fn a_full_worker_looks_at_no_agent_that_it_has_no_room_for() {
    let worker = small_worker(1).await;
    let (known, bad) = (session(), AgentSpec { tools: vec![builtin("spade")], ..agent() });
    init(&worker.client, &known, &agent()).await.unwrap();
    let outcome = init(&worker.client, &session(), &bad).await;
    assert_eq!(refusal(outcome), refused(Code::ResourceExhausted, "WORKER_FULL"));
    let outcome = init(&worker.client, &known, &bad).await;
    assert_eq!(refusal(outcome), refused(Code::FailedPrecondition, "TOOL_UNSUPPORTED"), "it has its place");
    tokio::time::sleep(Duration::from_mins(10)).await;
    let outcome = init(&worker.client, &session(), &bad).await;
    assert_eq!(refusal(outcome), refused(Code::FailedPrecondition, "TOOL_UNSUPPORTED"), "another would make room");
    assert_eq!(checkpoint(&worker, &known).await.unwrap(), None, "and is still there");
}

#[tokio::test(start_paused = true)]
async fn a_full_worker_says_so_and_has_room_after_a_session_ends() {
    let worker = small_worker(2).await;
    let [first, second, third] = [session(), session(), session()];
    init(&worker.client, &first, &agent()).await.unwrap();
    init(&worker.client, &second, &agent()).await.unwrap();
    let outcome = init(&worker.client, &third, &agent()).await;
    assert_eq!(refusal(outcome), refused(Code::ResourceExhausted, "WORKER_FULL"));
    init(&worker.client, &second, &agent()).await.expect("a session that it holds needs no further place");
    assert!(terminate(&worker, &first).await.unwrap());
    init(&worker.client, &third, &agent()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_session_that_was_idle_for_long_makes_room_but_a_running_one_never() {
    let worker = small_worker(2).await;
    let [running, idle, newcomer] = [session(), session(), session()];
    init(&worker.client, &running, &agent()).await.unwrap();
    init(&worker.client, &idle, &agent()).await.unwrap();
    let slow = script(&json!([{"delay_ms": 3_600_000}, {"text": "late"}]));
    let mut front = Front::open(&worker.client, start(&running, slow)).await;
    front.until_event(|kind| matches!(kind, Kind::StepStarted(_))).await;
    tokio::time::sleep(Duration::from_secs(599)).await;
    init(&worker.client, &newcomer, &agent()).await.expect_err("neither was idle for ten minutes");
    tokio::time::sleep(Duration::from_secs(2)).await;
    init(&worker.client, &newcomer, &agent()).await.unwrap();
    assert_eq!(refusal(checkpoint(&worker, &idle).await), refused(Code::NotFound, "SESSION_UNKNOWN"));
    checkpoint(&worker, &running).await.expect("the running one is held");
}

#[tokio::test(start_paused = true)]
async fn the_newest_state_can_be_asked_for() {
    let worker = worker().await;
    let session_id = session();
    init(&worker.client, &session_id, &agent()).await.unwrap();
    assert_eq!(checkpoint(&worker, &session_id).await.unwrap(), None);
    let heard = Front::open(&worker.client, start(&session_id, text("hello"))).await.finish().await;
    assert_eq!(checkpoint(&worker, &session_id).await.unwrap(), Some(heard.checkpoint()));
}

/// A conversation may have many MiB, and a worker holds a hundred sessions.
#[tokio::test(start_paused = true)]
async fn idle_sessions_keep_no_more_checkpoints_than_there_is_room_for_and_go_on_all_the_same() {
    const ROOM: usize = 4 * 1024 * 1024;
    let options = RuntimeOptions { checkpoint_bytes_max: ROOM, ..options() };
    let worker = worker_with(options, Providers::new().with(Scripted::new()), Builtins::default()).await;
    let mut idle = Vec::new();
    for _ in 0..10 {
        let session_id = session();
        init(&worker.client, &session_id, &agent()).await.unwrap();
        let input = [text("hello"), vec![picture(1024 * 1024)]].concat();
        let heard = Front::open(&worker.client, start(&session_id, input)).await.finish().await;
        idle.push((session_id, heard.checkpoint()));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let mut kept = Vec::new();
    for (session_id, newest) in &idle {
        let told = checkpoint(&worker, session_id).await.expect("it is known still");
        assert!(told.as_ref().is_none_or(|told| told == newest));
        kept.extend(told);
    }
    let bytes: usize = kept.iter().map(SessionCheckpoint::encoded_len).sum();
    assert!(bytes <= ROOM, "{bytes} bytes");
    let newest: Vec<_> = idle[7..].iter().map(|(_, newest)| newest.clone()).collect();
    assert_eq!(kept, newest, "those that were idle for longest went first");

    let (session_id, before) = idle[0].clone();
    let next = StepStart {
        turn_id: "turn-2".into(),
        checkpoint: Some(before.clone()),
        ..start(&session_id, text("and now?"))
    };
    let heard = Front::open(&worker.client, next).await.finish().await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    assert_eq!(heard.checkpoint().messages[..2], before.messages[..], "with all that was said before");
    assert_eq!(checkpoint(&worker, &session_id).await.unwrap(), Some(heard.checkpoint()), "it was used last");
    assert_eq!(checkpoint(&worker, &idle[7].0).await.unwrap(), None, "and another went for it");
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_is_more_than_all_the_room_is_not_kept() {
    let options = RuntimeOptions { checkpoint_bytes_max: 1024, ..options() };
    let worker = worker_with(options, Providers::new().with(Scripted::new()), Builtins::default()).await;
    let session_id = session();
    init(&worker.client, &session_id, &agent()).await.unwrap();
    let input = text(&"long ".repeat(1024));
    let heard = Front::open(&worker.client, start(&session_id, input)).await.finish().await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    assert_eq!(checkpoint(&worker, &session_id).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn terminating_a_session_ends_what_runs_and_forgets_it() {
    let worker = worker().await;
    let session_id = session();
    init(&worker.client, &session_id, &agent()).await.unwrap();
    let slow = script(&json!([{"text": "on and on", "token_delay_ms": 60_000}]));
    let mut front = Front::open(&worker.client, start(&session_id, slow)).await;
    front.until_event(|kind| matches!(kind, Kind::TextDelta(_))).await;
    assert!(terminate(&worker, &session_id).await.unwrap());
    let heard = front.finish().await;
    assert_eq!(heard.stop_reason(), StopReason::Terminated);
    assert!(!terminate(&worker, &session_id).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn what_happens_is_counted() {
    let worker = worker().await;
    let metrics = croft_serve::Metrics::new("croft-worker").unwrap();
    worker.server.register(&metrics).unwrap();
    let session_id = session();
    init(&worker.client, &session_id, &agent()).await.unwrap();
    let clock = json!({"tool_call": {"name": "clock"}});
    let steps = script(&json!([clock, {"text": "talk", "token_delay_ms": 60_000}]));
    let mut front = Front::open(&worker.client, start(&session_id, steps)).await;
    front.until_event(|kind| matches!(kind, Kind::ToolResult(_))).await;
    front.send(ToWorker::Cancel(StepCancel { stop_reason: StopReason::Interrupted.into() })).await;
    front.finish().await;
    let page = metrics.text().unwrap();
    for line in [
        r#"croft_worker_model_attempts_total{model="scripted-1",outcome="tool_use",provider="scripted"} 1"#,
        r#"croft_worker_tool_calls_total{outcome="ok"} 1"#,
        r#"croft_worker_steps_total{stop_reason="STOP_REASON_INTERRUPTED"} 1"#,
        "croft_worker_first_token_seconds_count 1",
        "croft_worker_sessions 1",
    ] {
        assert!(page.contains(line), "{line} is missing in\n{page}");
    }
}
