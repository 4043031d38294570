//! The HTTP client of one connection: all that it has under way ends with the connection.
//!
//! The library's transport is a task of its own, which waits for the first answers of a server without looking whether anybody still
//! does. At a server that takes requests and says nothing, the task, its socket and the credential in its header would stay for good.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use reqwest::header::{HeaderName, HeaderValue};
use rmcp::model::{ClientJsonRpcMessage, ClientRequest, ErrorData, RequestId, ServerJsonRpcMessage};
use rmcp::service::ServiceError;
use rmcp::transport::common::client_side_sse::BoxedSseResponse;
use rmcp::transport::streamable_http_client::{
    StreamableHttpClient, StreamableHttpError, StreamableHttpPostResponse, StreamableHttpResponseLimits,
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How long a server may be silent to `server/discover`. Then it counts as one of the older era, which need not know that. It is longer
/// than connecting may take, so that one that can't be reached is not tried twice, and shorter than the ten seconds after which the
/// library gives up on its own.
const DISCOVER_TIMEOUT: Duration = Duration::from_secs(9);

type Failure = StreamableHttpError<reqwest::Error>;
type Headers = HashMap<HeaderName, HeaderValue>;

/// See the module.
#[derive(Clone)]
pub(super) struct Http {
    client: reqwest::Client,
    ended: CancellationToken,
}

impl Http {
    /// One that gives up what it has under way when `ended` is cancelled.
    pub(super) fn new(client: reqwest::Client, ended: CancellationToken) -> Self {
        Self { client, ended }
    }

    async fn unless_ended<T>(&self, request: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        self.ended.run_until_cancelled(request).await.unwrap_or(Err(Failure::TransportChannelClosed))
    }

    fn until_ended(&self, stream: BoxedSseResponse) -> BoxedSseResponse {
        stream.take_until(self.ended.clone().cancelled_owned()).boxed()
    }
}

/// Whether the server had forgotten the session of a call, and so has not made it.
pub(super) fn is_session_expired(error: &ServiceError) -> bool {
    let ServiceError::TransportSend(error) = error else { return false };
    matches!(error.error.downcast_ref(), Some(Failure::SessionExpired))
}

fn discover_id(message: &ClientJsonRpcMessage) -> Option<RequestId> {
    match message {
        ClientJsonRpcMessage::Request(request) if matches!(request.request, ClientRequest::DiscoverRequest(_)) => {
            Some(request.id.clone())
        }
        _ => None,
    }
}

impl StreamableHttpClient for Http {
    type Error = reqwest::Error;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        auth_header: Option<String>,
        custom_headers: Headers,
    ) -> Result<StreamableHttpPostResponse, Failure> {
        let limits = StreamableHttpResponseLimits::default();
        self.post_message_with_response_limits(uri, message, session_id, auth_header, custom_headers, limits).await
    }

    async fn post_message_with_response_limits(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        auth_header: Option<String>,
        custom_headers: Headers,
        limits: StreamableHttpResponseLimits,
    ) -> Result<StreamableHttpPostResponse, Failure> {
        let discover_id = discover_id(&message);
        let posted = self.client.post_message_with_response_limits(
            uri,
            message,
            session_id,
            auth_header,
            custom_headers,
            limits,
        );
        let Some(id) = discover_id else {
            return Ok(match self.unless_ended(posted).await? {
                StreamableHttpPostResponse::Sse(stream, session) => {
                    StreamableHttpPostResponse::Sse(self.until_ended(stream), session)
                }
                answer => answer,
            });
        };
        // The whole answer, which may be a stream that is silent.
        let answered = self.unless_ended(async { posted.await?.expect_initialized().await });
        // As such servers answer that do. The handshake can follow on the same transport, since nothing waits there any more.
        let unanswered = || {
            let unknown = ErrorData::invalid_request("server/discover was not answered", None);
            Ok((ServerJsonRpcMessage::error(unknown, Some(id)), None))
        };
        let answer = timeout(DISCOVER_TIMEOUT, answered).await;
        let (message, session) = answer.unwrap_or_else(|_| unanswered())?;
        Ok(StreamableHttpPostResponse::Json(message, session))
    }

    /// Not given up with the connection, at whose end it is made. The library waits five seconds for it.
    async fn delete_session(
        &self,
        uri: Arc<str>,
        session_id: Arc<str>,
        auth_header: Option<String>,
        custom_headers: Headers,
    ) -> Result<(), Failure> {
        self.client.delete_session(uri, session_id, auth_header, custom_headers).await
    }

    async fn get_stream(
        &self,
        uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        auth_header: Option<String>,
        custom_headers: Headers,
    ) -> Result<BoxedSseResponse, Failure> {
        let bytes_max = StreamableHttpResponseLimits::default().max_sse_event_size;
        self.get_stream_with_max_sse_event_size(uri, session_id, last_event_id, auth_header, custom_headers, bytes_max)
            .await
    }

    async fn get_stream_with_max_sse_event_size(
        &self,
        uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        auth_header: Option<String>,
        custom_headers: Headers,
        max_sse_event_size: usize,
    ) -> Result<BoxedSseResponse, Failure> {
        let opened = self.client.get_stream_with_max_sse_event_size(
            uri,
            session_id,
            last_event_id,
            auth_header,
            custom_headers,
            max_sse_event_size,
        );
        Ok(self.until_ended(self.unless_ended(opened).await?))
    }
}
