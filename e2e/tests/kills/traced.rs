//! What programs are told by `--otlp-endpoint`: one trace from a client's `traceparent` through the front and the worker.

use std::time::Duration;

use croft_e2e::client::{message, scripted_agent};
use croft_e2e::steady::steady;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::tool_spec::Source;
use croft_proto::v1::{AgentSpec, BuiltinTool, ToolSpec};
use croft_serve::Tasks;
use tonic::Request;

use crate::collector::{Collector, hex};
use crate::stage::{Flags, Stage};

const TRACE: &str = "44f7651916cd43dd8448eb211c80319c";
/// The span of the client that calls.
const CALLER: &str = "b7ad6b7169203331";
/// A lease is of 1.5 s.
const STALL: Duration = Duration::from_millis(500);
const SCRIPT: &str = r#"{"script": [{"tool_call": {"name": "clock"}}, {"text": "done"}]}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn front_and_worker_send_a_message_to_the_collector_as_one_trace() {
    // A turn that changes hands while the machine stands still has more than one span of a kind.
    steady(STALL, one_trace).await;
}

async fn one_trace() {
    let (collector, tasks) = (Collector::default(), Tasks::new());
    let flag = format!("--otlp-endpoint=http://{}", collector.serve(&tasks).await);
    let stage = Stage::told(&Flags { fronts: vec![flag.clone()], workers: vec![flag] }).await;
    let mut client = stage.clients().swap_remove(0);
    let clock = Some(Source::Builtin(BuiltinTool { name: "clock".into() }));
    let clock = ToolSpec { name: "clock".into(), source: clock, ..ToolSpec::default() };
    let agent = AgentSpec { tools: vec![clock], ..scripted_agent("traced") };
    let session_id = client.create(agent).await.unwrap().session_id;
    let mut request = Request::new(message(&session_id, SCRIPT));
    request.metadata_mut().insert("traceparent", format!("00-{TRACE}-{CALLER}-01").parse().unwrap());
    let mut events = client.lifecycle.send_message(request).await.unwrap().into_inner();
    let mut is_over = false;
    while let Some(response) = events.message().await.unwrap() {
        is_over |= matches!(response.event.unwrap().kind, Some(Kind::SessionIdle(_)));
    }
    assert!(is_over, "the turn comes to its end");

    let of_front = ["croft.v1.LifecycleService/SendMessage", "invoke_agent traced"];
    let of_worker = ["croft.v1.RuntimeService/ExecuteStep", "execute_tool clock", "chat scripted-1"];
    let trace = collector.trace(TRACE, &[&of_front[..], &of_worker].concat()).await;
    let ([message, turn], [step, tool, chat]) = (of_front, of_worker);
    let [message, turn, step, tool] = [message, turn, step, tool].map(|name| trace.one(name));
    let parents = [
        (message, CALLER.to_owned()),
        (turn, hex(&message.span_id)),
        (step, hex(&turn.span_id)),
        (tool, hex(&step.span_id)),
    ];
    for (span, parent) in parents {
        assert_eq!(hex(&span.parent_span_id), parent, "{span:#?}");
    }
    let chats = trace.all(chat);
    assert_eq!(chats.len(), 2, "{trace:#?}");
    for chat in chats {
        assert_eq!(chat.parent_span_id, step.span_id, "{chat:#?}");
    }
    stage.strike().await;
    tasks.stopping().cancel();
}
