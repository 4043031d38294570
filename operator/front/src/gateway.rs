//! The HTTP port: events as SSE and over WebSocket for browsers, and the probes of the platform.
//!
//! | path | what |
//! | --- | --- |
//! | `GET /v1/sessions/{id}/events` | [events of one session](sse) |
//! | `GET /v1/ws`, over HTTP/2 `CONNECT` | [events of many, and messages to them](ws) |
//! | `GET /healthz` | the process lives |
//! | `GET /readyz` | all that it works with is there; 503 and the reasons otherwise |
//! | `GET /servingz` | it can do its work, if need be without Redis; 503 and the reasons otherwise |
//! | `POST /croft.v1.…/…` | [the calls of the gRPC port](browser), as gRPC-Web |
//!
//! An error is `{"error": {"reason": "…", "message": "…"}}` with the reasons of gRPC's `ErrorInfo`.

pub mod sse;
pub mod ws;

mod browser;
mod credential;
mod failure;
mod legible;
mod metrics;
mod open;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, get, on};
use axum::{Json, Router};
use croft_proto::v1::{InterruptSessionRequest, ResolveApprovalRequest, SendMessageRequest};
use croft_serve::connections::Connections;
use croft_serve::http::{self, Speaks};
use croft_serve::{Readiness, Tasks, trace};
use prometheus::Registry;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::service::Routes;
use tower_http::trace::TraceLayer;

pub use self::failure::Failure;
pub use self::metrics::Metrics;
use self::ws::buffers::Buffers;
use crate::core::Core;
use crate::door::Door;
use crate::error::Error;
use crate::events::fanout::Hub;
use crate::events::log::EventLog;
use crate::identity::{Authenticator, Identity};
use crate::intake::{Intake, READ_MAX};
use crate::leaving::LEAVE_WITHIN;
use crate::lifecycle::Lifecycle;
use crate::seats::Seats;
use crate::session::store::SessionStore;
use crate::unread::Unread;

/// What a client wants with a stream that it opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opens {
    /// To begin: that is one of its tenant's calls.
    New,
    /// To go on with one that broke off, behind a number: of those the tenant may have more.
    Again,
}

impl Opens {
    /// By the last number that the client has.
    fn behind(after_seq: u64) -> Self {
        if after_seq > 0 { Self::Again } else { Self::New }
    }
}

/// What a WebSocket client can do besides watching.
#[async_trait]
pub trait Calls: Send + Sync {
    /// A call that opens a stream, before anything is done for it. Fails with [`Error::RateLimited`].
    async fn limit(&self, identity: &Identity, opens: Opens) -> Result<(), Error>;

    /// Stores a message, and leaves its turn to run. Returns the message's number.
    async fn send_message(&self, identity: &Identity, request: SendMessageRequest) -> Result<u64, Error>;

    /// Stops the running turn. False when there is none.
    async fn interrupt(&self, identity: &Identity, session_id: &str) -> Result<bool, Error>;

    /// Answers an approval that a turn waits for.
    async fn resolve_approval(&self, identity: &Identity, request: ResolveApprovalRequest) -> Result<(), Error>;
}

#[async_trait]
impl Calls for Lifecycle {
    async fn limit(&self, identity: &Identity, opens: Opens) -> Result<(), Error> {
        match opens {
            Opens::New => Self::limit(self, identity).await,
            Opens::Again => self.limit_resumes(identity).await,
        }
    }

    async fn send_message(&self, identity: &Identity, request: SendMessageRequest) -> Result<u64, Error> {
        self.admit::<SendMessageRequest>(identity).await?;
        Ok(self.accept(identity, request).await?.accepted.seq)
    }

    async fn interrupt(&self, identity: &Identity, session_id: &str) -> Result<bool, Error> {
        self.admit::<InterruptSessionRequest>(identity).await?;
        Self::interrupt(self, identity, session_id).await
    }

    async fn resolve_approval(&self, identity: &Identity, request: ResolveApprovalRequest) -> Result<(), Error> {
        self.admit::<ResolveApprovalRequest>(identity).await?;
        Self::answer(self, identity, request).await
    }
}

/// Bounds of the HTTP port.
#[derive(Debug, Clone)]
pub struct Options {
    /// Streams, of either kind, together. At the bound a new one is refused with 503.
    pub connections_max: usize,
    /// Between two signs of life on a stream that has nothing to say.
    pub keep_alive: Duration,
    /// A WebSocket whose peer takes longer to take a frame is hung up on.
    pub write_timeout: Duration,
    /// From the first byte of a WebSocket's frame to its last; to the next [`Self::keep_alive`] more.
    pub frame_within: Duration,
    /// Between two looks at whether an open stream's credential still holds.
    pub recheck_every: Duration,
    /// At a shutdown streams end one after the other, all of them within so long.
    pub leave_within: Duration,
    /// Of one WebSocket. At the bound a further subscription is refused.
    pub subscriptions_max: usize,
    /// That a WebSocket's client may send in a second, over time and at once. Beyond, they are refused; far beyond, the
    /// connection is closed.
    pub frames_per_second: u32,
    pub frames_at_once: u32,
    /// Of pages that may call from a browser, such as `https://app.example.com`; `*` is any.
    pub allowed_origins: Vec<HeaderValue>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connections_max: 10_000,
            keep_alive: Duration::from_secs(15),
            write_timeout: Duration::from_secs(20),
            frame_within: READ_MAX,
            recheck_every: Duration::from_secs(30),
            leave_within: LEAVE_WITHIN,
            subscriptions_max: 64,
            frames_per_second: 50,
            frames_at_once: 100,
            allowed_origins: Vec::new(),
        }
    }
}

/// What the HTTP port is made from.
pub struct Gateway {
    pub authenticator: Authenticator,
    pub sessions: Arc<dyn SessionStore>,
    pub events: Arc<dyn EventLog>,
    pub hub: Hub,
    pub calls: Arc<dyn Calls>,
    /// Of each tenant, shared with the gRPC port.
    pub seats: Seats,
    /// Of clients' requests, shared with the gRPC port.
    pub intake: Intake,
    /// Of clients' answers, shared with the gRPC port.
    pub unread: Unread,
    /// The calls of the gRPC port, for gRPC-Web.
    pub grpc: Routes,
    pub readiness: Readiness,
    pub tasks: Tasks,
    pub metrics: Metrics,
    pub options: Options,
}

/// A gateway with its open connections counted.
struct Shared {
    gateway: Gateway,
    connections: Arc<Semaphore>,
    /// What each `WebSocket` keeps.
    buffers: Buffers,
}

impl Shared {
    /// Counts a connection until it is dropped.
    fn admit(&self) -> Result<OwnedSemaphorePermit, Error> {
        Arc::clone(&self.connections).try_acquire_owned().map_err(|full| Error::unavailable("a free connection", full))
    }
}

/// Serves the HTTP port in a vital task, until shutdown; streams are ended then, so that their clients go elsewhere.
pub fn serve(
    connections: Connections,
    core: &Arc<Core>,
    grpc: Routes,
    allowed_origins: Vec<HeaderValue>,
    readiness: &Readiness,
    registry: &Registry,
) -> Result<(), prometheus::Error> {
    let router = router(Gateway {
        authenticator: core.authenticator.clone(),
        sessions: Arc::clone(&core.stores.sessions),
        events: Arc::clone(&core.stores.events),
        hub: core.hub.clone(),
        calls: Arc::new(Lifecycle::new(Arc::clone(core), Door::Public)),
        seats: core.seats.clone(),
        intake: core.intake.clone(),
        unread: core.unread.clone(),
        grpc,
        readiness: readiness.clone(),
        tasks: core.tasks.clone(),
        metrics: Metrics::register(registry)?,
        options: Options { allowed_origins, recheck_every: core.options.credential_recheck, ..Options::default() },
    });
    http::serve("http", connections, Speaks::Any, router, &core.tasks);
    Ok(())
}

/// The paths of the HTTP port.
pub fn router(gateway: Gateway) -> Router {
    let connections = Arc::new(Semaphore::new(gateway.options.connections_max));
    let (cors, unread) = (browser::cors(&gateway.options.allowed_origins), gateway.unread.clone());
    let router = Router::new()
        .route("/v1/sessions/{session_id}/events", get(sse::events))
        .route("/v1/ws", on(MethodFilter::GET.or(MethodFilter::CONNECT), ws::upgrade))
        // Tokens may be in the query, so that the path is all that is ever shown.
        .layer(TraceLayer::new_for_http().make_span_with(|request: &Request| {
            let span = tracing::info_span!("http", method = %request.method(), path = request.uri().path());
            trace::adopt(&span, request.headers());
            span
        }))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/servingz", get(servingz))
        .fallback(browser::elsewhere)
        .layer(cors)
        .with_state(Arc::new(Shared { gateway, connections, buffers: Buffers::default() }));
    unread.layered(router)
}

async fn healthz() -> &'static str {
    "ok\n"
}

async fn readyz(State(shared): State<Arc<Shared>>) -> Response {
    told("ready", &shared.gateway.readiness.problems())
}

async fn servingz(State(shared): State<Arc<Shared>>) -> Response {
    told("serving", &shared.gateway.readiness.obstacles())
}

fn told(what: &str, problems: &[String]) -> Response {
    let status = if problems.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ what: problems.is_empty(), "problems": problems }))).into_response()
}
