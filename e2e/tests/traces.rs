//! One trace from a client through front and worker to what the worker calls. By itself, as it makes trace ids in the whole process.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

#[path = "traces/collector.rs"]
mod collector;
#[path = "in_process/liar.rs"]
mod liar;
#[path = "in_process/nap.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod nap;
#[path = "in_process/trace.rs"]
mod trace;
#[path = "in_process/world.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod world;

use std::sync::OnceLock;

use croft_e2e::client::{message, scripted_agent};
use croft_proto::v1::content_block::Block;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::tool_spec::Source;
use croft_proto::v1::{AgentSpec, BuiltinTool, Permission, ResolveApprovalRequest, SubAgentTool, ToolSpec};
use croft_serve::trace::Telemetry;
use croft_serve::{Tasks, log};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use tokio::runtime::Runtime;
use tonic::Request;

use collector::{Collector, attributes, hex};
use world::{World, read_all};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
/// The span of the client that calls.
const CALLER: &str = "b7ad6b7169203331";
const SCRIPT: &str = r#"{"script": [{"tool_call": {"name": "trace", "arguments": {}}}, {"text": "done"}]}"#;

/// What sends the spans of this process, and where to.
struct Traced {
    collector: Collector,
    /// Of the collector and the exporter: each test's own ends with it.
    _runtime: Runtime,
    _tasks: Tasks,
    _telemetry: Telemetry,
}

impl Traced {
    fn start() -> Self {
        let runtime = Runtime::new().unwrap();
        let (collector, tasks) = (Collector::default(), Tasks::new());
        let telemetry = runtime.block_on(async {
            let url = format!("http://{}", collector.serve(&tasks).await);
            Telemetry::start("croft-test", Some(&url)).unwrap()
        });
        let traced = log::subscriber("off", telemetry.tracer(), std::io::sink).unwrap();
        tracing::subscriber::set_global_default(traced).unwrap();
        Self { collector, _runtime: runtime, _tasks: tasks, _telemetry: telemetry }
    }
}

/// Makes trace ids and sends spans, as programs do.
fn trace_all() -> &'static Collector {
    static TRACED: OnceLock<Traced> = OnceLock::new();
    // On a thread of its own, since a runtime can't be made to wait within another.
    &TRACED.get_or_init(|| std::thread::spawn(Traced::start).join().unwrap()).collector
}

fn agent(permission: Permission) -> AgentSpec {
    let tool = |name: &str| ToolSpec {
        name: name.into(),
        source: Some(Source::Builtin(BuiltinTool { name: name.into() })),
        permission: permission.into(),
        ..ToolSpec::default()
    };
    AgentSpec { tools: vec![tool("trace"), tool("calculator")], ..scripted_agent("traced") }
}

/// A call of a client that traces.
fn of_trace<T>(message: T) -> Request<T> {
    of(TRACE, message)
}

fn of<T>(trace: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("traceparent", format!("00-{trace}-{CALLER}-01").parse().unwrap());
    request
}

/// What the tool was called in.
fn told(kind: &Kind) -> Option<&str> {
    let Kind::ToolResult(result) = kind else { return None };
    match &result.content[0].block {
        Some(Block::Text(text)) => Some(&text.text),
        _ => None,
    }
}

#[tokio::test]
async fn a_tool_is_called_in_the_trace_of_the_message_that_wanted_it() {
    trace_all();
    let world = World::start().await;
    let mut client = world.client();
    let session_id = client.create(agent(Permission::Allow)).await.unwrap().session_id;
    let sent = client.lifecycle.send_message(of_trace(message(&session_id, SCRIPT))).await.unwrap();
    let events = read_all(sent.into_inner()).await;
    let told = events.iter().find_map(|event| told(event.kind.as_ref()?)).unwrap();
    assert!(told.starts_with(&format!("00-{TRACE}-")), "{told:?}");
    assert!(!told.contains(CALLER), "under spans of ours");
}

/// A span of its own, so that a trace of a turn that waited for people for an hour is of the message's.
#[tokio::test]
async fn a_turn_stays_in_its_own_trace_when_somebody_else_answers_its_question() {
    trace_all();
    let world = World::start().await;
    let mut client = world.client();
    let session_id = client.create(agent(Permission::Ask)).await.unwrap().session_id;
    let mut events = client.lifecycle.send_message(of_trace(message(&session_id, SCRIPT))).await.unwrap().into_inner();
    let approval_id = loop {
        let event = events.message().await.unwrap().unwrap().event.unwrap();
        if let Some(Kind::ApprovalRequired(asked)) = event.kind {
            break asked.approval_id;
        }
    };
    let yes = ResolveApprovalRequest { session_id, approval_id, approved: true, ..Default::default() };
    client.lifecycle.resolve_approval(yes).await.unwrap();
    let events = read_all(events).await;
    let told = events.iter().find_map(|event| told(event.kind.as_ref()?)).unwrap();
    assert!(told.starts_with(&format!("00-{TRACE}-")), "{told:?}");
}

#[track_caller]
fn assert_says(span: &Span, expected: &[(&str, &str)]) {
    let said = attributes(span);
    for (name, value) in expected {
        assert_eq!(said.get(name).map(String::as_str), Some(*value), "{name} of {said:#?}");
    }
}

fn has_failed(span: &Span) -> bool {
    span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error)
}

/// From the client's span down: the names are in `docs/monitoring.md`.
#[tokio::test]
async fn a_message_comes_to_the_collector_as_one_trace_of_turn_model_and_tool() {
    const TRACE: &str = "11f7651916cd43dd8448eb211c80319c";
    const SCRIPT: &str =
        r#"{"script": [{"tool_call": {"name": "trace", "arguments": {"of": "quince"}}}, {"text": "medlar"}]}"#;
    let collector = trace_all();
    let world = World::start().await;
    let mut client = world.client();
    let session_id = client.create(agent(Permission::Allow)).await.unwrap().session_id;
    let sent = client.lifecycle.send_message(of(TRACE, message(&session_id, SCRIPT))).await.unwrap();
    let events = read_all(sent.into_inner()).await;
    let tool_call_id = events.iter().find_map(|event| match event.kind.as_ref()? {
        Kind::ToolCall(call) => Some(call.tool_call_id.clone()),
        _ => None,
    });

    let [message, turn] = ["croft.v1.LifecycleService/SendMessage", "invoke_agent traced"];
    let [step, chat, tool] = ["croft.v1.RuntimeService/ExecuteStep", "chat scripted-1", "execute_tool trace"];
    let trace = collector.trace(TRACE, &[message, turn, step, chat, tool]).await;
    let [message, turn, step, tool] = [message, turn, step, tool].map(|name| trace.one(name));
    let chats = trace.all(chat);
    assert_eq!(chats.len(), 2, "{trace:#?}");
    assert_eq!(hex(&message.parent_span_id), CALLER);
    assert_eq!(turn.parent_span_id, message.span_id);
    assert_eq!(step.parent_span_id, turn.span_id);
    for child in [chats[0], chats[1], tool] {
        assert_eq!(child.parent_span_id, step.span_id, "{child:#?}");
    }

    assert_says(message, &[("rpc.system", "grpc"), ("rpc.method", "SendMessage"), ("rpc.grpc.status_code", "0")]);
    assert_says(
        turn,
        &[
            ("gen_ai.operation.name", "invoke_agent"),
            ("gen_ai.agent.name", "traced"),
            ("gen_ai.conversation.id", &session_id),
        ],
    );
    for (chat, reasons) in chats.iter().zip(["[tool_use]", "[end_turn]"]) {
        assert_eq!(chat.kind(), SpanKind::Client);
        assert_says(
            chat,
            &[
                ("gen_ai.operation.name", "chat"),
                ("gen_ai.provider.name", "scripted"),
                ("gen_ai.request.model", "scripted-1"),
                ("gen_ai.response.model", "scripted-1"),
                ("gen_ai.response.id", "scripted"),
                ("gen_ai.response.finish_reasons", reasons),
                ("gen_ai.conversation.id", &session_id),
                ("gen_ai.agent.name", "traced"),
                ("gen_ai.usage.cache_read.input_tokens", "0"),
                ("gen_ai.usage.cache_creation.input_tokens", "0"),
                ("gen_ai.usage.reasoning.output_tokens", "0"),
            ],
        );
        let said = attributes(chat);
        for name in ["gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"] {
            assert!(said[name].parse::<i64>().unwrap() > 0, "{name} of {said:#?}");
        }
        assert!(said["gen_ai.response.time_to_first_chunk"].parse::<f64>().unwrap() > 0.0, "{said:#?}");
    }
    assert_says(
        tool,
        &[
            ("gen_ai.operation.name", "execute_tool"),
            ("gen_ai.tool.name", "trace"),
            ("gen_ai.tool.call.id", &tool_call_id.unwrap()),
        ],
    );
    for span in [message, turn, step, chats[0], chats[1], tool] {
        assert!(!has_failed(span), "{span:#?}");
        assert!(!attributes(span).contains_key("error.type"), "{span:#?}");
    }
    let said = trace.said();
    assert!(!said.contains("quince") && !said.contains("medlar"), "what was said is nobody's: {said}");
}

#[tokio::test]
async fn a_model_or_a_tool_that_fails_is_a_span_that_failed() {
    const TRACE: &str = "22f7651916cd43dd8448eb211c80319c";
    const SCRIPT: &str = r#"{"script": [
        {"tool_call": {"name": "calculator", "arguments": {"expression": "1 / 0"}}},
        {"error": {"class": "auth", "message": "the key quince is no key"}}
    ]}"#;
    let collector = trace_all();
    let world = World::start().await;
    let mut client = world.client();
    let session_id = client.create(agent(Permission::Allow)).await.unwrap().session_id;
    let sent = client.lifecycle.send_message(of(TRACE, message(&session_id, SCRIPT))).await.unwrap();
    read_all(sent.into_inner()).await;

    let [step, chat, tool] = ["croft.v1.RuntimeService/ExecuteStep", "chat scripted-1", "execute_tool calculator"];
    let trace = collector.trace(TRACE, &[step, chat, tool]).await;
    let tool = trace.one(tool);
    assert!(has_failed(tool), "{tool:#?}");
    assert_says(tool, &[("error.type", "tool_error")]);
    let chats = trace.all(chat);
    let [answered, failed] = chats[..] else { panic!("not two calls in {trace:#?}") };
    assert!(!has_failed(answered), "{answered:#?}");
    assert!(has_failed(failed), "{failed:#?}");
    assert_says(failed, &[("error.type", "auth"), ("gen_ai.request.model", "scripted-1")]);
    let said = attributes(failed);
    assert!(!said.contains_key("gen_ai.response.finish_reasons"), "{said:#?}");
    assert!(!said.contains_key("gen_ai.usage.input_tokens"), "nothing was told: {said:#?}");
    assert!(!trace.said().contains("quince"), "{trace:#?}");
}

#[tokio::test]
async fn a_sub_agent_runs_in_the_trace_of_the_turn_that_calls_it() {
    const TRACE: &str = "33f7651916cd43dd8448eb211c80319c";
    const SCRIPT: &str =
        r#"{"script": [{"tool_call": {"name": "scout", "arguments": {"message": "look"}}}, {"text": "done"}]}"#;
    let scout = Some(Source::SubAgent(SubAgentTool { agent: "scout".into() }));
    let agent = AgentSpec {
        tools: vec![ToolSpec { name: "scout".into(), source: scout, ..ToolSpec::default() }],
        sub_agents: vec![scripted_agent("scout")],
        ..scripted_agent("editor")
    };
    let collector = trace_all();
    let world = World::start().await;
    let mut client = world.client();
    let session_id = client.create(agent).await.unwrap().session_id;
    let sent = client.lifecycle.send_message(of(TRACE, message(&session_id, SCRIPT))).await.unwrap();
    read_all(sent.into_inner()).await;
    let [editor, scout] = ["invoke_agent editor", "invoke_agent scout"];
    let trace = collector.trace(TRACE, &[editor, scout]).await;
    assert_eq!(trace.one(scout).parent_span_id, trace.one(editor).span_id);
}
