//! What a tool's server is told of the trace. By itself, as it makes trace ids in the whole process.

mod mcp_server;
mod support;

use croft_llm::Providers;
use croft_llm::scripted::Scripted;
use croft_proto::v1::tool_spec::Source;
use croft_proto::v1::{AgentSpec, McpTool, StopReason, ToolSpec};
use croft_serve::log;
use croft_serve::trace::Telemetry;
use croft_worker::tools::Builtins;
use croft_worker::{McpServer, RuntimeOptions};
use mcp_server::{Era, Server};
use serde_json::json;
use support::*;

#[tokio::test]
async fn a_server_is_told_to_which_trace_a_call_belongs() {
    let telemetry = Telemetry::start("croft-test", None).unwrap();
    let traced = log::subscriber("off", telemetry.tracer(), std::io::sink).unwrap();
    tracing::subscriber::set_global_default(traced).unwrap();
    let server = Server::start(Era::Stateless).await;
    let village = McpServer {
        name: "village".into(),
        url: server.url.clone(),
        token_file: None,
        user_tokens_folder: None,
        tools: Vec::new(),
    };
    let options = RuntimeOptions { mcp_servers: vec![village], ..options() };
    let worker = worker_with(options, Providers::new().with(Scripted::new()), Builtins::default()).await;
    let tool = McpTool { server_url: server.url.clone(), tool_name: String::new() };
    let add = ToolSpec { name: "add".into(), source: Some(Source::Mcp(tool)), ..ToolSpec::default() };
    let agent = AgentSpec { tools: vec![add], ..agent() };
    let call = |a: u32| json!({"tool_call": {"name": "add", "arguments": {"a": a, "b": 3}}});
    let heard = turn(&worker, &agent, script(&json!([call(1), call(2), {"text": "Done."}]))).await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    let told = server.traceparents();
    assert_eq!(told.len(), 2, "{told:?}");
    assert_ne!(told[0], told[1], "each call has a span of its own");
}
