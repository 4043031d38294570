//! A connection to one MCP server, for the tools of one step. It is opened by the first call, and again after it broke.

mod blot;
mod http;
mod running;

use std::sync::Arc;

use croft_serve::{Tasks, trace};
use rmcp::model;
use rmcp::model::{CallToolRequestParams, CallToolResponse, CallToolResult, ProtocolVersion, RequestMetaObject};
use rmcp::service::{ClientLifecycleMode, ClientServiceExt as _, ServiceError};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::common::client_side_sse::NeverRetry;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use secrecy::ExposeSecret as _;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::{McpServer, credential};
use crate::http_client::HttpClient;
use crate::tools::{Error, Invocation};
use blot::Blot;
use http::{Http, is_session_expired};
use running::Running;

/// Bytes of one answer. A larger one is not read to its end, and the model is told so.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Calls that may be under way at once. Further ones wait, within their time limits.
const CALLS_MAX: usize = 64;
/// Characters of a server's own words in an error. What is longer is cut.
const MESSAGE_CHARACTERS_MAX: usize = 1_000;
/// Where a server finds the key that is the same on every try of a call.
const IDEMPOTENCY_KEY: &str = "croft.dev/idempotencyKey";
/// And the trace that the call belongs to, as MCP has it (SEP-414).
const TRACEPARENT: &str = "traceparent";

/// See the module.
pub(super) struct Connection {
    server: McpServer,
    client: HttpClient,
    user: String,
    /// Where a connection is closed.
    tasks: Tasks,
    /// The newest. An older one, whose session expired, lasts as long as calls that were begun on it.
    running: Mutex<Option<Arc<Running>>>,
}

impl Connection {
    pub(super) fn new(server: McpServer, client: HttpClient, user: &str, tasks: Tasks) -> Self {
        Self { server, client, user: user.to_owned(), tasks, running: Mutex::default() }
    }

    /// Makes one call. The error is a sentence for the model; what went wrong beneath is in the log.
    pub(super) async fn call(&self, tool: &str, invocation: Invocation) -> Result<CallToolResult, Error> {
        let name = &self.server.name;
        let mut meta = RequestMetaObject::new();
        meta.insert(IDEMPOTENCY_KEY.to_owned(), Value::String(invocation.idempotency_key));
        if let Some(traceparent) = trace::traceparent() {
            meta.insert(TRACEPARENT.to_owned(), Value::String(traceparent));
        }
        let mut call = CallToolRequestParams::new(tool.to_owned()).with_arguments(invocation.arguments);
        call.meta = Some(meta);
        let mut running = self.running(None).await?;
        let mut answer = ask(&running, call.clone()).await;
        if answer.as_ref().is_err_and(is_session_expired) {
            running = self.running(Some(&running)).await?;
            answer = ask(&running, call).await;
        }
        let blot = &running.blot;
        match answer {
            Ok(CallToolResponse::Complete(mut result)) => {
                blot.result(&mut result);
                Ok(result)
            }
            Ok(_) => Err(Error(format!("The tool of server {name} asks for more than a call can give it."))),
            Err(ServiceError::McpError(refused)) => {
                let mut message = refused.message.into_owned();
                // Before the cut, which may be in the midst of the credential.
                blot.text(&mut message);
                let said: String = message.chars().take(MESSAGE_CHARACTERS_MAX).collect();
                Err(Error(format!("The tool's server {name} refused the call: {said}")))
            }
            Err(error) => {
                tracing::warn!(server = %name, tool, error = %blot.error(&error), "an MCP call failed");
                let problem = "broke off, or gave no usable answer within 4 MiB; the call may have taken effect";
                Err(Error(format!("The tool's server {name} {problem}.")))
            }
        }
    }

    /// The connection, which is not the one that `expired`.
    async fn running(&self, expired: Option<&Arc<Running>>) -> Result<Arc<Running>, Error> {
        let mut newest = self.running.lock().await;
        let is_usable = |running: &&Arc<Running>| {
            running.peer().is_some() && expired.is_none_or(|expired| !Arc::ptr_eq(running, expired))
        };
        if let Some(running) = newest.as_ref().filter(is_usable) {
            return Ok(Arc::clone(running));
        }
        Ok(Arc::clone(newest.insert(Arc::new(self.open().await?))))
    }

    async fn open(&self) -> Result<Running, Error> {
        let McpServer { name, url, .. } = &self.server;
        let mut config = StreamableHttpClientTransportConfig::with_uri(url.as_str())
            .max_concurrent_requests(CALLS_MAX)
            .max_sse_event_size(ANSWER_BYTES_MAX)
            .max_json_response_size(ANSWER_BYTES_MAX);
        // A call that broke off is never made again behind our back: whether it may be is its class of replay.
        config.retry_config = Arc::new(NeverRetry::default());
        // The library would give up what is under way in a session that expired, and tell it as the server's refusal.
        config.reinit_on_expired_session = false;
        let token = credential::of(&self.server, &self.user)?;
        let blot = Blot::new(token.as_ref());
        if let Some(token) = token {
            config = config.auth_header(token.expose_secret());
        }
        let unreachable = |error: &dyn std::error::Error| {
            tracing::warn!(server = %name, error = %blot.error(error), "an MCP server can't be reached");
            Error(format!("The tool's server {name} can't be reached; the call was not made."))
        };
        let client = self.client.get().map_err(|error| unreachable(&error))?;
        let ended = CancellationToken::new();
        // Also when this future is dropped before the connection is open.
        let guard = ended.clone().drop_guard();
        let transport = StreamableHttpClientTransport::with_client(Http::new(client, ended), config);
        // Older servers want a handshake first; they say so, or say nothing.
        let lifecycle = ClientLifecycleMode::Auto {
            preferred_versions: vec![ProtocolVersion::V_2026_07_28],
            legacy_version: Some(ProtocolVersion::LATEST_WITH_INITIALIZE),
        };
        let service = us().serve_with_lifecycle(transport, lifecycle).await.map_err(|error| unreachable(&error))?;
        Ok(Running::new(service, blot, guard, self.tasks.clone()))
    }
}

async fn ask(running: &Running, call: CallToolRequestParams) -> Result<CallToolResponse, ServiceError> {
    running.peer().ok_or(ServiceError::TransportClosed)?.call_tool_once(call).await
}

/// Who a server is told that we are.
fn us() -> model::ClientConfig {
    let us = model::Implementation::new("croft", env!("CARGO_PKG_VERSION"));
    model::ClientConfig::new(model::ClientCapabilities::default(), us)
}
