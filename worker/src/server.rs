//! `RuntimeService`: the four calls, over the sessions of one worker.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use croft_llm::{Providers, retry};
use croft_proto::conversation::MESSAGE_BYTES_MAX;
use croft_proto::id::SessionId;
use croft_proto::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use croft_proto::v1::{
    AgentSpec, CheckpointRequest, CheckpointResponse, ExecuteStepRequest, ExecuteStepResponse,
    InitWorkerSessionRequest, InitWorkerSessionResponse, RuntimeServiceTerminateSessionRequest,
    RuntimeServiceTerminateSessionResponse,
};
use croft_serve::Tasks;
use futures::Stream;
use tokio::sync::Mutex;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument as _;

use crate::guardrails::Guardrails;
use crate::http_client::HttpClient;
use crate::interrupt::Interrupt;
use crate::metrics::Metrics;
use crate::outbox::Outbox;
use crate::patterns::Patterns;
use crate::peer::FrontOnly;
use crate::providers;
use crate::refusal::Refusal;
use crate::sessions::Sessions;
use crate::step::Step;
use crate::tools::mcp::McpServer;
use crate::tools::{Builtins, Toolbox};

/// What one worker is.
#[derive(Debug, Clone)]
pub struct RuntimeOptions {
    /// The tenant that it serves, by name. Calls for another are refused.
    pub tenant: String,
    /// Its pod's name and namespace, as events tell them.
    pub worker: String,
    pub namespace: String,
    /// Sessions that it may hold. At the bound new ones are refused with `WORKER_FULL`.
    pub sessions_max: usize,
    /// A full worker forgets a session that was idle for so long to make room for another.
    pub session_idle: Duration,
    /// Bytes of sessions' newest states that it keeps for `Checkpoint`. Beyond it those of sessions that were idle for longest go: the
    /// front has all of them, and sends them with the next turn.
    pub checkpoint_bytes_max: usize,
    /// How long a superstep may go on when the worker shuts down. At the bound it is given up, what it used is told,
    /// and the turn is handed back as it was before it.
    pub drain: Duration,
    /// The MCP servers that agents may use.
    pub mcp_servers: Vec<McpServer>,
    /// How model calls are repeated.
    pub retry: retry::Policy,
    /// Whether callers must show the front's certificate. Only for a transport that nobody else can reach may they not.
    pub require_front_certificate: bool,
}

impl RuntimeOptions {
    /// A worker that demands the front's certificate, with defaults for all else.
    pub fn new(tenant: impl Into<String>, worker: impl Into<String>, namespace: impl Into<String>) -> Self {
        Self {
            tenant: tenant.into(),
            worker: worker.into(),
            namespace: namespace.into(),
            sessions_max: 50,
            // What an idle session needs, the front has: the next turn brings it along.
            session_idle: Duration::ZERO,
            checkpoint_bytes_max: 64 * 1024 * 1024,
            drain: Duration::from_secs(20),
            mcp_servers: Vec::new(),
            retry: retry::Policy::default(),
            require_front_certificate: true,
        }
    }
}

/// The service of one worker. Clones share its sessions.
#[derive(Clone)]
pub struct RuntimeServer {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) options: RuntimeOptions,
    pub(crate) providers: Providers,
    pub(crate) builtins: Builtins,
    /// Of guardrails that ask a server, and of tools at one.
    pub(crate) http: HttpClient,
    pub(crate) sessions: Sessions,
    pub(crate) metrics: Metrics,
    pub(crate) tasks: Tasks,
    /// Held while an agent's patterns and schemas are compiled.
    opening: Arc<Mutex<()>>,
}

impl RuntimeServer {
    /// A worker without sessions. Its steps are tasks of `tasks`: when that is stopping, no more begin, and those that
    /// run hand their turn back after the superstep at hand.
    pub fn new(options: RuntimeOptions, providers: Providers, tasks: Tasks) -> Self {
        Self::with_builtins(options, providers, Builtins::default(), tasks)
    }

    /// The same with other built-in tools.
    pub fn with_builtins(options: RuntimeOptions, providers: Providers, builtins: Builtins, tasks: Tasks) -> Self {
        let metrics = Metrics::default();
        let RuntimeOptions { sessions_max, session_idle, checkpoint_bytes_max, .. } = options;
        let sessions = Sessions::new(sessions_max, session_idle, checkpoint_bytes_max, metrics.sessions.clone());
        let http = HttpClient::default();
        let opening = Arc::default();
        Self { shared: Arc::new(Shared { options, providers, builtins, http, sessions, metrics, tasks, opening }) }
    }

    /// Shows the worker's counters among `metrics`.
    pub fn register(&self, metrics: &croft_serve::Metrics) -> prometheus::Result<()> {
        self.shared.metrics.register(metrics.registry(), &self.shared.providers)
    }

    /// What to add to a gRPC server, over any transport.
    pub fn service(&self) -> InterceptedService<RuntimeServiceServer<Self>, FrontOnly> {
        let service = RuntimeServiceServer::new(self.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        InterceptedService::new(service, FrontOnly::new(self.shared.options.require_front_certificate))
    }
}

impl Shared {
    /// Fails unless the agent can run here; returns its tools and guardrails.
    /// `provider` is that of its model, or empty where the front does not say; `user` is for whom tools are called, if for anyone yet.
    pub(crate) async fn check(
        self: &Arc<Self>,
        tenant: &str,
        agent: &AgentSpec,
        provider: &str,
        user: &str,
    ) -> Result<(Toolbox, Guardrails), Refusal> {
        self.takes(tenant, agent, provider)?;
        let mut opened = self.opened(vec![agent.clone()], user.to_owned()).await?;
        opened.pop().ok_or(Refusal::BrokenOff)
    }

    fn takes(&self, tenant: &str, agent: &AgentSpec, provider: &str) -> Result<(), Refusal> {
        if tenant != self.options.tenant {
            return Err(Refusal::WrongTenant);
        }
        if agent.model.is_empty() {
            return Err(Refusal::Malformed { field: "agent.model" });
        }
        providers::check(&self.providers, agent, provider)
    }

    /// Tools and guardrails of agents that belong together. It takes the processor a while: not that of what runs meanwhile, and
    /// one session's at a time.
    async fn opened(
        self: &Arc<Self>,
        agents: Vec<AgentSpec>,
        user: String,
    ) -> Result<Vec<(Toolbox, Guardrails)>, Refusal> {
        let turn = Arc::clone(&self.opening).lock_owned().await;
        let shared = Arc::clone(self);
        let opening = move || {
            // Here, since whoever asked may be gone before it is through.
            let _turn = turn;
            let mut patterns = Patterns::default();
            let open = |agent: &AgentSpec| {
                let Self { options, builtins, http, tasks, .. } = &*shared;
                let toolbox = Toolbox::open(agent, builtins, &options.mcp_servers, http, &user, tasks, &mut patterns)?;
                Ok((toolbox, Guardrails::open(agent, http, &mut patterns)?))
            };
            agents.iter().map(open).collect()
        };
        tokio::task::spawn_blocking(opening).await.unwrap_or(Err(Refusal::BrokenOff))
    }

    fn accepts(&self) -> Result<(), Refusal> {
        if self.tasks.stopping().is_cancelled() { Err(Refusal::WorkerDraining) } else { Ok(()) }
    }
}

/// The id of a session, as a request tells it.
pub(crate) fn session_id(text: &str) -> Result<SessionId, Refusal> {
    text.parse().map_err(|_| Refusal::Malformed { field: "session_id" })
}

#[tonic::async_trait]
impl RuntimeService for RuntimeServer {
    async fn init_worker_session(
        &self,
        request: Request<InitWorkerSessionRequest>,
    ) -> Result<Response<InitWorkerSessionResponse>, Status> {
        let InitWorkerSessionRequest { session_id: id, tenant, agent, provider } = request.into_inner();
        let shared = &self.shared;
        shared.accepts()?;
        let session = session_id(&id)?;
        let agent = agent.ok_or(Refusal::Malformed { field: "agent" })?;
        shared.takes(&tenant, &agent, &provider)?;
        // Before its agents are compiled, which running turns may wait for.
        shared.sessions.has_room_for(session)?;
        // Those that it may call as well: better now than in mid turn. Which provider has their models is known when they are called.
        let agents = std::iter::once(&agent).chain(&agent.sub_agents).cloned().collect();
        drop(shared.opened(agents, String::new()).await?);
        shared.sessions.admit(session, agent, provider)?;
        tracing::debug!(%session, "session known");
        let RuntimeOptions { worker, namespace, .. } = shared.options.clone();
        Ok(Response::new(InitWorkerSessionResponse { worker, namespace }))
    }

    type ExecuteStepStream = Pin<Box<dyn Stream<Item = Result<ExecuteStepResponse, Status>> + Send>>;

    async fn execute_step(
        &self,
        request: Request<Streaming<ExecuteStepRequest>>,
    ) -> Result<Response<Self::ExecuteStepStream>, Status> {
        self.shared.accepts()?;
        let (outbox, interrupt) = (Outbox::default(), Interrupt::default());
        let outgoing = outbox.stream(interrupt.clone());
        // The answer begins before the first request is read, as a caller may wait for it before it sends one.
        let step = Step::new(Arc::clone(&self.shared), outbox, interrupt);
        let run = step.run(request.into_inner()).instrument(tracing::Span::current());
        drop(self.shared.tasks.spawn("step", run));
        Ok(Response::new(Box::pin(outgoing)))
    }

    async fn checkpoint(&self, request: Request<CheckpointRequest>) -> Result<Response<CheckpointResponse>, Status> {
        let session = session_id(&request.into_inner().session_id)?;
        let checkpoint = self.shared.sessions.checkpoint(session)?;
        Ok(Response::new(CheckpointResponse { checkpoint }))
    }

    async fn terminate_session(
        &self,
        request: Request<RuntimeServiceTerminateSessionRequest>,
    ) -> Result<Response<RuntimeServiceTerminateSessionResponse>, Status> {
        let RuntimeServiceTerminateSessionRequest { session_id: id, reason, epoch } = request.into_inner();
        let session = session_id(&id)?;
        let untold = self.shared.sessions.terminate(session, epoch).await;
        let (found, untold_attempts) = (untold.is_some(), untold.unwrap_or_default());
        tracing::debug!(%session, reason, found, untold = untold_attempts.len(), "session forgotten");
        Ok(Response::new(RuntimeServiceTerminateSessionResponse { found, untold_attempts }))
    }
}
