//! Tools of a real MCP server, in this process on loopback.

#![expect(clippy::unwrap_used, reason = "a helper of tests may fail loudly")]

mod mcp_server;
mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use croft_llm::Providers;
use croft_llm::scripted::Scripted;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::tool_spec::Source;
use croft_proto::v1::{
    AgentSpec, ArgumentMatch, McpTool, Permission, PermissionRule, StepStart, StopReason, ToolCall, ToolResult,
    ToolSpec,
};
use croft_serve::log;
use croft_serve::trace::Telemetry;
use croft_worker::tools::Builtins;
use croft_worker::{McpServer, RuntimeOptions};
use mcp_server::{Era, Server};
use serde_json::{Value, json};
use support::*;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::time::timeout;
use wiremock::{Mock, MockServer, ResponseTemplate};

const TOKEN: &str = "a-made-up-token";

fn declared(server: &Server) -> McpServer {
    McpServer {
        name: "village".into(),
        url: server.url.clone(),
        token_file: None,
        user_tokens_folder: None,
        tools: Vec::new(),
    }
}

async fn worker_of(server: McpServer) -> Worker {
    let options = RuntimeOptions { mcp_servers: vec![server], ..options() };
    worker_with(options, Providers::new().with(Scripted::new()), Builtins::default()).await
}

fn tool(url: &str, name: &str) -> ToolSpec {
    let source = Some(Source::Mcp(McpTool { server_url: url.into(), tool_name: String::new() }));
    ToolSpec { name: name.into(), source, timeout_ms: 30_000, ..ToolSpec::default() }
}

fn agent_with(url: &str) -> AgentSpec {
    let tools = ["add", "hang", "huge", "fail", "whoami", "missing"].map(|name| tool(url, name));
    AgentSpec { tools: tools.into(), ..agent() }
}

fn call(name: &str, arguments: &Value) -> Value {
    json!({"tool_call": {"name": name, "arguments": arguments}})
}

/// One turn in which the model makes these calls at once, and their results in its order.
async fn called(worker: &Worker, agent: &AgentSpec, calls: &[Value]) -> (Vec<ToolResult>, Heard) {
    let steps: Vec<Value> = calls.iter().cloned().chain([json!({"text": "Done."})]).collect();
    let heard = turn(worker, agent, script(&json!(steps))).await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    let of_call = |call: &ToolCall| {
        let mut results = heard.durables.iter().filter_map(|kind| match kind {
            Kind::ToolResult(result) if result.tool_call_id == call.tool_call_id => Some(result.clone()),
            _ => None,
        });
        results.next_back()
    };
    let calls = heard.durables.iter().filter_map(|kind| match kind {
        Kind::ToolCall(call) => Some(call),
        _ => None,
    });
    let results = calls.filter_map(of_call).collect();
    (results, heard)
}

/// What was logged. Clones share it.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn told(result: &ToolResult) -> (String, bool) {
    (texts(&result.content), result.is_error)
}

#[tokio::test]
async fn calls_run_side_by_side_and_each_has_its_own_result() {
    let server = Server::start(Era::Stateless).await;
    let worker = worker_of(declared(&server)).await;
    let calls: Vec<_> =
        (0..8).map(|number| call("add", &json!({"a": number, "b": 1, "wait_ms": 800 - 100 * number}))).collect();
    let (results, heard) = called(&worker, &agent_with(&server.url), &calls).await;
    let sums: Vec<_> = results.iter().map(told).collect();
    let expected: Vec<_> = (1..=8).map(|sum| (sum.to_string(), false)).collect();
    assert_eq!(sums, expected);
    assert!(server.at_once() >= 4, "{} at once", server.at_once());
    let keys = heard.durables.iter().filter_map(|kind| match kind {
        Kind::ToolCall(call) => Some(call.idempotency_key.clone()),
        _ => None,
    });
    let (mut sent, mut seen): (Vec<_>, _) = (keys.collect(), server.idempotency_keys());
    sent.sort();
    seen.sort();
    assert_eq!(sent, seen, "each call tells its key");
}

#[tokio::test]
async fn a_server_of_the_older_era_is_spoken_to_as_it_wants() {
    let server = Server::start(Era::Sessions).await;
    let worker = worker_of(declared(&server)).await;
    let (results, _) = called(&worker, &agent_with(&server.url), &[call("add", &json!({"a": 2, "b": 3}))]).await;
    assert_eq!(told(&results[0]), ("5".into(), false));
}

#[tokio::test]
async fn a_server_that_is_silent_to_what_it_does_not_know_is_taken_for_one_of_the_older_era() {
    let server = Server::start(Era::SilentSessions).await;
    let worker = worker_of(declared(&server)).await;
    let (results, _) = called(&worker, &agent_with(&server.url), &[call("add", &json!({"a": 2, "b": 3}))]).await;
    assert_eq!(told(&results[0]), ("5".into(), false));
}

/// Each call opened a connection of its own, and none had the time for it.
#[tokio::test]
async fn a_call_whose_time_is_over_leaves_the_connection_to_the_next_one() {
    let server = Server::start(Era::SilentSessions).await;
    let worker = worker_of(declared(&server)).await;
    let mut agent = agent_with(&server.url);
    // The server is silent for longer than that to what it does not know.
    agent.tools[0].timeout_ms = 8_000;
    let add = call("add", &json!({"a": 2, "b": 3}));
    let calls = [add.clone(), json!({"text": "Again."}), add];
    let (results, _) = called(&worker, &agent, &calls).await;
    let late = "The tool could not be reached within 8000 ms; the call was not made.";
    assert_eq!(results.iter().map(told).collect::<Vec<_>>(), [(late.into(), true), ("5".into(), false)]);
    worker.tasks.shutdown(Duration::from_secs(90)).await;
    assert_eq!(server.ended_sessions(), 1, "one connection was opened, and is closed");
}

/// Calls under way in a session that expired were told as refused, and so as safe to make again.
#[tokio::test]
async fn a_session_that_expires_disturbs_no_call_under_way_and_none_is_made_twice() {
    let server = Server::start(Era::Sessions).await;
    server.expire_sessions_after(2);
    let worker = worker_of(declared(&server)).await;
    let sum = |a: u64| call("add", &json!({"a": a, "b": 1, "wait_ms": 500}));
    let (results, _) = called(&worker, &agent_with(&server.url), &[sum(1), sum(2)]).await;
    let sums: Vec<_> = results.iter().map(told).collect();
    assert_eq!(sums, [("2".into(), false), ("3".into(), false)]);
    assert_eq!(server.calls(), 2);
}

#[tokio::test]
async fn a_worker_that_shuts_down_ends_its_sessions_at_servers_first() {
    let server = Server::start(Era::Sessions).await;
    let worker = worker_of(declared(&server)).await;
    let (results, _) = called(&worker, &agent_with(&server.url), &[call("add", &json!({"a": 2, "b": 3}))]).await;
    assert_eq!(told(&results[0]), ("5".into(), false));
    worker.tasks.shutdown(Duration::from_secs(90)).await;
    assert_eq!(server.ended_sessions(), 1);
}

#[tokio::test]
async fn nothing_is_left_of_a_call_at_a_server_that_accepts_and_says_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    let silent = McpServer {
        name: "well".into(),
        url: url.clone(),
        token_file: None,
        user_tokens_folder: None,
        tools: Vec::new(),
    };
    let worker = worker_of(silent).await;
    let mut agent = agent_with(&url);
    agent.tools[0].timeout_ms = 3_000;
    let calls = [call("add", &json!({"a": 1, "b": 1}))];
    let both = async { tokio::join!(called(&worker, &agent, &calls), listener.accept()) };
    let ((results, _), accepted) = timeout(Duration::from_secs(90), both).await.expect("it is called");
    assert_eq!(
        told(&results[0]),
        ("The tool could not be reached within 3000 ms; the call was not made.".into(), true)
    );
    let mut heard = Vec::new();
    let closing = timeout(Duration::from_secs(90), accepted.unwrap().0.read_to_end(&mut heard)).await;
    closing.expect("it is closed").unwrap();
    assert!(String::from_utf8_lossy(&heard).contains("server/discover"), "it was asked");
}

#[tokio::test]
async fn the_declared_token_goes_to_its_server_and_nowhere_else_and_a_new_one_needs_no_restart() {
    let server = Server::start(Era::Stateless).await;
    let folder = tempfile::tempdir().unwrap();
    let token_file = folder.path().join("mcp-village");
    let worker = worker_of(McpServer { token_file: Some(token_file.clone()), ..declared(&server) }).await;
    let agent = agent_with(&server.url);
    let who = [call("whoami", &json!({}))];
    let (results, _) = called(&worker, &agent, &who).await;
    assert_eq!(told(&results[0]), ("The credential for the tool's server village is not there.".into(), true));
    for token in [TOKEN, "another-token"] {
        std::fs::write(&token_file, format!("{token}\n")).unwrap();
        let (results, heard) = called(&worker, &agent, &who).await;
        assert_eq!(told(&results[0]), (format!("{} characters", "Bearer ".len() + token.len()), false));
        assert_eq!(server.last_authorization().as_deref(), Some(format!("Bearer {token}").as_str()));
        assert!(!format!("{heard:?}").contains(token));
    }
}

#[tokio::test]
async fn a_token_that_the_server_repeats_is_in_no_event_and_the_model_does_not_see_it() {
    let server = Server::start(Era::Stateless).await;
    let folder = tempfile::tempdir().unwrap();
    let token_file = folder.path().join("mcp-village");
    std::fs::write(&token_file, TOKEN).unwrap();
    let worker = worker_of(McpServer { token_file: Some(token_file), ..declared(&server) }).await;
    let names = ["echo", "confess", "describe", "rebuff"];
    let agent = AgentSpec { tools: names.map(|name| tool(&server.url, name)).into(), ..agent() };
    let (results, heard) = called(&worker, &agent, &names.map(|name| call(name, &json!({})))).await;
    let told: Vec<_> = results.iter().map(told).collect();
    let (rebuffed, told) = told.split_last().unwrap();
    let expected = [
        ("You sent Bearer ***.".to_owned(), false),
        ("Bearer ***".to_owned(), true),
        (r#"{"authorization":"Bearer ***"}"#.to_owned(), false),
    ];
    assert_eq!(told, expected);
    assert!(rebuffed.0.ends_with("xBearer ***") && rebuffed.1, "{rebuffed:?}");
    assert_eq!(server.last_authorization(), Some(format!("Bearer {TOKEN}")));
    assert!(!format!("{heard:?}").contains("a-made"), "{heard:?}");
}

#[tokio::test]
async fn a_token_that_a_refusal_at_the_door_repeats_is_not_in_the_log() {
    let written = Log::default();
    let telemetry = Telemetry::start("croft-test", None).unwrap();
    let writer = written.clone();
    // What the library itself logs is not ours to word.
    let lines = log::subscriber("croft_worker=info", telemetry.tracer(), move || writer.clone()).unwrap();
    let _logging = tracing::subscriber::set_default(lines);
    let server = MockServer::start().await;
    let refusal = ResponseTemplate::new(401).set_body_string(format!("Bearer {TOKEN} is a stranger."));
    Mock::given(wiremock::matchers::any()).respond_with(refusal).mount(&server).await;
    let folder = tempfile::tempdir().unwrap();
    let token_file = folder.path().join("mcp-village");
    std::fs::write(&token_file, TOKEN).unwrap();
    let village = McpServer {
        name: "village".into(),
        url: format!("{}/mcp", server.uri()),
        token_file: Some(token_file),
        user_tokens_folder: None,
        tools: Vec::new(),
    };
    let agent = agent_with(&village.url);
    let worker = worker_of(village).await;
    let (results, _) = called(&worker, &agent, &[call("add", &json!({"a": 1, "b": 1}))]).await;
    let sentence = "The tool's server village can't be reached; the call was not made.";
    assert_eq!(told(&results[0]), (sentence.into(), true));
    let text = written.text();
    assert!(text.contains("Bearer *** is a stranger."), "{text}");
    assert!(!text.contains(TOKEN), "{text}");
}

#[tokio::test]
async fn each_user_has_a_credential_of_their_own_and_nobody_takes_anothers() {
    let server = Server::start(Era::Stateless).await;
    let folder = tempfile::tempdir().unwrap();
    let both = McpServer {
        token_file: Some(folder.path().join("the-tenants")),
        user_tokens_folder: Some(folder.path().to_owned()),
        ..declared(&server)
    };
    for (file, token) in [("the-tenants", TOKEN), ("oidc.corp.ann", "anns-token"), ("oidc.corp.bob", "bobs-token")] {
        std::fs::write(folder.path().join(file), token).unwrap();
    }
    let worker = worker_of(both).await;
    let agent = agent_with(&server.url);
    for (user, expected) in [
        ("oidc/corp/ann", Some("anns-token")),
        ("oidc/corp/bob", Some("bobs-token")),
        ("oidc/corp/eve", None),
        ("", None),
    ] {
        let session_id = session();
        init(&worker.client, &session_id, &agent).await.unwrap();
        let calls_before = server.calls();
        let steps = script(&json!([call("whoami", &json!({})), {"text": "Done."}]));
        let begun = StepStart { user: user.into(), ..start(&session_id, steps) };
        let heard = Front::open(&worker.client, begun).await.finish().await;
        assert_eq!(heard.stop_reason(), StopReason::EndTurn);
        let result = heard.durables.iter().find_map(|kind| match kind {
            Kind::ToolResult(result) => Some(told(result)),
            _ => None,
        });
        if let Some(token) = expected {
            assert_eq!(server.last_authorization(), Some(format!("Bearer {token}")));
            assert!(result.is_some_and(|(_, is_error)| !is_error));
        } else {
            let sentence =
                "The user has no credential of their own for the tool's server village; the call was not made.";
            assert_eq!(result, Some((sentence.to_owned(), true)));
            assert_eq!(server.calls(), calls_before, "nothing is sent in another's name");
        }
        assert!(!format!("{heard:?}").contains("-token"), "{heard:?}");
    }
}

#[tokio::test]
async fn only_declared_servers_and_their_listed_tools_may_be_used() {
    let server = Server::start(Era::Stateless).await;
    let worker = worker_of(McpServer { tools: vec!["add".into()], ..declared(&server) }).await;
    let open = async |tool| {
        let agent = AgentSpec { tools: vec![tool], ..agent() };
        init(&worker.client, &session(), &agent).await.map_err(|status| reason(&status))
    };
    assert_eq!(open(tool(&server.url, "add")).await, Ok(()));
    let unsupported = Err("TOOL_UNSUPPORTED".to_owned());
    assert_eq!(open(tool(&server.url, "whoami")).await, unsupported);
    assert_eq!(open(tool("http://127.0.0.1:9/mcp", "add")).await, unsupported);
    let renamed = Some(Source::Mcp(McpTool { server_url: server.url.clone(), tool_name: "add".into() }));
    assert_eq!(open(ToolSpec { name: "sum".into(), source: renamed, ..ToolSpec::default() }).await, Ok(()));
}

#[tokio::test]
async fn a_tool_that_hangs_or_floods_is_cut_off_and_the_others_are_not_disturbed() {
    let server = Server::start(Era::Stateless).await;
    let worker = worker_of(declared(&server)).await;
    let mut agent = agent_with(&server.url);
    agent.tools[1].timeout_ms = 3_000;
    let calls =
        [call("hang", &json!({})), call("huge", &json!({"megabytes": 100})), call("add", &json!({"a": 1, "b": 1}))];
    let (results, _) = called(&worker, &agent, &calls).await;
    assert_eq!(
        told(&results[0]),
        ("The tool gave no result within 3000 ms; the call may have taken effect.".into(), true)
    );
    let (flooded, is_error) = told(&results[1]);
    assert!(is_error && flooded.contains("no usable answer within 4 MiB"), "{flooded}");
    assert_eq!(told(&results[2]), ("2".into(), false));
    // What fits the wire is cut to what fits the model.
    let (results, _) = called(&worker, &agent, &[call("huge", &json!({"megabytes": 1}))]).await;
    let (cut, is_error) = told(&results[0]);
    assert!(!is_error && cut.len() < 300 * 1024 && cut.contains("[cut: "), "{} bytes", cut.len());
}

#[tokio::test]
async fn what_goes_wrong_is_told_to_the_model_in_a_sentence() {
    let server = Server::start(Era::Stateless).await;
    let worker = worker_of(declared(&server)).await;
    let mut agent = agent_with(&server.url);
    agent.tools[0].input_schema_json = r#"{"type":"object","required":["a","b"]}"#.into();
    agent.tools.push(tool(&server.url, "collapse"));
    let calls = [
        call("fail", &json!({})),
        call("missing", &json!({})),
        call("add", &json!({"a": 1})),
        call("add", &json!("{\"a\": 1,")),
        call("nowhere", &json!({})),
        call("collapse", &json!({})),
    ];
    let (results, _) = called(&worker, &agent, &calls).await;
    let told: Vec<_> = results.iter().map(told).collect();
    assert!(told.iter().all(|(_, is_error)| *is_error), "{told:?}");
    let expected = [
        "The well is dry.",
        "refused the call: no tool missing",
        "do not fit",
        "not valid JSON",
        "There is no tool",
        "failed, and the call may have taken effect: the well fell in",
    ];
    for ((sentence, _), expected) in told.iter().zip(expected) {
        assert!(sentence.contains(expected), "{sentence}: {expected}");
    }
    assert_eq!(server.calls(), 3, "what does not fit is not sent");
}

#[tokio::test]
async fn a_server_that_is_not_there_costs_a_call_and_not_the_turn() {
    let server = Server::start(Era::Stateless).await;
    let url = server.url.clone();
    let worker = worker_of(declared(&server)).await;
    server.stop().await;
    let (results, _) = called(&worker, &agent_with(&url), &[call("add", &json!({"a": 1, "b": 1}))]).await;
    let sentence = "The tool's server village can't be reached; the call was not made.";
    assert_eq!(told(&results[0]), (sentence.into(), true));
}

#[tokio::test]
async fn rules_decide_by_arguments_and_the_models_hears_why() {
    let server = Server::start(Era::Stateless).await;
    let worker = worker_of(declared(&server)).await;
    let rule = |path: &str, pattern: &str, permission: Permission, message: &str| PermissionRule {
        tool: "add".into(),
        arguments: vec![ArgumentMatch { path: path.into(), pattern: pattern.into() }],
        permission: permission.into(),
        message: message.into(),
    };
    let permission_rules = vec![
        rule("/a", "^[0-9]$", Permission::Allow, ""),
        rule("/b", "^13$", Permission::Deny, "Thirteen is not added in this village."),
    ];
    let agent = AgentSpec { permission_rules, ..agent_with(&server.url) };
    let calls = [
        call("add", &json!({"a": 1, "b": 13})),
        call("add", &json!({"a": 1, "b": 12})),
        call("add", &json!({"a": 1, "b": 13.0})),
    ];
    let (results, _) = called(&worker, &agent, &calls).await;
    assert_eq!(told(&results[0]), ("Thirteen is not added in this village.".into(), true));
    assert_eq!((told(&results[1]), server.calls()), (("13".into(), false), 1));
    assert_eq!(told(&results[2]), told(&results[0]), "however it is written");
}

#[tokio::test]
async fn an_interrupted_call_is_given_up_at_once() {
    use croft_proto::v1::StepCancel;
    use croft_proto::v1::execute_step_request::Message as ToWorker;
    let server = Server::start(Era::Stateless).await;
    let worker = worker_of(declared(&server)).await;
    let session_id = session();
    init(&worker.client, &session_id, &agent_with(&server.url)).await.unwrap();
    let steps = script(&json!([call("hang", &json!({})), {"text": "never"}]));
    let mut front = Front::open(&worker.client, start(&session_id, steps)).await;
    front.until_event(|kind| matches!(kind, Kind::ToolCall(_))).await;
    server.until_calls(1).await;
    front.send(ToWorker::Cancel(StepCancel { stop_reason: StopReason::Interrupted.into() })).await;
    let heard = tokio::time::timeout(Duration::from_secs(90), front.finish()).await.expect("it ends");
    assert_eq!(heard.stop_reason(), StopReason::Interrupted);
}
