//! The Anthropic Messages API, streamed: `POST {base_url}/v1/messages`, version 2023-06-01.
//!
//! Format: <https://docs.anthropic.com/en/docs/build-with-claude/streaming>.

mod decode;
mod encode;
mod failure;

use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap};
use secrecy::{ExposeSecret as _, SecretString};
use sse_stream::SseStream;
use tokio::time::{Instant, timeout_at};

use crate::body::{Limits, watched};
use crate::delta::Delta;
use crate::error::{Class, Error};
use crate::provider::{DeltaStream, Provider};
use crate::request::Request;
use crate::retry_after::retry_after;
use decode::Decoder;

/// The name by which it is configured and granted.
pub const NAME: &str = "anthropic";
/// Where it is, unless configured otherwise.
pub const BASE_URL: &str = "https://api.anthropic.com";

const VERSION: &str = "2023-06-01";
/// Of the body of a refusal, no more is read: it is a sentence in JSON.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;

/// How to reach the API.
#[derive(Debug, Clone)]
pub struct Settings {
    /// With or without a trailing `/v1`.
    pub base_url: String,
    /// An empty one is not sent: a model that is served in the cluster may ask for none.
    pub api_key: SecretString,
    pub limits: Limits,
}

/// See the module.
#[derive(Clone)]
pub struct Anthropic {
    inner: Arc<Inner>,
}

struct Inner {
    client: reqwest::Client,
    url: String,
    api_key: SecretString,
    limits: Limits,
}

impl Anthropic {
    /// Fails when no TLS client can be made, for example without any root certificate on the machine.
    pub fn new(settings: Settings) -> Result<Self, reqwest::Error> {
        let Settings { base_url, api_key, limits } = settings;
        let client = reqwest::Client::builder()
            .connect_timeout(std::time::Duration::from_secs(10))
            // Somebody else's server must not be sent the key.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("croft/", env!("CARGO_PKG_VERSION")))
            .build()?;
        let base_url = base_url.trim_end_matches('/');
        let url = format!("{}/v1/messages", base_url.strip_suffix("/v1").unwrap_or(base_url));
        Ok(Self { inner: Arc::new(Inner { client, url, api_key, limits }) })
    }
}

impl Provider for Anthropic {
    fn name(&self) -> &'static str {
        NAME
    }

    fn stream(&self, request: Request) -> DeltaStream {
        let inner = Arc::clone(&self.inner);
        let answer = async move {
            let until = Instant::now() + inner.limits.first_token;
            let opened = timeout_at(until, inner.open(&request)).await;
            let response = opened.map_err(|_| too_late(inner.limits))??;
            let key = inner.api_key.clone();
            let bytes = response.bytes_stream().map_err(reqwest::Error::without_url);
            Ok(decode(bytes, inner.limits, until).map_err(move |error| blot_out(error, &key)))
        };
        stream::once(answer).try_flatten().boxed()
    }
}

impl Inner {
    async fn open(&self, request: &Request) -> Result<reqwest::Response, Error> {
        let mut call = self.client.post(&self.url);
        let key = self.api_key.expose_secret();
        if !key.is_empty() {
            call = call.header("x-api-key", key);
        }
        let response = call
            .header("anthropic-version", VERSION)
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "text/event-stream")
            .body(encode::body(request).to_string())
            .send()
            .await
            .map_err(|error| unreachable(error.without_url()))?;
        if response.status() == reqwest::StatusCode::OK {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        Err(blot_out(refused(status, &headers, &body(response).await), &self.api_key))
    }
}

fn unreachable(error: reqwest::Error) -> Error {
    let class = if error.is_timeout() { Class::Timeout } else { Class::Network };
    Error::new(NAME, class, "could not be reached").because(error)
}

fn too_late(limits: Limits) -> Error {
    Error::new(NAME, Class::Timeout, format!("gave no output for {:?}", limits.first_token))
}

async fn body(response: reqwest::Response) -> Vec<u8> {
    let mut body = Vec::new();
    let mut chunks = response.bytes_stream();
    // A refusal whose body breaks off is still a refusal.
    while let Some(Ok(chunk)) = chunks.next().await {
        body.extend_from_slice(&chunk);
        if body.len() > REFUSAL_BYTES_MAX {
            break;
        }
    }
    body
}

/// What an HTTP refusal means.
fn refused(status: u16, headers: &HeaderMap, body: &[u8]) -> Error {
    let parsed: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let mut error = failure::of_status(status, parsed.as_ref());
    error.status = Some(status);
    error.retry_after = retry_after(headers, parsed.as_ref(), Timestamp::now());
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    error.request_id = header("request-id").map(str::to_owned);
    // The header corrects the rule of its status, but money that is spent does not come back by trying again.
    error.should_retry = match header("x-should-retry") {
        Some("true") if error.class != Class::Quota => Some(true),
        Some("false") => Some(false),
        _ => None,
    };
    error
}

/// A provider's message may quote what we sent; the key must not go into an event or a log.
fn blot_out(mut error: Error, key: &SecretString) -> Error {
    let key = key.expose_secret();
    if !key.is_empty() && error.message.contains(key) {
        error.message = error.message.replace(key, "***");
    }
    error
}

/// The deltas of a body. `first_token_until` is when output must have begun.
fn decode<S, E>(
    bytes: S,
    limits: Limits,
    first_token_until: Instant,
) -> impl Stream<Item = Result<Delta, Error>> + Send + use<S, E>
where
    S: Stream<Item = Result<Bytes, E>> + Send + Unpin + 'static,
    E: std::error::Error + Send + Sync + 'static,
{
    let events = SseStream::from_bytes_stream(Box::pin(watched(NAME, bytes, limits)));
    let state = Some((events, Decoder::default()));
    stream::unfold(state, move |state| async move {
        let (mut events, mut decoder) = state?;
        let next = if decoder.has_output() {
            Ok(events.next().await)
        } else {
            timeout_at(first_token_until, events.next()).await
        };
        let outcome = match next {
            Err(_) => Err(too_late(limits)),
            Ok(None) => Err(decode::cut()),
            Ok(Some(Err(error))) => Err(broken(error)),
            Ok(Some(Ok(event))) => event.data.as_deref().map_or(Ok(Vec::new()), |data| decoder.event(data)),
        };
        Some(match outcome {
            Err(error) => (vec![Err(error)], None),
            Ok(deltas) => {
                let over = decoder.is_over();
                (deltas.into_iter().map(Ok).collect(), (!over).then_some((events, decoder)))
            }
        })
    })
    .map(stream::iter)
    .flatten()
}

/// An error of the body keeps its class on the way through the parser.
fn broken(error: sse_stream::Error) -> Error {
    match error {
        sse_stream::Error::Body(source) => match source.downcast::<Error>() {
            Ok(error) => *error,
            Err(source) => Error::new(NAME, Class::Network, "broke the stream off").because(source),
        },
        other => Error::new(NAME, Class::Network, "sent what is no event stream").because(other),
    }
}

#[cfg(test)]
mod tests;
