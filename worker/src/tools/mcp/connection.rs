//! A connection to one MCP server, for the tools of one step. It is opened for the first call, and again after it broke.

mod blot;
mod http;
mod opening;
mod running;

use std::sync::{Arc, Mutex, PoisonError};

use croft_serve::{Tasks, trace};
use rmcp::model::{CallToolRequestParams, CallToolResponse, CallToolResult, ErrorCode, RequestMetaObject};
use rmcp::service::ServiceError;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{McpServer, credential};
use crate::http_client::HttpClient;
use crate::tools::{Error, Invocation};
use http::is_session_expired;
use opening::{Opening, Way};
use running::Running;

/// Characters of a server's own words in an error. What is longer is cut.
const MESSAGE_CHARACTERS_MAX: usize = 1_000;
/// Errors of JSON-RPC by which a server says that it did nothing of what it was asked. All others it may have come to on the way.
const UNDONE: [ErrorCode; 4] =
    [ErrorCode::PARSE_ERROR, ErrorCode::INVALID_REQUEST, ErrorCode::METHOD_NOT_FOUND, ErrorCode::INVALID_PARAMS];
/// Where a server finds the key that is the same on every try of a call.
const IDEMPOTENCY_KEY: &str = "croft.dev/idempotencyKey";
/// And the trace that the call belongs to, as MCP has it (SEP-414).
const TRACEPARENT: &str = "traceparent";

/// See the module.
pub(super) struct Connection {
    way: Arc<Way>,
    /// The newest. An older one, whose session expired, lasts as long as calls that were begun on it.
    newest: Mutex<Option<Opening>>,
    /// Nobody has this any more, and so nobody waits for what is being opened.
    ended: CancellationToken,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

impl Connection {
    pub(super) fn new(server: McpServer, client: HttpClient, user: &str, tasks: Tasks) -> Self {
        let way = Arc::new(Way { server, client, user: user.to_owned(), tasks });
        Self { way, newest: Mutex::default(), ended: CancellationToken::new() }
    }

    /// Waits until it is open. The error is a sentence for the model.
    pub(super) async fn ready(&self) -> Result<(), Error> {
        self.running(None).await.map(drop)
    }

    /// Makes one call. The error is a sentence for the model; what went wrong beneath is in the log.
    pub(super) async fn call(&self, tool: &str, invocation: Invocation) -> Result<CallToolResult, Error> {
        let name = &self.way.server.name;
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
                let came_to = if UNDONE.contains(&refused.code) {
                    "refused the call"
                } else {
                    "failed, and the call may have taken effect"
                };
                Err(Error(format!("The tool's server {name} {came_to}: {said}")))
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
        let opening = {
            // No code that holds the lock can leave it half changed.
            let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
            match newest.as_ref().filter(|opening| opening.may_serve(expired)) {
                Some(opening) => opening.clone(),
                None => newest.insert(Opening::begin(&self.way, &self.ended)).clone(),
            }
        };
        opening.opened().await
    }
}

async fn ask(running: &Running, call: CallToolRequestParams) -> Result<CallToolResponse, ServiceError> {
    running.peer().ok_or(ServiceError::TransportClosed)?.call_tool_once(call).await
}
