//! An MCP server with good tools and bad ones, that writes down what it hears.

#![allow(dead_code, reason = "each test program uses a part of it")]
#![expect(clippy::unwrap_used, reason = "a helper of tests may fail loudly")]

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use croft_serve::Tasks;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ErrorData, ProtocolVersion,
    ServerCapabilities, ServerConfig,
};
use rmcp::service::RequestContext;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{RoleServer, ServerHandler};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Which revision of the protocol it speaks.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Era {
    /// 2026-07-28: each request stands by itself.
    Stateless,
    /// 2025-11-25: a handshake first, and a session after it.
    Sessions,
    /// The same, and it has no answer at all for what it does not know.
    SilentSessions,
}

/// How long a server of the older era takes to end a session.
const ENDING: Duration = Duration::from_millis(300);

pub(crate) struct Server {
    pub(crate) url: String,
    heard: Arc<Heard>,
    stop: CancellationToken,
    tasks: Tasks,
}

#[derive(Default)]
struct Heard {
    authorization: Mutex<Option<String>>,
    idempotency_keys: Mutex<Vec<String>>,
    traceparents: Mutex<Vec<String>>,
    running: AtomicUsize,
    at_once: AtomicUsize,
    calls: watch::Sender<usize>,
    /// The requests of each session so far, and how many it has until it expires.
    requests: Mutex<HashMap<String, usize>>,
    requests_max: AtomicUsize,
    ended: AtomicUsize,
}

#[derive(Clone)]
struct Handler {
    era: Era,
    heard: Arc<Heard>,
}

impl Server {
    pub(crate) async fn start(era: Era) -> Self {
        let (heard, stop, tasks) = (Arc::<Heard>::default(), CancellationToken::new(), Tasks::new());
        heard.requests_max.store(usize::MAX, Ordering::SeqCst);
        let config = StreamableHttpServerConfig::default()
            .with_legacy_session_mode(era != Era::Stateless)
            .with_json_response(era == Era::Stateless)
            .with_cancellation_token(stop.clone());
        let handler = Handler { era, heard: Arc::clone(&heard) };
        let service: StreamableHttpService<Handler, LocalSessionManager> =
            StreamableHttpService::new(move || Ok(handler.clone()), Arc::default(), config);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/mcp", listener.local_addr().unwrap());
        let mut router = axum::Router::new().nest_service("/mcp", service);
        if era != Era::Stateless {
            router = router.layer(from_fn_with_state(Arc::clone(&heard), of_sessions));
            router = router.layer(from_fn_with_state(era, refuse_the_newer_era));
        }
        let stopped = stop.clone().cancelled_owned();
        let serving = async move {
            tokio::select! {
                served = async { axum::serve(listener, router).await } => served.unwrap(),
                () = stopped => {}
            }
        };
        drop(tasks.spawn("mcp-server", serving));
        Self { url, heard, stop, tasks }
    }

    /// Nobody listens there any more.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.tasks.shutdown(Duration::from_secs(90)).await;
    }

    pub(crate) fn last_authorization(&self) -> Option<String> {
        self.heard.authorization.lock().unwrap().clone()
    }

    /// The traces that its calls belonged to.
    pub(crate) fn traceparents(&self) -> Vec<String> {
        self.heard.traceparents.lock().unwrap().clone()
    }

    pub(crate) fn idempotency_keys(&self) -> Vec<String> {
        self.heard.idempotency_keys.lock().unwrap().clone()
    }

    /// The most calls that ran at a time.
    pub(crate) fn at_once(&self) -> usize {
        self.heard.at_once.load(Ordering::SeqCst)
    }

    /// From now on a session expires after so many requests; the handshake ends with the first.
    pub(crate) fn expire_sessions_after(&self, requests: usize) {
        self.heard.requests_max.store(requests, Ordering::SeqCst);
    }

    /// The sessions that it was told to end, and has.
    pub(crate) fn ended_sessions(&self) -> usize {
        self.heard.ended.load(Ordering::SeqCst)
    }

    pub(crate) fn calls(&self) -> usize {
        *self.heard.calls.borrow()
    }

    pub(crate) async fn until_calls(&self, count: usize) {
        self.heard.calls.subscribe().wait_for(|calls| *calls >= count).await.unwrap();
    }
}

/// As servers of the older era do, which know nothing of this version.
async fn refuse_the_newer_era(State(era): State<Era>, request: Request, next: Next) -> Response {
    if request.headers().get("mcp-protocol-version").is_some_and(|version| version == "2026-07-28") {
        if era == Era::SilentSessions {
            return std::future::pending().await;
        }
        return (StatusCode::BAD_REQUEST, "Bad Request: unsupported protocol version").into_response();
    }
    next.run(request).await
}

async fn of_sessions(State(heard): State<Arc<Heard>>, request: Request, next: Next) -> Response {
    let (method, session) = (request.method().clone(), session(request.headers()));
    if method == Method::DELETE {
        tokio::time::sleep(ENDING).await;
        heard.ended.fetch_add(1, Ordering::SeqCst);
    } else if let Some(session) = session.filter(|_| method == Method::POST) {
        let mut requests = heard.requests.lock().unwrap();
        let count = requests.entry(session).or_default();
        *count += 1;
        if *count > heard.requests_max.load(Ordering::SeqCst) {
            return (StatusCode::NOT_FOUND, "Not Found: no such session").into_response();
        }
    }
    next.run(request).await
}

fn session(headers: &HeaderMap) -> Option<String> {
    headers.get("mcp-session-id").and_then(|id| id.to_str().ok()).map(str::to_owned)
}

impl ServerHandler for Handler {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }

    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        match self.era {
            Era::Stateless => Cow::Borrowed(&[ProtocolVersion::V_2026_07_28]),
            Era::Sessions | Era::SilentSessions => Cow::Borrowed(&[ProtocolVersion::V_2025_11_25]),
        }
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let heard = &self.heard;
        let running = heard.running.fetch_add(1, Ordering::SeqCst) + 1;
        heard.at_once.fetch_max(running, Ordering::SeqCst);
        heard.calls.send_modify(|calls| *calls += 1);
        let authorization = context
            .extensions
            .get::<Parts>()
            .and_then(|parts| parts.headers.get("authorization"))
            .and_then(|value| value.to_str().ok().map(str::to_owned));
        heard.authorization.lock().unwrap().clone_from(&authorization);
        if let Some(key) = context.meta.get("croft.dev/idempotencyKey").and_then(Value::as_str) {
            heard.idempotency_keys.lock().unwrap().push(key.to_owned());
        }
        if let Some(traceparent) = context.meta.get("traceparent").and_then(Value::as_str) {
            heard.traceparents.lock().unwrap().push(traceparent.to_owned());
        }
        let arguments = request.arguments.unwrap_or_default();
        let number = |name: &str| arguments.get(name).and_then(Value::as_u64).unwrap_or_default();
        tokio::time::sleep(Duration::from_millis(number("wait_ms"))).await;
        let text = |text: String| CallToolResult::success(vec![ContentBlock::text(text)]);
        let result = match &*request.name {
            "add" => Ok(text((number("a") + number("b")).to_string())),
            "hang" => std::future::pending().await,
            "huge" => Ok(text("x".repeat(usize::try_from(number("megabytes")).unwrap() * 1024 * 1024))),
            "fail" => Ok(CallToolResult::error(vec![ContentBlock::text("The well is dry.")])),
            // How long it is, and not what it is: the result goes to the model.
            "whoami" => Ok(text(format!("{} characters", authorization.unwrap_or_default().len()))),
            // These give away what must be kept out of what is told of them.
            "echo" => Ok(text(format!("You sent {}.", authorization.unwrap_or_default()))),
            "confess" => Ok(CallToolResult::error(vec![ContentBlock::text(authorization.unwrap_or_default())])),
            "describe" => Ok(described(&authorization.unwrap_or_default())),
            "collapse" => Err(ErrorData::internal_error("the well fell in", None)),
            "rebuff" => Err(ErrorData::invalid_params(rebuff(&authorization.unwrap_or_default()), None)),
            other => Err(ErrorData::invalid_params(format!("no tool {other}"), None)),
        };
        heard.running.fetch_sub(1, Ordering::SeqCst);
        result.map(CallToolResponse::Complete)
    }
}

/// Only as structure, which stands in for text.
fn described(authorization: &str) -> CallToolResult {
    let mut result = CallToolResult::structured(serde_json::json!({ "authorization": authorization }));
    result.content.clear();
    result
}

/// So long that a cut to a thousand characters goes through the credential.
fn rebuff(authorization: &str) -> String {
    let padding = "x".repeat(1_000 - "Bearer ".len() - 8);
    format!("{padding}{authorization}")
}
