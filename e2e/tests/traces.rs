//! One trace from a client through front and worker to what the worker calls. By itself, as it makes trace ids in the whole process.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

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

use std::sync::Once;

use croft_e2e::client::{message, scripted_agent};
use croft_proto::v1::content_block::Block;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::tool_spec::Source;
use croft_proto::v1::{AgentSpec, BuiltinTool, Permission, ResolveApprovalRequest, ToolSpec};
use croft_serve::log;
use croft_serve::trace::Telemetry;
use tonic::Request;

use world::{World, read_all};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SCRIPT: &str = r#"{"script": [{"tool_call": {"name": "trace", "arguments": {}}}, {"text": "done"}]}"#;

/// Makes trace ids, as programs do.
fn trace_all() {
    static DONE: Once = Once::new();
    DONE.call_once(|| {
        let telemetry = Telemetry::start("croft-test", None).unwrap();
        let traced = log::subscriber("off", telemetry.tracer(), std::io::sink).unwrap();
        tracing::subscriber::set_global_default(traced).unwrap();
    });
}

fn agent(permission: Permission) -> AgentSpec {
    let tool = ToolSpec {
        name: "trace".into(),
        source: Some(Source::Builtin(BuiltinTool { name: "trace".into() })),
        permission: permission.into(),
        ..ToolSpec::default()
    };
    AgentSpec { tools: vec![tool], ..scripted_agent("traced") }
}

/// A call of a client that traces.
fn of_trace<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("traceparent", format!("00-{TRACE}-b7ad6b7169203331-01").parse().unwrap());
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
    assert!(!told.contains("b7ad6b7169203331"), "under spans of ours");
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
