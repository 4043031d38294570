//! Providers that give the answers that a test has for them, turns at them, and what was heard of those.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use croft_llm::{Class, Delta, DeltaStream, Error, Provider, Providers, Request, Stop};
use croft_proto::v1::execute_step_request::Message as ToWorker;
use croft_proto::v1::execute_step_response::Message as FromWorker;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{AgentSpec, Grant, GrantRefused, ModelAttempt, SessionCheckpoint, StepStart, TokenUsage};
use croft_worker::tools::Builtins;
use futures::FutureExt as _;
use futures::StreamExt as _;
use futures::future::BoxFuture;

use crate::support::{self, *};

/// Of one model in one turn.
pub(crate) const ATTEMPTS_MAX: usize = 3;

pub(crate) type Answer = Vec<Result<Delta, Error>>;

/// A provider that gives these answers one after another, and the last of them again and again.
#[derive(Clone)]
pub(crate) struct Canned {
    name: &'static str,
    answers: Arc<Mutex<VecDeque<Answer>>>,
    pub(crate) requests: Arc<Mutex<Vec<Request>>>,
    pub(crate) counts: Option<u32>,
}

impl Canned {
    pub(crate) fn new(name: &'static str, answers: impl IntoIterator<Item = Answer>) -> Self {
        let answers = Arc::new(Mutex::new(answers.into_iter().collect()));
        Self { name, answers, requests: Arc::default(), counts: None }
    }

    pub(crate) fn calls(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

impl Provider for Canned {
    fn name(&self) -> &'static str {
        self.name
    }

    fn stream(&self, request: Request) -> DeltaStream {
        self.requests.lock().unwrap().push(request);
        let mut answers = self.answers.lock().unwrap();
        let answer = match answers.pop_front() {
            Some(answer) if answers.is_empty() => {
                let again = copies(&answer);
                answers.push_front(again);
                answer
            }
            Some(answer) => answer,
            None => Vec::new(),
        };
        futures::stream::iter(answer).boxed()
    }

    fn count_tokens(&self, _: Request) -> BoxFuture<'_, Result<Option<u32>, Error>> {
        std::future::ready(Ok(self.counts)).boxed()
    }
}

/// The same, but an answer that has begun and is not over goes on without an end.
pub(crate) struct Unending(pub(crate) Canned);

impl Provider for Unending {
    fn name(&self) -> &'static str {
        self.0.name
    }

    fn stream(&self, request: Request) -> DeltaStream {
        let deltas = self.0.stream(request);
        // Whoever reads it reads no more behind its end.
        deltas.chain(futures::stream::pending()).boxed()
    }
}

pub(crate) fn copy(delta: &Result<Delta, Error>) -> Result<Delta, Error> {
    match delta {
        Ok(delta) => Ok(delta.clone()),
        Err(error) => Err(Error::new(error.provider, error.class, error.message.clone())),
    }
}

pub(crate) fn copies(answer: &Answer) -> Answer {
    answer.iter().map(copy).collect()
}

pub(crate) fn fails(class: Class) -> Answer {
    vec![Err(Error::new("canned", class, "out of order"))]
}

pub(crate) fn opened() -> Delta {
    Delta::Opened { response_id: "r".into(), model: "m".into() }
}

pub(crate) fn stops(said: &str, stop: Stop) -> Answer {
    let usage = TokenUsage { output_tokens: 3, ..TokenUsage::default() };
    vec![Ok(opened()), Ok(Delta::Text { block: 0, text: said.into() }), Ok(Delta::Usage(usage)), Ok(Delta::Stop(stop))]
}

pub(crate) fn says(said: &str) -> Answer {
    stops(said, Stop::EndTurn)
}

pub(crate) fn calls_the_clock() -> Answer {
    vec![
        Ok(opened()),
        Ok(Delta::ToolCallStarted { block: 0, tool_call_id: "one".into(), name: "clock".into() }),
        Ok(Delta::ToolCallStopped { block: 0, arguments_json: "{}".into() }),
        Ok(Delta::Stop(Stop::ToolUse)),
    ]
}

/// Models `a`, `b` and `c`, each of the provider of its name.
pub(crate) fn agent() -> AgentSpec {
    let fallback_models = ["b", "c"].map(str::to_owned).into();
    AgentSpec { model: "a".into(), fallback_models, ..support::agent() }
}

pub(crate) async fn worker(canned: &[&Canned]) -> Worker {
    let providers = canned.iter().fold(Providers::new(), |providers, canned| providers.with((*canned).clone()));
    worker_with(options(), providers, Builtins::default()).await
}

/// A turn of a new session at a front that finds these models unfit to take over.
pub(crate) async fn turn(worker: &Worker, agent: &AgentSpec, unfit: &[&str]) -> Heard {
    turn_from(worker, agent, unfit, None).await
}

/// The same, of a session that has this checkpoint.
pub(crate) async fn turn_from(
    worker: &Worker,
    agent: &AgentSpec,
    unfit: &[&str],
    from: Option<SessionCheckpoint>,
) -> Heard {
    let session_id = session();
    init(&worker.client, &session_id, agent).await.unwrap();
    let start = StepStart { checkpoint: from, ..start(&session_id, text("hello")) };
    let mut front = Front::open(&worker.client, start).await;
    front.grants = false;
    while let Some(message) = front.next().await.unwrap() {
        let FromWorker::GrantRequest(request) = message else { continue };
        let request_id = request.request_id.clone();
        let answer = if unfit.contains(&request.model.as_str()) {
            let (reason, message) = ("MODEL_UNFIT".into(), "can't".into());
            ToWorker::GrantRefused(GrantRefused { request_id, reason, message })
        } else {
            let (provider, model) = (request.model.clone(), request.model.clone());
            ToWorker::Grant(Grant { request_id, grant_id: "g".into(), provider, model, ..Grant::default() })
        };
        front.send(answer).await;
    }
    front.heard
}

pub(crate) fn attempts(heard: &Heard) -> Vec<&ModelAttempt> {
    let mut attempts = Vec::new();
    for kind in &heard.durables {
        if let Kind::ModelAttempt(attempt) = kind {
            attempts.push(attempt);
        }
    }
    attempts
}

/// Model, error class and reason to fall back of each attempt.
pub(crate) fn course(heard: &Heard) -> Vec<(&str, &str, &str)> {
    attempts(heard)
        .into_iter()
        .map(|attempt| (attempt.model.as_str(), attempt.error_class.as_str(), attempt.fallback_reason.as_str()))
        .collect()
}

pub(crate) fn said(heard: &Heard) -> Vec<(String, String)> {
    let said = |kind: &Kind| match kind {
        Kind::AgentMessage(message) => Some((texts(&message.content), message.model.clone())),
        _ => None,
    };
    heard.durables.iter().filter_map(said).collect()
}

/// For how much input each grant was asked.
pub(crate) fn reserved(heard: &Heard) -> Vec<u32> {
    heard.grants.iter().map(|request| request.input_tokens_estimated).collect()
}

pub(crate) fn told(heard: &Heard) -> Vec<String> {
    let told = |kind: &Kind| match kind {
        Kind::Error(error) => Some(error.reason.clone()),
        _ => None,
    };
    heard.durables.iter().filter_map(told).collect()
}
