//! A connection that is being opened, and then the connection. All calls that wait for it share it; one whose time is over leaves it
//! to those that come after it, since some servers take longer to be understood than a call may.

use std::sync::Arc;
use std::time::Duration;

use croft_serve::Tasks;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use rmcp::model;
use rmcp::model::ProtocolVersion;
use rmcp::service::{ClientLifecycleMode, ClientServiceExt as _};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::common::client_side_sse::NeverRetry;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use secrecy::ExposeSecret as _;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::blot::Blot;
use super::http::Http;
use super::running::Running;
use super::{McpServer, credential};
use crate::http_client::HttpClient;
use crate::tools::Error;

/// Bytes of one answer. A larger one is not read to its end, and the model is told so.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Calls that may be under way at once. Further ones wait, within their time limits.
const CALLS_MAX: usize = 64;
/// How long it may take, whoever waits for it. At the bound the server counts as one that can't be reached, and the next call tries anew.
const OPEN_TIMEOUT: Duration = Duration::from_mins(1);

/// How to come to a server, and on whose behalf.
pub(super) struct Way {
    pub(super) server: McpServer,
    pub(super) client: HttpClient,
    pub(super) user: String,
    /// Where connections are opened and closed.
    pub(super) tasks: Tasks,
}

/// See the module. Clones share the connection.
#[derive(Clone)]
pub(super) struct Opening {
    opened: Shared<BoxFuture<'static, Result<Arc<Running>, Error>>>,
}

impl Opening {
    /// Begins to open a connection, in a task that gives it up when `ended` is cancelled.
    pub(super) fn begin(way: &Arc<Way>, ended: &CancellationToken) -> Self {
        let to = Arc::clone(way);
        let opened = async move { open(&to).await.map(Arc::new) }.boxed().shared();
        let (goes_on, ended) = (opened.clone(), ended.clone());
        let opening = async move { drop(ended.run_until_cancelled(goes_on).await) };
        drop(way.tasks.spawn("mcp-open", opening));
        Self { opened }
    }

    /// The connection, once it is open. Fails with a sentence for the model where it could not be.
    pub(super) async fn opened(self) -> Result<Arc<Running>, Error> {
        self.opened.await
    }

    /// Whether it is worth waiting for: it is being opened, or open and not the one that `expired`.
    pub(super) fn may_serve(&self, expired: Option<&Arc<Running>>) -> bool {
        match self.opened.peek() {
            None => true,
            Some(Ok(running)) => {
                running.peer().is_some() && expired.is_none_or(|expired| !Arc::ptr_eq(running, expired))
            }
            Some(Err(_)) => false,
        }
    }
}

async fn open(way: &Way) -> Result<Running, Error> {
    let McpServer { name, url, .. } = &way.server;
    let mut config = StreamableHttpClientTransportConfig::with_uri(url.as_str())
        .max_concurrent_requests(CALLS_MAX)
        .max_sse_event_size(ANSWER_BYTES_MAX)
        .max_json_response_size(ANSWER_BYTES_MAX);
    // A call that broke off is never made again behind our back: whether it may be is its class of replay.
    config.retry_config = Arc::new(NeverRetry::default());
    // The library would give up what is under way in a session that expired, and tell it as the server's refusal.
    config.reinit_on_expired_session = false;
    let token = credential::of(&way.server, &way.user)?;
    let blot = Blot::new(token.as_ref());
    if let Some(token) = token {
        config = config.auth_header(token.expose_secret());
    }
    let unreachable = |error: &dyn std::error::Error| {
        tracing::warn!(server = %name, error = %blot.error(error), "an MCP server can't be reached");
        Error(format!("The tool's server {name} can't be reached; the call was not made."))
    };
    let client = way.client.get().map_err(|error| unreachable(&error))?;
    let ended = CancellationToken::new();
    // Also when this future is dropped before the connection is open.
    let guard = ended.clone().drop_guard();
    let transport = StreamableHttpClientTransport::with_client(Http::new(client, ended), config);
    // Older servers want a handshake first; they say so, or say nothing.
    let lifecycle = ClientLifecycleMode::Auto {
        preferred_versions: vec![ProtocolVersion::V_2026_07_28],
        legacy_version: Some(ProtocolVersion::LATEST_WITH_INITIALIZE),
    };
    let service = timeout(OPEN_TIMEOUT, us().serve_with_lifecycle(transport, lifecycle)).await;
    let service = service.map_err(|late| unreachable(&late))?.map_err(|error| unreachable(&error))?;
    Ok(Running::new(service, blot, guard, way.tasks.clone()))
}

/// Who a server is told that we are.
fn us() -> model::ClientConfig {
    let us = model::Implementation::new("croft", env!("CARGO_PKG_VERSION"));
    model::ClientConfig::new(model::ClientCapabilities::default(), us)
}
