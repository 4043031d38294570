//! The bytes of a streamed answer, watched: silence, oversized events and answers without end come to a typed error.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt as _, stream};
use memchr::memchr2;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use crate::answer::cut;
use crate::error::{Class, Error};

/// Of an error in the body, no more is read: it is a sentence in JSON.
pub(crate) const REFUSAL_BYTES_MAX: usize = 64 * 1024;

/// Bounds on one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From the request to the first piece of output; a ping does not count. At the bound: [`Class::Timeout`].
    pub first_token: Duration,
    /// Between two bytes of the stream; a ping counts. At the bound: [`Class::Timeout`].
    pub idle: Duration,
    /// From the first byte of the stream to its end. At the bound: [`Class::Timeout`].
    pub answer: Duration,
    /// One server-sent event. At the bound: [`Class::Network`].
    pub event_bytes_max: usize,
    /// All bytes of one stream, since what they come to is kept until its end. At the bound: [`Class::Network`].
    pub answer_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            first_token: Duration::from_mins(2),
            idle: Duration::from_mins(1),
            answer: Duration::from_mins(30), // a model that thinks hard takes a good part of it
            event_bytes_max: 8 * 1024 * 1024, // as much as one event with a large tool result may have
            answer_bytes_max: 64 * 1024 * 1024,
        }
    }
}

/// Passes `bytes` on until the first error, in pieces of which none reaches beyond the end of an event: what comes after
/// an event never decides what becomes of it, however the network cut the bytes.
///
/// Errors are: a silence, an event and an answer beyond `limits`, and JSON in place of an event, which is how some
/// providers tell in mid stream of what went wrong; `failure` says what it means.
pub(crate) fn watched<S, E>(
    provider: &'static str,
    bytes: S,
    limits: Limits,
    failure: fn(&Value) -> Error,
) -> impl Stream<Item = Result<Bytes, Error>> + Send
where
    S: Stream<Item = Result<Bytes, E>> + Send + Unpin,
    E: std::error::Error + Send + Sync + 'static,
{
    let watch = Watch { provider, bytes, limits, until: Instant::now() + limits.answer, total: 0 };
    stream::unfold(Some((watch, Splitter::default())), move |state| async move {
        let (mut watch, mut splitter) = state?;
        let item = match watch.piece(&mut splitter, failure).await {
            Ok(piece) => Ok(piece?),
            Err(error) => Err(error),
        };
        let next = item.is_ok().then_some((watch, splitter));
        Some((item, next))
    })
}

struct Watch<S> {
    provider: &'static str,
    bytes: S,
    limits: Limits,
    until: Instant,
    total: usize,
}

impl<S, E> Watch<S>
where
    S: Stream<Item = Result<Bytes, E>> + Send + Unpin,
    E: std::error::Error + Send + Sync + 'static,
{
    async fn piece(&mut self, splitter: &mut Splitter, failure: fn(&Value) -> Error) -> Result<Option<Bytes>, Error> {
        loop {
            if splitter.is_at_json() {
                return Err(self.told(splitter.rest(), failure).await);
            }
            if let Some(piece) = splitter.next() {
                if splitter.event_bytes() > self.limits.event_bytes_max {
                    return Err(
                        self.network(format!("sent an event of more than {} bytes", self.limits.event_bytes_max))
                    );
                }
                return Ok(Some(piece));
            }
            match self.chunk().await? {
                Some(chunk) => splitter.push(chunk),
                None => return Ok(None),
            }
        }
    }

    async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        let idle_until = Instant::now() + self.limits.idle;
        match timeout_at(idle_until.min(self.until), self.bytes.next()).await {
            Err(_) if idle_until < self.until => {
                let message = format!("sent nothing for {:?}", self.limits.idle);
                Err(Error::new(self.provider, Class::Timeout, message))
            }
            Err(_) => {
                let message = format!("came to no end within {:?}", self.limits.answer);
                Err(Error::new(self.provider, Class::Timeout, message))
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

    /// What JSON in place of an event tells, of which `begin` has come.
    async fn told(&mut self, begin: Bytes, failure: fn(&Value) -> Error) -> Error {
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

/// Cuts what came after each blank line, however lines end.
struct Splitter {
    pending: Bytes,
    /// The bytes of the event at hand that were passed on.
    event: usize,
    line_is_empty: bool,
    after_carriage_return: bool,
    /// The last piece ended an event.
    ended: bool,
}

impl Default for Splitter {
    fn default() -> Self {
        Self { pending: Bytes::new(), event: 0, line_is_empty: true, after_carriage_return: false, ended: false }
    }
}

impl Splitter {
    fn push(&mut self, chunk: Bytes) {
        self.pending = chunk;
    }

    /// All that has come and was not passed on.
    fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.pending)
    }

    /// An event begins, but not as an event does.
    fn is_at_json(&self) -> bool {
        let second_half_of_line_end = self.after_carriage_return && self.pending.first() == Some(&b'\n');
        let first = self.pending.get(usize::from(second_half_of_line_end));
        (self.event == 0 || self.ended) && self.line_is_empty && matches!(first, Some(b'{' | b'['))
    }

    /// The size of the event that the last piece belongs to.
    fn event_bytes(&self) -> usize {
        self.event
    }

    /// The bytes up to the end of the event, or as many of them as have come.
    fn next(&mut self) -> Option<Bytes> {
        if self.pending.is_empty() {
            return None;
        }
        if std::mem::take(&mut self.ended) {
            self.event = 0;
        }
        let mut at = 0;
        if std::mem::take(&mut self.after_carriage_return) && self.pending[0] == b'\n' {
            at = 1;
        }
        while let Some(length) = memchr2(b'\n', b'\r', &self.pending[at..]) {
            let blank = length == 0 && self.line_is_empty;
            let ends_with_return = self.pending[at + length] == b'\r';
            at += length + 1;
            self.line_is_empty = true;
            if ends_with_return {
                match self.pending.get(at) {
                    Some(b'\n') => at += 1,
                    Some(_) => {}
                    None => self.after_carriage_return = true,
                }
            }
            if blank {
                self.ended = true;
                self.event += at;
                return Some(self.pending.split_to(at));
            }
        }
        self.line_is_empty &= at == self.pending.len();
        self.event += self.pending.len();
        Some(self.rest())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            first_token: Duration::from_secs(9),
            idle: Duration::from_secs(5),
            answer: Duration::from_mins(1),
            event_bytes_max: 16,
            answer_bytes_max: 100,
        }
    }

    fn failure(body: &Value) -> Error {
        Error::new("test", Class::Overload, body.to_string())
    }

    fn chunks(chunks: &[&'static str]) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send + Unpin {
        stream::iter(chunks.iter().map(|chunk| Ok(Bytes::from_static(chunk.as_bytes()))).collect::<Vec<_>>())
    }

    async fn pieces(parts: &[&'static str]) -> Result<Vec<String>, Class> {
        let items: Vec<_> = watched("test", chunks(parts), limits(), failure).collect().await;
        let text = |piece: Bytes| String::from_utf8(piece.to_vec()).unwrap();
        items.into_iter().map(|item| item.map(text).map_err(|error| error.class)).collect()
    }

    async fn outcome(parts: &[&'static str]) -> Result<usize, Class> {
        pieces(parts).await.map(|pieces| pieces.len())
    }

    #[tokio::test]
    async fn small_events_pass_whatever_ends_their_lines() {
        assert_eq!(outcome(&["data: 12345\n\n", "data: 12345\n\n"]).await, Ok(2));
        assert_eq!(outcome(&["data: 12345\r\n\r", "\ndata: 12345\r\n\r\n"]).await, Ok(2));
        assert_eq!(outcome(&["data: 12345\r\r", "data: 12345\r\r"]).await, Ok(2));
    }

    #[tokio::test]
    async fn no_piece_reaches_beyond_an_event() {
        let expected: Vec<_> = ["data: 1\n\n", "data: 2\r\n\r\n", "data: 3\r\r", "da"].map(str::to_owned).into();
        assert_eq!(pieces(&["data: 1\n\ndata: 2\r\n\r\ndata: 3\r\rda"]).await, Ok(expected));
    }

    #[tokio::test]
    async fn an_event_over_the_bound_ends_the_stream_even_if_it_comes_in_small_lines() {
        assert_eq!(outcome(&["data: 1\r\n", "data: 2\r\n", "data: 3\r\n"]).await, Err(Class::Network));
        assert_eq!(outcome(&["data: 01234567890"]).await, Err(Class::Network));
    }

    #[tokio::test]
    async fn an_answer_over_the_bound_ends_the_stream() {
        assert_eq!(outcome(&["data: 12345\n\n"; 7]).await, Ok(7));
        assert_eq!(outcome(&["data: 12345\n\n"; 8]).await, Err(Class::Network));
    }

    #[tokio::test]
    async fn json_in_place_of_an_event_is_what_it_tells() {
        let told =
            [&["data: 1\n\n", "{\n  \"error\": 1\n}"][..], &["data: 1\n\n{", "\"a\"", ":[1]}"], &["[{\"error\":1}]\n"]];
        for parts in told {
            assert_eq!(outcome(parts).await, Err(Class::Overload), "{parts:?}");
        }
        assert_eq!(outcome(&["{ is no JSON\n\n"]).await, Err(Class::Network));
        assert_eq!(outcome(&["data: 1\n", "{\"in\":2}"]).await, Ok(2), "within an event it is the parser's");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_the_stream() {
        let silent = chunks(&["data: 1\n\n"]).chain(stream::pending());
        let items: Vec<_> = watched("test", silent, limits(), failure).collect().await;
        assert_eq!(items.len(), 2);
        assert_eq!(items[1].as_ref().unwrap_err().class, Class::Timeout);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_never_ends_is_ended() {
        let endless =
            stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(b":\n\n"))).then(|ping| async {
                tokio::time::sleep(Duration::from_secs(4)).await;
                ping
            });
        let began = Instant::now();
        let items: Vec<_> = watched("test", Box::pin(endless), limits(), failure).collect().await;
        assert_eq!(items.last().unwrap().as_ref().unwrap_err().class, Class::Timeout);
        assert_eq!(began.elapsed(), limits().answer);
    }
}
