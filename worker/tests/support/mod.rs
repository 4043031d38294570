//! A front for tests: opens steps at a worker in this process, over a duplex pipe so that time can be paused, stores
//! what it hears, and answers as told.

#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(unreachable_pub, reason = "it is a module of each test program")]
#![allow(clippy::unwrap_used, reason = "a helper of tests may fail loudly")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use croft_llm::scripted::Scripted;
use croft_llm::{Class, Delta, DeltaStream, Provider, Providers, Request, retry};
use croft_proto::conversation::MESSAGE_BYTES_MAX;
use croft_proto::id::SessionId;
use croft_proto::v1::content_block::Block;
use croft_proto::v1::execute_step_request::Message as ToWorker;
use croft_proto::v1::execute_step_response::Message as FromWorker;
use croft_proto::v1::image;
use croft_proto::v1::runtime_service_client::RuntimeServiceClient;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::tool_spec::Source;
use croft_proto::v1::{
    AgentSpec, BuiltinTool, ContentBlock, EventStored, ExecuteStepRequest, ExecuteStepResponse, Grant, GrantRequest,
    Image, InitWorkerSessionRequest, SessionCheckpoint, StepFinished, StepStart, StopReason, SubAgentCall, Text,
    ToolSpec,
};
use croft_serve::Tasks;
use croft_worker::tools::{Builtins, Error as ToolError, Invocation, Tool};
use croft_worker::{RuntimeOptions, RuntimeServer};
use futures::StreamExt as _;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Status, Streaming};

/// No wait in a test is longer, on the test's clock.
const PATIENCE: Duration = Duration::from_hours(1);

pub type Client = RuntimeServiceClient<Channel>;

/// A worker of tenant `meadow`, and a client of it.
pub struct Worker {
    pub client: Client,
    pub server: RuntimeServer,
    pub tasks: Tasks,
}

pub fn options() -> RuntimeOptions {
    RuntimeOptions {
        retry: retry::Policy { jitter: false, ..retry::Policy::default() },
        require_front_certificate: false,
        ..RuntimeOptions::new("meadow", "worker-0", "tenant-meadow")
    }
}

pub async fn worker() -> Worker {
    worker_with(options(), Providers::new().with(Scripted::new()), Builtins::default()).await
}

pub async fn worker_with(options: RuntimeOptions, providers: Providers, builtins: Builtins) -> Worker {
    let tasks = Tasks::new();
    let server = RuntimeServer::with_builtins(options, providers, builtins, tasks.clone());
    let client = RuntimeServiceClient::new(serve(&server, &tasks).await).max_decoding_message_size(MESSAGE_BYTES_MAX);
    Worker { client, server, tasks }
}

async fn serve(server: &RuntimeServer, tasks: &Tasks) -> Channel {
    let (ours, theirs) = tokio::io::duplex(1024 * 1024);
    let incoming = tokio_stream::once(Ok::<_, std::io::Error>(theirs));
    let router = Server::builder().add_service(server.service());
    drop(tasks.spawn("test-server", router.serve_with_incoming(incoming)));
    let mut ours = Some(ours);
    let connector = tower::service_fn(move |_| {
        let pipe = ours.take().map(TokioIo::new).ok_or_else(|| std::io::Error::other("the pipe was used"));
        std::future::ready(pipe)
    });
    Endpoint::from_static("http://worker.test").connect_with_connector(connector).await.unwrap()
}

pub fn text(text: &str) -> Vec<ContentBlock> {
    vec![ContentBlock { block: Some(Block::Text(Text { text: text.into() })) }]
}

/// The user message that makes the scripted provider play these steps.
pub fn script(steps: &Value) -> Vec<ContentBlock> {
    text(&json!({ "script": steps }).to_string())
}

pub fn builtin(name: &str) -> ToolSpec {
    let source = Some(Source::Builtin(BuiltinTool { name: name.into() }));
    ToolSpec { name: name.into(), source, ..ToolSpec::default() }
}

/// An agent with the tools `clock` and `calculator`.
pub fn agent() -> AgentSpec {
    AgentSpec {
        name: "gardener".into(),
        model: "scripted-1".into(),
        system_prompt: "You tend the garden.".into(),
        tools: vec![builtin("clock"), builtin("calculator")],
        ..AgentSpec::default()
    }
}

pub fn session() -> String {
    SessionId::generate().to_string()
}

/// Opens a session at the worker.
pub async fn init(client: &Client, session_id: &str, agent: &AgentSpec) -> Result<(), Status> {
    let request = InitWorkerSessionRequest {
        session_id: session_id.into(),
        tenant: "meadow".into(),
        agent: Some(agent.clone()),
        provider: String::new(),
    };
    client.clone().init_worker_session(request).await.map(drop)
}

/// The start of a session's first turn.
pub fn start(session_id: &str, input: Vec<ContentBlock>) -> StepStart {
    StepStart {
        session_id: session_id.into(),
        turn_id: "turn-1".into(),
        tenant: "meadow".into(),
        epoch: 1,
        input,
        ..StepStart::default()
    }
}

/// A step that runs, with everything heard of it.
pub struct Front {
    requests: mpsc::Sender<ExecuteStepRequest>,
    responses: Streaming<ExecuteStepResponse>,
    /// Answers to grants and acknowledgements go out by themselves.
    pub grants: bool,
    pub acknowledges: bool,
    pub provider: String,
    pub model: String,
    pub heard: Heard,
}

/// What a step told.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    pub durables: Vec<Kind>,
    pub previews: Vec<Kind>,
    pub checkpoints: Vec<SessionCheckpoint>,
    pub grants: Vec<GrantRequest>,
    pub sub_agents: Vec<SubAgentCall>,
    pub finished: Option<StepFinished>,
}

impl Front {
    pub async fn open(client: &Client, start: StepStart) -> Self {
        let (requests, receiver) = mpsc::channel(1024);
        requests.send(message(ToWorker::Start(start))).await.unwrap();
        let responses = client.clone().execute_step(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        let (provider, model) = ("scripted".into(), "scripted-1".into());
        let heard = Heard::default();
        Self { requests, responses, grants: true, acknowledges: true, provider, model, heard }
    }

    pub async fn send(&self, message_to_worker: ToWorker) {
        self.requests.send(message(message_to_worker)).await.unwrap();
    }

    /// The next thing heard, after the usual answer to it. `None` at the end of the step.
    pub async fn next(&mut self) -> Result<Option<FromWorker>, Status> {
        let message = tokio::time::timeout(PATIENCE, self.responses.message()).await.expect("the worker is silent")?;
        let Some(message) = message.and_then(|response| response.message) else { return Ok(None) };
        match message.clone() {
            FromWorker::Event(event) => {
                let kind = event.event.and_then(|event| event.kind).expect("an event has a kind");
                if event.event_index == 0 {
                    self.heard.previews.push(kind);
                } else {
                    self.heard.durables.push(kind);
                    let event_index = event.event_index;
                    assert_eq!(event_index, self.heard.durables.len() as u64, "durable events are counted from 1");
                    if self.acknowledges {
                        // The worker may be gone already.
                        let stored = EventStored { event_index, seq: 100 + event_index };
                        let _ = self.requests.send(self::message(ToWorker::EventStored(stored))).await;
                    }
                }
            }
            FromWorker::GrantRequest(request) => {
                if self.grants {
                    // As above.
                    let _ = self.requests.send(self::message(ToWorker::Grant(self.grant(&request)))).await;
                }
                self.heard.grants.push(request);
            }
            FromWorker::Checkpoint(checkpoint) => self.heard.checkpoints.push(checkpoint),
            FromWorker::SubAgentCall(call) => self.heard.sub_agents.push(call),
            FromWorker::Finished(finished) => self.heard.finished = Some(finished),
        }
        Ok(Some(message))
    }

    pub fn grant(&self, request: &GrantRequest) -> Grant {
        Grant {
            request_id: request.request_id.clone(),
            grant_id: format!("grant-{}", self.heard.grants.len()),
            provider: self.provider.clone(),
            model: self.model.clone(),
            output_tokens_max: request.output_tokens_max,
            expire_time: None,
            routed: false,
            images: None,
        }
    }

    /// Hears on until `wanted` is heard.
    pub async fn until(&mut self, wanted: impl Fn(&FromWorker) -> bool) -> FromWorker {
        loop {
            let message = self.next().await.unwrap().expect("the step ended before what was waited for");
            if wanted(&message) {
                return message;
            }
        }
    }

    /// Hears on until an event of this kind is heard.
    pub async fn until_event(&mut self, wanted: impl Fn(&Kind) -> bool) -> Kind {
        let is_wanted = |message: &FromWorker| kind(message).is_some_and(&wanted);
        let message = self.until(is_wanted).await;
        kind(&message).cloned().unwrap()
    }

    /// Hears the step to its end.
    pub async fn finish(mut self) -> Heard {
        while self.next().await.unwrap().is_some() {}
        self.heard
    }

    /// Hears on until the step fails.
    pub async fn failure(mut self) -> Status {
        loop {
            match self.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the step ended in order: {:?}", self.heard),
                Err(status) => return status,
            }
        }
    }
}

fn kind(message: &FromWorker) -> Option<&Kind> {
    match message {
        FromWorker::Event(event) => event.event.as_ref()?.kind.as_ref(),
        _ => None,
    }
}

fn message(message: ToWorker) -> ExecuteStepRequest {
    ExecuteStepRequest { message: Some(message) }
}

impl Heard {
    pub fn stop_reason(&self) -> StopReason {
        self.finished.as_ref().expect("the step finished in order").stop_reason()
    }

    pub fn checkpoint(&self) -> SessionCheckpoint {
        self.finished.clone().unwrap().checkpoint.unwrap()
    }

    /// The kinds of the durable events, in short.
    pub fn story(&self) -> Vec<&'static str> {
        self.durables.iter().map(name).collect()
    }
}

pub fn name(kind: &Kind) -> &'static str {
    match kind {
        Kind::StepStarted(_) => "started",
        Kind::ModelAttempt(_) => "attempt",
        Kind::AgentMessage(_) => "message",
        Kind::ToolCall(_) => "call",
        Kind::ToolResult(_) => "result",
        Kind::ApprovalRequired(_) => "approval",
        Kind::GuardrailViolation(_) => "guardrail",
        Kind::Error(_) => "error",
        Kind::StepCompleted(_) => "completed",
        _ => "other",
    }
}

/// The texts in content, joined.
pub fn texts(content: &[ContentBlock]) -> String {
    let texts = content.iter().filter_map(|block| match &block.block {
        Some(Block::Text(text)) => Some(text.text.as_str()),
        _ => None,
    });
    texts.collect()
}

/// Runs the first turn of a new session to its end.
pub async fn turn(worker: &Worker, agent: &AgentSpec, input: Vec<ContentBlock>) -> Heard {
    let session_id = session();
    init(&worker.client, &session_id, agent).await.unwrap();
    Front::open(&worker.client, start(&session_id, input)).await.finish().await
}

/// A provider that fails so many times, and then answers as the scripted one does.
pub struct Flaky {
    pub failures: AtomicUsize,
    pub class: Class,
    /// How long it asks to wait.
    pub retry_after: Option<Duration>,
    /// Text before it fails.
    pub says: Option<&'static str>,
    pub requests: Arc<Mutex<Vec<Request>>>,
}

impl Flaky {
    pub fn new(failures: usize, class: Class) -> Self {
        Self { failures: failures.into(), class, retry_after: None, says: None, requests: Arc::default() }
    }
}

impl Provider for Flaky {
    fn name(&self) -> &'static str {
        "flaky"
    }

    fn stream(&self, request: Request) -> DeltaStream {
        self.requests.lock().unwrap().push(request.clone());
        let fails = self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        if !fails {
            return Scripted::new().stream(request);
        }
        let mut error = croft_llm::Error::new("flaky", self.class, "out of order");
        error.retry_after = self.retry_after;
        let says = self.says.map(|text| Ok(Delta::Text { block: 0, text: text.into() }));
        futures::stream::iter(says.into_iter().chain([Err(error)])).boxed()
    }
}

/// A tool that writes down what it is asked, and answers only after a permit, if it was given a gate.
#[derive(Clone, Default)]
pub struct Spade {
    pub digs: Arc<Mutex<Vec<Invocation>>>,
    pub gate: Option<Arc<Semaphore>>,
    pub breaks: bool,
    /// Of a picture that each dig brings up besides.
    pub picture_bytes: usize,
}

impl Spade {
    pub fn digs(&self) -> usize {
        self.digs.lock().unwrap().len()
    }

    /// Once it digs.
    pub async fn digging(&self) {
        let digs = async {
            while self.digs() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(90), digs).await.expect("nobody digs");
    }
}

#[async_trait]
impl Tool for Spade {
    fn description(&self) -> &'static str {
        "Digs."
    }

    fn input_schema(&self) -> Value {
        json!({"type": "object", "properties": {"depth": {"type": "integer"}}, "additionalProperties": false})
    }

    async fn call(&self, invocation: Invocation) -> Result<Vec<ContentBlock>, ToolError> {
        let depth = invocation.arguments.get("depth").cloned().unwrap_or_default();
        self.digs.lock().unwrap().push(invocation);
        if let Some(gate) = &self.gate {
            gate.acquire().await.unwrap().forget();
        }
        if self.breaks {
            return Err(ToolError("The spade broke.".into()));
        }
        let mut content = text(&format!("dug {depth}"));
        if self.picture_bytes > 0 {
            content.push(picture(self.picture_bytes));
        }
        Ok(content)
    }
}

pub fn picture(bytes: usize) -> ContentBlock {
    let source = Some(image::Source::Data(vec![7; bytes].into()));
    ContentBlock { block: Some(Block::Image(Image { media_type: "image/png".into(), source })) }
}

/// A worker with a spade, and an agent that has it.
pub async fn worker_with_spade(spade: &Spade) -> (Worker, AgentSpec) {
    let builtins = Builtins::default().with("spade", spade.clone());
    let worker = worker_with(options(), Providers::new().with(Scripted::new()), builtins).await;
    (worker, AgentSpec { tools: vec![builtin("spade"), builtin("clock")], ..agent() })
}

/// A worker whose provider is flaky; grants must name it.
pub async fn worker_with_flaky(flaky: Flaky) -> Worker {
    worker_with(options(), Providers::new().with(flaky), Builtins::default()).await
}

/// The fixed word that a refusal carries.
pub fn reason(status: &Status) -> String {
    use tonic_types::StatusExt as _;
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}
