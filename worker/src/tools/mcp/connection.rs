//! A connection to one MCP server, for the tools of one step. It is opened by the first call, and again after it broke.

mod blot;

use std::sync::Arc;

use croft_serve::trace;
use rmcp::model::{CallToolRequestParams, CallToolResponse, CallToolResult, ProtocolVersion, RequestMetaObject};
use rmcp::service::{ClientLifecycleMode, ClientServiceExt as _, Peer, RunningService, ServiceError};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::common::client_side_sse::NeverRetry;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::{RoleClient, model};
use secrecy::ExposeSecret as _;
use serde_json::Value;
use tokio::sync::Mutex;

use super::{McpServer, credential};
use crate::http_client::HttpClient;
use crate::tools::{Error, Invocation};
use blot::Blot;

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
    running: Mutex<Option<Running>>,
}

/// A connection that was opened, and what keeps the credential of it out of what is told.
struct Running {
    service: RunningService<RoleClient, model::ClientConfig>,
    blot: Blot,
}

impl Connection {
    pub(super) fn new(server: McpServer, client: HttpClient, user: &str) -> Self {
        Self { server, client, user: user.to_owned(), running: Mutex::default() }
    }

    /// Makes one call. The error is a sentence for the model; what went wrong beneath is in the log.
    pub(super) async fn call(&self, tool: &str, invocation: Invocation) -> Result<CallToolResult, Error> {
        let name = &self.server.name;
        let (peer, blot) = self.peer().await?;
        let mut meta = RequestMetaObject::new();
        meta.insert(IDEMPOTENCY_KEY.to_owned(), Value::String(invocation.idempotency_key));
        if let Some(traceparent) = trace::traceparent() {
            meta.insert(TRACEPARENT.to_owned(), Value::String(traceparent));
        }
        let mut call = CallToolRequestParams::new(tool.to_owned()).with_arguments(invocation.arguments);
        call.meta = Some(meta);
        match peer.call_tool_once(call).await {
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

    async fn peer(&self) -> Result<(Peer<RoleClient>, Blot), Error> {
        let mut running = self.running.lock().await;
        let is_open = |Running { service, .. }: &&Running| !service.is_closed() && !service.is_transport_closed();
        if let Some(Running { service, blot }) = running.as_ref().filter(is_open) {
            return Ok((service.peer().clone(), blot.clone()));
        }
        let Running { service, blot } = running.insert(self.open().await?);
        Ok((service.peer().clone(), blot.clone()))
    }

    async fn open(&self) -> Result<Running, Error> {
        let McpServer { name, url, .. } = &self.server;
        let mut config = StreamableHttpClientTransportConfig::with_uri(url.as_str())
            .max_concurrent_requests(CALLS_MAX)
            .max_sse_event_size(ANSWER_BYTES_MAX)
            .max_json_response_size(ANSWER_BYTES_MAX);
        // A call that broke off is never made again behind our back: whether it may be is its class of replay.
        config.retry_config = Arc::new(NeverRetry::default());
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
        let transport = StreamableHttpClientTransport::with_client(client, config);
        // Older servers want a handshake first; they say so, or say nothing.
        let lifecycle = ClientLifecycleMode::Auto {
            preferred_versions: vec![ProtocolVersion::V_2026_07_28],
            legacy_version: Some(ProtocolVersion::LATEST_WITH_INITIALIZE),
        };
        let service = us().serve_with_lifecycle(transport, lifecycle).await.map_err(|error| unreachable(&error))?;
        Ok(Running { service, blot })
    }
}

/// Who a server is told that we are.
fn us() -> model::ClientConfig {
    let us = model::Implementation::new("croft", env!("CARGO_PKG_VERSION"));
    model::ClientConfig::new(model::ClientCapabilities::default(), us)
}
