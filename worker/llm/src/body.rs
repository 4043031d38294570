//! The bytes of a streamed answer, watched: silence and oversized events end it with a typed error.

use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};

use crate::error::{Class, Error};

/// Bounds on one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From the request to the first piece of output; a ping does not count. At the bound: [`Class::Timeout`].
    pub first_token: Duration,
    /// Between two bytes of the stream; a ping counts. At the bound: [`Class::Timeout`].
    pub idle: Duration,
    /// One server-sent event. At the bound: [`Class::Network`].
    pub event_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            first_token: Duration::from_mins(2),
            idle: Duration::from_mins(1),
            event_bytes_max: 8 * 1024 * 1024, // as much as one event with a large tool result may have
        }
    }
}

/// Passes `bytes` on until the first error, and makes errors of a silence longer than `limits.idle` and of an event
/// larger than `limits.event_bytes_max`.
pub(crate) fn watched<S, E>(
    provider: &'static str,
    bytes: S,
    limits: Limits,
) -> impl Stream<Item = Result<Bytes, Error>> + Send
where
    S: Stream<Item = Result<Bytes, E>> + Send + Unpin,
    E: std::error::Error + Send + Sync + 'static,
{
    let size = EventSize::default();
    stream::unfold(Some((bytes, size)), move |state| async move {
        let (mut bytes, mut size) = state?;
        let item = match tokio::time::timeout(limits.idle, bytes.next()).await {
            Err(_) => Err(Error::new(provider, Class::Timeout, format!("sent nothing for {:?}", limits.idle))),
            Ok(None) => return None,
            Ok(Some(Err(error))) => Err(Error::new(provider, Class::Network, "broke the stream off").because(error)),
            Ok(Some(Ok(chunk))) if size.after(&chunk) > limits.event_bytes_max => {
                let message = format!("sent an event of more than {} bytes", limits.event_bytes_max);
                Err(Error::new(provider, Class::Network, message))
            }
            Ok(Some(Ok(chunk))) => Ok(chunk),
        };
        let next = item.is_ok().then_some((bytes, size));
        Some((item, next))
    })
}

/// Counts the bytes since the last blank line, however lines end.
#[derive(Default)]
struct EventSize {
    event: usize,
    line: usize,
    after_carriage_return: bool,
}

impl EventSize {
    /// The largest that the event was while `chunk` came in.
    fn after(&mut self, chunk: &[u8]) -> usize {
        let mut largest = 0;
        for byte in chunk {
            let second_half_of_line_end = *byte == b'\n' && self.after_carriage_return;
            self.after_carriage_return = *byte == b'\r';
            if second_half_of_line_end {
                continue;
            }
            self.event += 1;
            largest = largest.max(self.event);
            if matches!(*byte, b'\n' | b'\r') {
                if self.line == 0 {
                    self.event = 0;
                }
                self.line = 0;
            } else {
                self.line += 1;
            }
        }
        largest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits { first_token: Duration::from_secs(9), idle: Duration::from_secs(5), event_bytes_max: 16 }
    }

    fn chunks(chunks: &[&'static str]) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send + Unpin {
        stream::iter(chunks.iter().map(|chunk| Ok(Bytes::from_static(chunk.as_bytes()))).collect::<Vec<_>>())
    }

    async fn outcome(parts: &[&'static str]) -> Result<usize, Class> {
        let items: Vec<_> = watched("test", chunks(parts), limits()).collect().await;
        let count = items.len();
        items.into_iter().collect::<Result<Vec<_>, _>>().map(|_| count).map_err(|error| error.class)
    }

    #[tokio::test]
    async fn small_events_pass_whatever_ends_their_lines() {
        assert_eq!(outcome(&["data: 12345\n\n", "data: 12345\n\n"]).await, Ok(2));
        assert_eq!(outcome(&["data: 12345\r\n\r", "\ndata: 12345\r\n\r\n"]).await, Ok(2));
        assert_eq!(outcome(&["data: 12345\r\r", "data: 12345\r\r"]).await, Ok(2));
    }

    #[tokio::test]
    async fn an_event_over_the_bound_ends_the_stream_even_if_it_comes_in_small_lines() {
        assert_eq!(outcome(&["data: 1\r\n", "data: 2\r\n", "data: 3\r\n"]).await, Err(Class::Network));
        assert_eq!(outcome(&["data: 01234567890"]).await, Err(Class::Network));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_the_stream() {
        let silent = chunks(&["data: 1\n\n"]).chain(stream::pending());
        let items: Vec<_> = watched("test", silent, limits()).collect().await;
        assert_eq!(items.len(), 2);
        assert_eq!(items[1].as_ref().unwrap_err().class, Class::Timeout);
    }
}
