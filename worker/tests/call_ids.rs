//! The ids of tool calls: whatever a provider gives, no two calls of a session share one, since approvals, keys of idempotency
//! and sub-agents hang on them.

#![expect(clippy::unwrap_used, reason = "a helper of tests may fail loudly")]

mod support;

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use croft_llm::anthropic::Anthropic;
use croft_llm::openai::Chat;
use croft_llm::{Delta, DeltaStream, Limits, Provider, Providers, Request, Settings, Stop};
use croft_proto::v1::content_block::Block;
use croft_proto::v1::execute_step_request::Message as ToWorker;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    AgentLimits, AgentSpec, ApprovalResolved, ContentBlock, Message, Permission, Role, SessionCheckpoint, StepStart,
    StopReason, ToolCall, ToolOutput, ToolSpec, ToolUse,
};
use croft_worker::tools::Builtins;
use futures::{StreamExt as _, stream};
use secrecy::SecretString;
use serde_json::{Value, json};
use support::*;
use wiremock::matchers::path;
use wiremock::{Mock, MockServer, Respond, ResponseTemplate};

/// The body of an answer of Chat Completions.
fn streamed(delta: &Value, finish_reason: &str) -> ResponseTemplate {
    let chunk = |delta: &Value, finish_reason: Option<&str>| json!({"id": "c", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]});
    let (said, ended) = (chunk(delta, None), chunk(&json!({}), Some(finish_reason)));
    let body = format!("data: {said}\n\ndata: {ended}\n\ndata: [DONE]\n\n");
    ResponseTemplate::new(200).set_body_raw(body, "text/event-stream")
}

/// A server that asks for the spade so often, without an id, and then has done.
async fn without_ids(calls: u64) -> MockServer {
    let server = MockServer::start().await;
    let call = json!({"tool_calls": [{"index": 0, "function": {"name": "spade", "arguments": "{\"depth\":1}"}}]});
    for (answer, times) in [(streamed(&call, "tool_calls"), calls), (streamed(&json!({"content": "done"}), "stop"), 1)]
    {
        Mock::given(path("/v1/chat/completions")).respond_with(answer).up_to_n_times(times).mount(&server).await;
    }
    server
}

fn chat(server: &MockServer) -> Chat {
    let api_key = SecretString::from("sk-of-nobody").into();
    Chat::new(Settings { base_url: server.uri(), api_key, limits: Limits::default() }).unwrap()
}

/// So little room that each call but the first is asked for with equally few messages.
fn narrow(agent: AgentSpec) -> AgentSpec {
    let limits = AgentLimits { context_tokens_max: 1, ..AgentLimits::default() };
    AgentSpec { limits: Some(limits), ..agent }
}

fn agent() -> AgentSpec {
    AgentSpec { model: "m".into(), tools: vec![builtin("spade")], ..support::agent() }
}

async fn worker(provider: impl Provider + 'static, spade: &Spade) -> Worker {
    let builtins = Builtins::default().with("spade", spade.clone());
    worker_with(options(), Providers::new().with(provider), builtins).await
}

fn calls(heard: &Heard) -> Vec<ToolCall> {
    let call = |kind: &Kind| match kind {
        Kind::ToolCall(call) => Some(call.clone()),
        _ => None,
    };
    heard.durables.iter().filter_map(call).collect()
}

#[tokio::test]
async fn a_yes_to_one_call_is_none_to_another_though_the_endpoint_tells_them_not_apart() {
    let server = without_ids(3).await;
    let spade = Spade::default();
    let worker = worker(chat(&server), &spade).await;
    let asks = ToolSpec { permission: Permission::Ask.into(), ..builtin("spade") };
    let agent = narrow(AgentSpec { tools: vec![asks], ..agent() });
    let session_id = session();
    init(&worker.client, &session_id, &agent).await.unwrap();
    let mut front = Front::open(&worker.client, start(&session_id, text("dig"))).await;
    (front.provider, front.model) = ("openai".into(), "m".into());
    let mut approval_ids = BTreeSet::new();
    for approved in [true, true, false] {
        let asked = front.until_event(|kind| matches!(kind, Kind::ApprovalRequired(_))).await;
        let Kind::ApprovalRequired(asked) = asked else { panic!() };
        approval_ids.insert(asked.approval_id.clone());
        let resolved = ApprovalResolved { approval_id: asked.approval_id, approved, ..ApprovalResolved::default() };
        front.send(ToWorker::ApprovalResolved(resolved)).await;
    }
    let heard = front.finish().await;
    assert_eq!((heard.stop_reason(), spade.digs()), (StopReason::EndTurn, 2), "the third was denied");
    assert_eq!(approval_ids.len(), 3);
    let keys: BTreeSet<_> = calls(&heard).into_iter().map(|call| call.idempotency_key).collect();
    assert_eq!(keys.len(), 2);
}

/// A provider that gives these ids to its calls, an answer's in one, and then has done.
#[derive(Clone)]
struct Naming {
    ids: Arc<Mutex<VecDeque<&'static [&'static str]>>>,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Naming {
    fn new(ids: impl IntoIterator<Item = &'static [&'static str]>) -> Self {
        Self { ids: Arc::new(Mutex::new(ids.into_iter().collect())), requests: Arc::default() }
    }
}

impl Provider for Naming {
    fn name(&self) -> &'static str {
        "naming"
    }

    fn stream(&self, request: Request) -> DeltaStream {
        self.requests.lock().unwrap().push(request);
        let ids = self.ids.lock().unwrap().pop_front().unwrap_or_default();
        let mut deltas = vec![Delta::Opened { response_id: "r".into(), model: "m".into() }];
        for (block, id) in (0..).zip(ids) {
            let arguments_json = json!({"depth": block}).to_string();
            deltas.push(Delta::ToolCallStarted { block, tool_call_id: (*id).into(), name: "spade".into() });
            deltas.push(Delta::ToolArguments { block, partial_json: arguments_json.clone() });
            deltas.push(Delta::ToolCallStopped { block, arguments_json });
        }
        deltas.push(Delta::Stop(if ids.is_empty() { Stop::EndTurn } else { Stop::ToolUse }));
        stream::iter(deltas.into_iter().map(Ok)).boxed()
    }
}

async fn naming(naming: &Naming, start: StepStart, agent: &AgentSpec) -> Heard {
    let worker = worker(naming.clone(), &Spade::default()).await;
    init(&worker.client, &start.session_id, agent).await.unwrap();
    let mut front = Front::open(&worker.client, start).await;
    (front.provider, front.model) = ("naming".into(), "m".into());
    front.finish().await
}

const REPEATED: [&[&str]; 3] = [&["a", "", "a"], &["a", "b"], &["b", ""]];

#[tokio::test(start_paused = true)]
async fn ids_that_are_missing_or_come_again_are_given_anew_and_all_that_hangs_on_them_agrees() {
    let agent = agent();
    let provider = Naming::new(REPEATED);
    let heard = naming(&provider, start(&session(), text("dig")), &agent).await;
    let ids: Vec<_> = calls(&heard).into_iter().map(|call| call.tool_call_id).collect();
    assert_eq!((ids.len(), ids.iter().collect::<BTreeSet<_>>().len()), (7, 7), "{ids:?}");
    assert!(ids.iter().all(|id| !id.is_empty()));
    assert_eq!((ids[0].as_str(), ids[4].as_str()), ("a", "b"), "one that is new stays");

    let shown = heard.previews.iter().filter_map(|kind| match kind {
        Kind::ToolArgumentDelta(delta) => Some(delta.tool_call_id.clone()),
        _ => None,
    });
    assert_eq!(shown.collect::<Vec<_>>(), ids, "what is seen of a call is of that call");
    // What the provider is sent: each call with its own result.
    let last = provider.requests.lock().unwrap().pop().unwrap();
    let blocks = last.messages.iter().flat_map(|message| &message.content);
    let (mut called, mut answered) = (Vec::new(), Vec::new());
    for block in blocks {
        match &block.block {
            Some(Block::ToolUse(call)) => called.push(call.tool_call_id.clone()),
            Some(Block::ToolOutput(output)) => answered.push(output.tool_call_id.clone()),
            _ => {}
        }
    }
    assert_eq!((&called, &answered), (&ids, &ids));
}

#[tokio::test(start_paused = true)]
async fn whoever_asks_again_from_a_checkpoint_comes_to_the_same_ids_and_a_later_turn_to_others() {
    let agent = agent();
    let session_id = session();
    let first = naming(&Naming::new(REPEATED), start(&session_id, text("dig")), &agent).await;
    // After the first answer and its results.
    let checkpoint = Some(first.checkpoints[1].clone());
    let again = StepStart { checkpoint, ..start(&session_id, Vec::new()) };
    let again = naming(&Naming::new(REPEATED[1..].iter().copied()), again, &agent).await;
    assert_eq!(calls(&again), calls(&first)[3..]);

    let next = StepStart {
        turn_id: "turn-2".into(),
        checkpoint: Some(first.checkpoint()),
        ..start(&session_id, text("dig on"))
    };
    let next = naming(&Naming::new(REPEATED), next, &agent).await;
    let all = calls(&first).into_iter().chain(calls(&next));
    let keys: BTreeSet<_> = all.map(|call| (call.tool_call_id, call.idempotency_key)).collect();
    assert_eq!(keys.len(), 14);
}

const UNPORTABLE: [&[&str]; 1] = [&[
    "functions.search:0",
    "a-call_of-sixty-four-bytes-which-is-just-as-many-as-may-be-given",
    "a-call_of-sixty-five-bytes-which-is-one-more-than-there-may-be-of",
]];

#[tokio::test(start_paused = true)]
async fn ids_that_another_provider_would_refuse_are_given_anew_before_anyone_sees_them() {
    assert_eq!((UNPORTABLE[0][1].len(), UNPORTABLE[0][2].len()), (64, 65));
    let agent = agent();
    let heard = naming(&Naming::new(UNPORTABLE), start(&session(), text("dig")), &agent).await;
    let ids: Vec<_> = calls(&heard).into_iter().map(|call| call.tool_call_id).collect();
    assert_eq!(ids, ["call_1_0", UNPORTABLE[0][1], "call_1_2"]);
    let shown = heard.previews.iter().filter_map(|kind| match kind {
        Kind::ToolArgumentDelta(delta) => Some(delta.tool_call_id.clone()),
        _ => None,
    });
    assert_eq!(shown.collect::<Vec<_>>(), ids);
}

/// Takes an id in the characters that Anthropic does, once, and results for such calls alone.
struct Strict;

impl Respond for Strict {
    fn respond(&self, request: &wiremock::Request) -> ResponseTemplate {
        let body: Value = request.body_json().unwrap();
        let blocks =
            body["messages"].as_array().unwrap().iter().flat_map(|message| message["content"].as_array().unwrap());
        let (mut called, mut answered) = (Vec::new(), Vec::new());
        for block in blocks {
            called.extend(block.get("id").and_then(Value::as_str));
            answered.extend(block.get("tool_use_id").and_then(Value::as_str));
        }
        let is_of_alphabet = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        let is_good = |id: &&str| !id.is_empty() && id.bytes().all(is_of_alphabet);
        let are_distinct = called.iter().collect::<BTreeSet<_>>().len() == called.len();
        if called != answered || !are_distinct || !called.iter().all(is_good) {
            let error = json!({"type": "invalid_request_error", "message": "tool_use.id: String should match pattern"});
            return ResponseTemplate::new(400).set_body_json(json!({"type": "error", "error": error}));
        }
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/llm/tests/golden/anthropic/text.sse");
        ResponseTemplate::new(200).set_body_raw(std::fs::read(golden).unwrap(), "text/event-stream")
    }
}

#[tokio::test]
async fn a_conversation_of_an_older_release_goes_on_at_a_provider_that_refuses_its_ids() {
    let server = MockServer::start().await;
    Mock::given(path("/v1/messages")).respond_with(Strict).mount(&server).await;
    let settings =
        Settings { base_url: server.uri(), api_key: SecretString::from("sk-ant").into(), limits: Limits::default() };
    let worker = worker(Anthropic::new(settings).unwrap(), &Spade::default()).await;
    let block = |block| ContentBlock { block: Some(block) };
    let message = |role: Role, content| Message { role: role.into(), content, ..Message::default() };
    let mut messages = vec![message(Role::User, text("dig"))];
    for ids in [["functions.spade:0", ""], ["functions.spade:0", "toolu_2"]] {
        let (name, arguments_json) = ("spade".to_owned(), "{}".to_owned());
        let call = |tool_call_id: &str| ToolUse {
            tool_call_id: tool_call_id.into(),
            name: name.clone(),
            arguments_json: arguments_json.clone(),
        };
        let output = |tool_call_id: &str| ToolOutput {
            tool_call_id: tool_call_id.into(),
            content: text("dug"),
            is_error: false,
        };
        messages.push(message(Role::Assistant, ids.map(|id| block(Block::ToolUse(call(id)))).into()));
        messages.push(message(Role::Tool, ids.map(|id| block(Block::ToolOutput(output(id)))).into()));
    }
    let checkpoint =
        SessionCheckpoint { messages: messages.clone(), turn_id: "turn-1".into(), ..SessionCheckpoint::default() };
    let agent = AgentSpec { model: "claude-haiku-4-5".into(), ..agent() };
    let session_id = session();
    init(&worker.client, &session_id, &agent).await.unwrap();
    let start =
        StepStart { checkpoint: Some(checkpoint), turn_id: "turn-2".into(), ..start(&session_id, text("and now?")) };
    let mut front = Front::open(&worker.client, start).await;
    (front.provider, front.model) = ("anthropic".into(), agent.model.clone());
    let heard = front.finish().await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn, "{:?}", heard.durables);
    assert_eq!(heard.checkpoint().messages[..messages.len()], messages[..], "what is stored stays as it was");
}
