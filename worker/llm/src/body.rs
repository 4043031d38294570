//! The bytes of a streamed answer, watched: silence and answers without end come to a typed error.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt as _};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use crate::answer::cut;
use crate::error::{Class, Error};

/// Of an error in the body, no more is read: it is a sentence in JSON.
pub(crate) const REFUSAL_BYTES_MAX: usize = 64 * 1024;

/// Bounds on one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From the request until the provider says that it took the call ([`Delta::Opened`](crate::Delta::Opened)); a ping does not count.
    /// From then on the model may think for as long as the other two let it. At the bound: [`Class::Timeout`].
    pub opened: Duration,
    /// Between two bytes of the stream; a ping counts. At the bound: [`Class::Timeout`].
    pub idle: Duration,
    /// From the first byte of the stream to its end. At the bound: [`Class::Timeout`], and not to be tried again: the next answer would
    /// take as long, and be charged as well.
    pub answer: Duration,
    /// One server-sent event. At the bound: [`Class::Network`].
    pub event_bytes_max: usize,
    /// All bytes of one stream, since what they come to is kept until its end. At the bound: [`Class::Network`].
    pub answer_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // Models that hide what they think show nothing for minutes, and some gateways send no ping meanwhile, or nothing before it.
            opened: Duration::from_mins(5),
            idle: Duration::from_mins(5),
            answer: Duration::from_mins(30), // a model that thinks hard takes a good part of it
            event_bytes_max: 8 * 1024 * 1024, // as much as one event with a large tool result may have
            answer_bytes_max: 64 * 1024 * 1024,
        }
    }
}

/// The bytes of one body as they come.
pub(crate) struct Body<S> {
    provider: &'static str,
    bytes: S,
    limits: Limits,
    until: Instant,
    total: usize,
}

impl<S, E> Body<S>
where
    S: Stream<Item = Result<Bytes, E>> + Send + Unpin,
    E: std::error::Error + Send + Sync + 'static,
{
    /// Its time begins now.
    pub(crate) fn new(provider: &'static str, bytes: S, limits: Limits) -> Self {
        Self { provider, bytes, limits, until: Instant::now() + limits.answer, total: 0 }
    }

    /// The next bytes; `None` at the end. Fails at a silence, at an answer beyond the limits, and when the connection breaks.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        let idle_until = Instant::now() + self.limits.idle;
        match timeout_at(idle_until.min(self.until), self.bytes.next()).await {
            Err(_) if idle_until < self.until => {
                let message = format!("sent nothing for {:?}", self.limits.idle);
                Err(Error::new(self.provider, Class::Timeout, message))
            }
            Err(_) => {
                let message = format!("came to no end within {:?}", self.limits.answer);
                let should_retry = Some(false);
                Err(Error { should_retry, ..Error::new(self.provider, Class::Timeout, message) })
            }
            Ok(None) => Ok(None),
            Ok(Some(Err(error))) => Err(self.network("broke the stream off").because(error)),
            Ok(Some(Ok(chunk))) => {
                self.total = self.total.saturating_add(chunk.len());
                if self.total > self.limits.answer_bytes_max {
                    let message = format!("sent an answer of more than {} bytes", self.limits.answer_bytes_max);
                    return Err(self.network(message));
                }
                Ok(Some(chunk))
            }
        }
    }

    /// What JSON in place of an event tells, of which `begin` has come: some providers tell so in mid stream of what went
    /// wrong; `failure` says what it means.
    pub(crate) async fn told(&mut self, begin: Bytes, failure: fn(&Value) -> Error) -> Error {
        let mut json = BytesMut::from(begin);
        loop {
            // Read again with each chunk, since it is small; what follows it does not matter.
            match serde_json::Deserializer::from_slice(&json).into_iter::<Value>().next() {
                Some(Ok(value)) => return failure(&value),
                Some(Err(error)) if error.is_eof() => {}
                Some(Err(_)) | None => return self.network("sent what is no event stream"),
            }
            match self.chunk().await {
                Ok(Some(chunk)) if json.len() + chunk.len() <= REFUSAL_BYTES_MAX => json.extend_from_slice(&chunk),
                Ok(Some(_)) => return self.network("sent what is no event stream"),
                Ok(None) => return cut(self.provider),
                Err(error) => return error,
            }
        }
    }

    fn network(&self, message: impl Into<String>) -> Error {
        Error::new(self.provider, Class::Network, message)
    }
}
