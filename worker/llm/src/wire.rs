//! The HTTP half of an adapter: sends a call, tells an answer from a refusal, and keeps the key out of all that is told.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use croft_serve::trace;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use reqwest::Url;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap};
use serde_json::Value;
use tokio::time::{Instant, timeout, timeout_at};

use crate::answer::{Decoder, decoded, too_late};
use crate::body::{Limits, REFUSAL_BYTES_MAX};
use crate::error::{Class, Error};
use crate::key::{ApiKey, Held};
use crate::provider::DeltaStream;
use crate::retry_after::{retry_after, retry_info};

/// By which a server of one's own goes on with the trace: <https://www.w3.org/TR/trace-context/>.
const TRACEPARENT: &str = "traceparent";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a small question, such as one for a count of tokens, may take. At the bound: [`Class::Timeout`].
const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the body of an answer that is no stream may take. At the bound it is what has come.
const BODY_TIMEOUT: Duration = Duration::from_secs(3);
/// Characters of a provider's own words that are told on. What is longer is cut: it goes into events and logs.
const MESSAGE_CHARACTERS_MAX: usize = 1_000;

/// How to reach a provider.
#[derive(Debug, Clone)]
pub struct Settings {
    /// With or without the trailing version, such as `/v1`.
    pub base_url: String,
    pub api_key: ApiKey,
    pub limits: Limits,
}

/// What one provider says in HTTP, beside its bodies.
#[derive(Clone, Copy)]
pub(crate) struct Manner {
    pub(crate) provider: &'static str,
    /// Where the key goes, and what stands before it.
    pub(crate) key_header: (&'static str, &'static str),
    /// Headers that go with every call.
    pub(crate) headers: &'static [(&'static str, &'static str)],
    /// What the status and the body, if it was JSON, of a refusal mean.
    pub(crate) refused: fn(u16, Option<&Value>) -> Error,
}

/// A way to one provider with one key at a time.
pub(crate) struct Wire {
    manner: Manner,
    client: reqwest::Client,
    api_key: ApiKey,
    limits: Limits,
    /// Where the last call went, as text and understood: most go to the same place, and to understand it takes a while.
    address: Mutex<Option<(String, Url)>>,
}

impl Wire {
    /// Fails when no TLS client can be made, for example without any root certificate on the machine.
    pub(crate) fn new(manner: Manner, api_key: ApiKey, limits: Limits) -> Result<Arc<Self>, reqwest::Error> {
        let client = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            // Somebody else's server must not be sent the key.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("croft/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Arc::new(Self { manner, client, api_key, limits, address: Mutex::default() }))
    }

    /// Tells the key at hand from others, and tells nothing of it.
    pub(crate) fn account(&self) -> u64 {
        self.api_key.held().account
    }

    pub(crate) fn has_key(&self) -> bool {
        self.api_key.is_there()
    }

    /// The answer to one call, made once the stream is polled. `body` is built only then, as it may be large.
    pub(crate) fn stream<D: Decoder + 'static>(
        self: &Arc<Self>,
        url: String,
        body: impl FnOnce() -> Value + Send + 'static,
        decoder: D,
    ) -> DeltaStream {
        let wire = Arc::clone(self);
        let answer = async move {
            let until = Instant::now() + wire.limits.opened;
            let key = wire.api_key.held();
            let opened = timeout_at(until, wire.open(&url, &body(), &key)).await;
            let response = opened
                .unwrap_or_else(|_| Err(too_late(D::PROVIDER, wire.limits)))
                .map_err(|error| tidy(error, &key))?;
            let bytes = response.bytes_stream().map_err(reqwest::Error::without_url);
            Ok(decoded(bytes, decoder, wire.limits, until).map_err(move |error| tidy(error, &key)))
        };
        stream::once(answer).try_flatten().boxed()
    }

    /// The answer to a small question, as JSON.
    pub(crate) async fn ask(&self, url: &str, body: &Value) -> Result<Value, Error> {
        let key = self.api_key.held();
        let answer = async {
            let response = self.send(url, body, "application/json", &key).await?;
            let read = read(response).await;
            serde_json::from_slice(&read).map_err(|error| {
                Error::new(self.manner.provider, Class::Network, "gave an answer that is no JSON").because(error)
            })
        };
        let late = || Error::new(self.manner.provider, Class::Timeout, "took too long to answer a small question");
        timeout(QUESTION_TIMEOUT, answer).await.unwrap_or_else(|_| Err(late())).map_err(|error| tidy(error, &key))
    }

    async fn open(&self, url: &str, body: &Value, key: &Held) -> Result<reqwest::Response, Error> {
        let response = self.send(url, body, "text/event-stream", key).await?;
        let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match kind.as_str() {
            // Some servers of one's own leave it out.
            "" | "text/event-stream" => Ok(response),
            "application/json" => {
                // Some gateways tell of a failure with a status that says all is well.
                let read = read(response).await;
                let told: Option<Value> = serde_json::from_slice(&read).ok();
                match told.filter(|body| error_object(body).is_some()) {
                    Some(body) => Err((self.manner.refused)(200, Some(&body)).asked_to_wait(retry_info(&body))),
                    None => Err(self.no_stream(&kind)),
                }
            }
            _ => Err(self.no_stream(&kind)),
        }
    }

    fn no_stream(&self, kind: &str) -> Error {
        Error::new(self.manner.provider, Class::Network, format!("answered with {kind:?} and not with an event stream"))
    }

    async fn send(
        &self,
        url: &str,
        body: &Value,
        accept: &'static str,
        key: &Held,
    ) -> Result<reqwest::Response, Error> {
        let mut call = match self.address(url) {
            Some(address) => self.client.post(address),
            // The call says what is wrong with it.
            None => self.client.post(url),
        };
        for (name, value) in self.manner.headers {
            call = call.header(*name, *value);
        }
        if let Some(traceparent) = trace::traceparent() {
            call = call.header(TRACEPARENT, traceparent);
        }
        let key = key.expose();
        if !key.is_empty() {
            let (name, before) = self.manner.key_header;
            call = call.header(name, format!("{before}{key}"));
        }
        let response = call
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, accept)
            .body(body.to_string())
            .send()
            .await
            .map_err(|error| self.unreachable(error.without_url()))?;
        if response.status() == reqwest::StatusCode::OK {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        Err(self.refused(status, &headers, &read(response).await))
    }

    fn address(&self, url: &str) -> Option<Url> {
        // No code that holds the lock can leave it half changed.
        let mut last = self.address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((text, address)) = &*last
            && text == url
        {
            return Some(address.clone());
        }
        let address = Url::parse(url).ok()?;
        *last = Some((url.to_owned(), address.clone()));
        Some(address)
    }

    fn unreachable(&self, error: reqwest::Error) -> Error {
        // One that was not connected to in time has done nothing, and charges for nothing.
        let class = if error.is_timeout() && !error.is_connect() { Class::Timeout } else { Class::Network };
        let was_not_sent = error.is_connect() || error.is_builder();
        Error::new(self.manner.provider, class, "could not be reached").unsent(was_not_sent).because(error)
    }

    /// What an HTTP refusal means.
    fn refused(&self, status: u16, headers: &HeaderMap, body: &[u8]) -> Error {
        let parsed: Option<Value> = serde_json::from_slice(body).ok();
        let mut error = (self.manner.refused)(status, parsed.as_ref());
        error.status = Some(status);
        error.retry_after = retry_after(headers, parsed.as_ref(), Timestamp::now());
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        error.request_id = header("request-id").or_else(|| header("x-request-id")).map(str::to_owned);
        // The header corrects the rule of its status, but money that is spent does not come back by trying again.
        error.should_retry = match header("x-should-retry") {
            Some("true") if error.class != Class::Quota => Some(true),
            Some("false") => Some(false),
            _ => None,
        };
        error
    }
}

/// A provider's message may be of any length, and may quote what we sent; the key must not go into an event or a log.
fn tidy(mut error: Error, key: &Held) -> Error {
    let key = key.expose();
    if !key.is_empty() && error.message.contains(key) {
        error.message = error.message.replace(key, "***");
    }
    if let Some((end, _)) = error.message.char_indices().nth(MESSAGE_CHARACTERS_MAX) {
        error.message.truncate(end);
        error.message.push('…');
    }
    error
}

/// The body of an answer that is no stream, as far as it may be read.
async fn read(response: reqwest::Response) -> Vec<u8> {
    let mut body = Vec::new();
    let mut chunks = response.bytes_stream();
    let until = Instant::now() + BODY_TIMEOUT;
    // A refusal whose body breaks off, or does not come, is still a refusal.
    while let Ok(Some(Ok(chunk))) = timeout_at(until, chunks.next()).await {
        body.extend_from_slice(&chunk);
        if body.len() > REFUSAL_BYTES_MAX {
            break;
        }
    }
    body
}

/// The object that tells of an error: under `error`, also where the body is wrapped in an array.
pub(crate) fn error_object(body: &Value) -> Option<&Value> {
    body.get("error").or_else(|| body.get(0)?.get("error")).filter(|error| !error.is_null())
}

/// `base_url` without a trailing slash and without `version`, which every call adds.
pub(crate) fn root(base_url: &str, version: &str) -> String {
    let base_url = base_url.trim_end_matches('/');
    base_url.strip_suffix(version).unwrap_or(base_url).trim_end_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;

    use super::*;

    fn key() -> ApiKey {
        ApiKey::from(SecretString::from("sk-very-secret"))
    }

    fn test_wire() -> Arc<Wire> {
        let refused = |_: u16, _: Option<&Value>| Error::new("test", Class::Auth, "no");
        let manner = Manner { provider: "test", key_header: ("x-key", ""), headers: &[], refused };
        Wire::new(manner, key(), Limits::default()).unwrap()
    }

    /// A server that takes a connection and is not heard of again.
    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_not_connected_to_in_time_is_not_there() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("https://{}/", listener.local_addr().unwrap());
        let held = key().held();
        let error = test_wire().open(&address, &Value::Null, &held).await.unwrap_err();
        assert_eq!(error.class, Class::Network, "{error:?}");
    }

    #[tokio::test]
    async fn a_refusal_whose_body_does_not_come_is_still_that_refusal() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/", listener.local_addr().unwrap());
        let serving = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 4_096]).await.unwrap();
            let head = b"HTTP/1.1 401 Unauthorized\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{";
            tokio::io::AsyncWriteExt::write_all(&mut stream, head).await.unwrap();
            std::future::pending::<()>().await;
        };
        let (wire, held) = (test_wire(), key().held());
        tokio::select! {
            () = serving => {}
            answer = wire.open(&address, &Value::Null, &held) => {
                let error = answer.unwrap_err();
                assert_eq!((error.status, error.class), (Some(401), Class::Auth));
            }
        }
    }

    #[test]
    fn debug_and_errors_do_not_show_the_key() {
        let settings = Settings { base_url: String::new(), api_key: key(), limits: Limits::default() };
        assert!(!format!("{settings:?}").contains("very-secret"));
        let quoted = Error::new("test", Class::Auth, "the key sk-very-secret is wrong");
        assert_eq!(tidy(quoted, &key().held()).message, "the key *** is wrong");
    }

    #[test]
    fn a_message_is_cut_between_characters() {
        let long = Error::new("test", Class::Invalid, "ü".repeat(MESSAGE_CHARACTERS_MAX + 1));
        let message = tidy(long, &key().held()).message;
        assert_eq!(message.chars().count(), MESSAGE_CHARACTERS_MAX + 1);
        assert!(message.ends_with("ü…"));
    }

    #[test]
    fn the_version_may_stand_in_the_address() {
        for base_url in ["https://x.test", "https://x.test/", "https://x.test/v1", "https://x.test/v1/"] {
            assert_eq!(root(base_url, "/v1"), "https://x.test");
        }
        assert_eq!(root("https://x.test/openai/v1", "/v1"), "https://x.test/openai");
    }
}
