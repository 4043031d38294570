//! A streamed answer as deltas: what the providers' decoders have in common.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use futures::future::BoxFuture;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use crate::body::{Body, Limits};
use crate::delta::{Delta, Stop};
use crate::error::{Class, Error};
use crate::events::{Events, Next, Problem};

/// How long an answer that is whole may take to say so: some providers tell what was used only after the last word.
/// At the bound the answer ends with what was told.
const LINGER: Duration = Duration::from_secs(2);

/// The state of one answer in one provider's format.
pub(crate) trait Decoder: Send {
    /// Whose it is.
    const PROVIDER: &'static str;

    /// Takes in the data of one event and adds the deltas that it comes to. Deltas that were added before an error stand.
    fn event(&mut self, data: &str, deltas: &mut VecDeque<Delta>) -> Result<(), Error>;

    /// What JSON means that comes in place of an event.
    fn failure(body: &Value) -> Error;

    /// Why the answer stopped, once it is whole though the provider may have more to tell of it. A format whose last
    /// event follows at once has nothing to say here: that event comes to [`Delta::Stop`], after which nothing is read.
    fn stop(&self) -> Option<Stop> {
        None
    }
}

/// The deltas of a body. `opened_until` is when the answer must have begun, with or without output.
pub(crate) fn decoded<S, E, D>(
    bytes: S,
    decoder: D,
    limits: Limits,
    opened_until: Instant,
) -> impl Stream<Item = Result<Delta, Error>> + Send + use<S, E, D>
where
    S: Stream<Item = Result<Bytes, E>> + Send + Unpin + 'static,
    E: std::error::Error + Send + Sync + 'static,
    D: Decoder + 'static,
{
    let answer = Answer {
        body: Body::new(D::PROVIDER, bytes, limits),
        events: Events::new(limits.event_bytes_max),
        decoder,
        limits,
        opened_until,
        waits: false,
        waits_until: None,
        ready: VecDeque::new(),
        is_opened: false,
        is_over: false,
        failed: None,
    };
    Deltas { answer: Some(Box::new(answer)), reading: None }
}

/// An answer as a stream. Most deltas are at hand already: only what waits for bytes is a future, one for each piece of the body.
struct Deltas<S, D> {
    /// Unless it is being read, or has ended.
    answer: Option<Box<Answer<S, D>>>,
    reading: Option<BoxFuture<'static, Box<Answer<S, D>>>>,
}

impl<S, E, D> Stream for Deltas<S, D>
where
    S: Stream<Item = Result<Bytes, E>> + Send + Unpin + 'static,
    E: std::error::Error + Send + Sync + 'static,
    D: Decoder + 'static,
{
    type Item = Result<Delta, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Delta, Error>>> {
        let Self { answer, reading } = &mut *self;
        loop {
            if let Some(future) = reading {
                *answer = Some(ready!(future.as_mut().poll(context)));
                *reading = None;
            }
            let Some(at_hand) = answer.as_mut().map(|answer| answer.at_hand()) else { return Poll::Ready(None) };
            match at_hand {
                AtHand::Delta(delta) => return Poll::Ready(Some(Ok(delta))),
                AtHand::Failed(error) => {
                    *answer = None;
                    return Poll::Ready(Some(Err(error)));
                }
                AtHand::Over => *answer = None,
                AtHand::Nothing => {
                    *reading = answer.take().map(|mut answer| {
                        let read = async move {
                            answer.read().await;
                            answer
                        };
                        Box::pin(read) as BoxFuture<'static, _>
                    });
                }
            }
        }
    }
}

struct Answer<S, D> {
    body: Body<S>,
    events: Events,
    decoder: D,
    limits: Limits,
    opened_until: Instant,
    /// Bytes of the next event are waited for.
    waits: bool,
    /// By when that must be over, if by any time.
    waits_until: Option<Instant>,
    /// Deltas that wait for the listener. One event comes to a few at most.
    ready: VecDeque<Delta>,
    is_opened: bool,
    /// The listener has [`Delta::Stop`].
    is_over: bool,
    /// What follows the deltas that are ready.
    failed: Option<Error>,
}

/// What an answer has without waiting.
enum AtHand {
    Delta(Delta),
    Failed(Error),
    Over,
    /// More of the body must come first.
    Nothing,
}

impl<S, E, D> Answer<S, D>
where
    S: Stream<Item = Result<Bytes, E>> + Send + Unpin,
    E: std::error::Error + Send + Sync + 'static,
    D: Decoder,
{
    fn at_hand(&mut self) -> AtHand {
        loop {
            if let Some(delta) = self.ready.pop_front() {
                // Some servers of one's own begin with output at once.
                self.is_opened |= matches!(delta, Delta::Opened { .. }) || delta.is_output();
                self.is_over = matches!(delta, Delta::Stop(_));
                return AtHand::Delta(delta);
            }
            if let Some(error) = self.failed.take() {
                return AtHand::Failed(error);
            }
            if self.is_over {
                return AtHand::Over;
            }
            let event = match self.events.next() {
                Ok(Next::Data(data)) => self.decoder.event(data, &mut self.ready),
                Ok(Next::Nothing | Next::Json) => return AtHand::Nothing,
                Err(problem) => Err(no_events(D::PROVIDER, problem, self.limits)),
            };
            self.waits = false;
            if let Err(error) = event {
                self.fail(error);
            }
        }
    }

    /// Takes in more of the body. Its end is a failure, as is time that is over.
    async fn read(&mut self) {
        if !std::mem::replace(&mut self.waits, true) {
            self.waits_until = match self.decoder.stop() {
                Some(_) => Some(Instant::now() + LINGER),
                // It may think for long: whether it still does, its bytes tell.
                None if self.is_opened => None,
                None => Some(self.opened_until),
            };
        }
        let until = self.waits_until;
        let late = || too_late(D::PROVIDER, self.limits);
        let read = if matches!(self.events.next(), Ok(Next::Json)) {
            let told = self.body.told(self.events.rest(), D::failure);
            Err(in_time(until, told).await.unwrap_or_else(late))
        } else {
            in_time(until, self.body.chunk()).await.unwrap_or_else(|| Err(late()))
        };
        match read {
            Ok(Some(chunk)) => self.events.push(chunk),
            Ok(None) => self.fail(cut(D::PROVIDER)),
            Err(error) => self.fail(error),
        }
    }

    fn fail(&mut self, error: Error) {
        match self.decoder.stop() {
            // The connection broke, or had its time, but nothing that matters was lost.
            Some(stop) if is_of_the_transport(error.class) => self.ready.push_back(Delta::Stop(stop)),
            _ => self.failed = Some(error),
        }
    }
}

/// What `future` comes to, if it does before `until`.
async fn in_time<T>(until: Option<Instant>, future: impl Future<Output = T>) -> Option<T> {
    match until {
        Some(until) => timeout_at(until, future).await.ok(),
        None => Some(future.await),
    }
}

fn is_of_the_transport(class: Class) -> bool {
    matches!(class, Class::Truncated | Class::Network | Class::Timeout)
}

/// The failure of a stream that ends too early.
pub(crate) fn cut(provider: &'static str) -> Error {
    Error::new(provider, Class::Truncated, "ended its answer before it was whole")
}

/// The failure of a call that nobody began to answer in time.
pub(crate) fn too_late(provider: &'static str, limits: Limits) -> Error {
    Error::new(provider, Class::Timeout, format!("did not begin its answer for {:?}", limits.opened))
}

/// The failure of an event that is not of the format.
pub(crate) fn senseless(provider: &'static str, error: serde_json::Error) -> Error {
    Error::new(provider, Class::Network, "sent an event that makes no sense").because(error)
}

/// The failure of a body that is no event stream.
fn no_events(provider: &'static str, problem: Problem, limits: Limits) -> Error {
    match problem {
        Problem::TooLong => {
            let message = format!("sent an event of more than {} bytes", limits.event_bytes_max);
            Error::new(provider, Class::Network, message)
        }
        other => Error::new(provider, Class::Network, "sent what is no event stream").because(other),
    }
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt as _, stream};

    use super::*;

    /// Says what each event holds.
    struct Echo;

    impl Decoder for Echo {
        const PROVIDER: &'static str = "test";

        fn event(&mut self, data: &str, deltas: &mut VecDeque<Delta>) -> Result<(), Error> {
            deltas.push_back(Delta::Text { block: 0, text: data.to_owned() });
            Ok(())
        }

        fn failure(body: &Value) -> Error {
            Error::new("test", Class::Overload, body.to_string())
        }
    }

    fn limits() -> Limits {
        Limits {
            opened: Duration::from_secs(9),
            idle: Duration::from_secs(5),
            answer: Duration::from_mins(1),
            event_bytes_max: 16,
            answer_bytes_max: 100,
        }
    }

    fn echoed<S>(bytes: S) -> impl Stream<Item = Result<Delta, Error>>
    where
        S: Stream<Item = Result<Bytes, std::io::Error>> + Send + Unpin + 'static,
    {
        decoded(bytes, Echo, limits(), Instant::now() + Duration::from_hours(1))
    }

    fn chunks(chunks: &[&'static str]) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send + Unpin + use<> {
        stream::iter(chunks.iter().map(|chunk| Ok(Bytes::from_static(chunk.as_bytes()))).collect::<Vec<_>>())
    }

    /// How many events came, and the class of the error behind them.
    async fn outcome(parts: &[&'static str]) -> (usize, Class) {
        let mut items: Vec<_> = echoed(chunks(parts)).collect().await;
        let error = items.pop().unwrap().unwrap_err();
        assert!(items.iter().all(Result::is_ok));
        (items.len(), error.class)
    }

    #[tokio::test]
    async fn small_events_pass_whatever_ends_their_lines() {
        for parts in [
            &["data: 12345\n\n", "data: 12345\n\n"][..],
            &["data: 12345\r\n\r", "\ndata: 12345\r\n\r\n"],
            &["data: 12345\r\r", "data: 12345\r\r"],
        ] {
            assert_eq!(outcome(parts).await, (2, Class::Truncated), "{parts:?}");
        }
    }

    #[tokio::test]
    async fn an_event_over_the_bound_ends_the_stream_even_if_it_comes_in_small_lines() {
        assert_eq!(outcome(&["data: 1\r\n", "data: 2\r\n", "data: 3\r\n"]).await, (0, Class::Network));
        assert_eq!(outcome(&["data: 1\n\ndata: 01234567890"]).await, (1, Class::Network));
    }

    #[tokio::test]
    async fn an_answer_over_the_bound_ends_the_stream() {
        assert_eq!(outcome(&["data: 12345\n\n"; 7]).await, (7, Class::Truncated));
        assert_eq!(outcome(&["data: 12345\n\n"; 8]).await, (7, Class::Network));
    }

    #[tokio::test]
    async fn json_in_place_of_an_event_is_what_it_tells() {
        for (parts, events) in [
            (&["data: 1\n\n", "{\n  \"error\": 1\n}"][..], 1),
            (&["data: 1\n\n{", "\"a\"", ":[1]}"][..], 1),
            (&["[{\"error\":1}]\n"][..], 0),
        ] {
            assert_eq!(outcome(parts).await, (events, Class::Overload), "{parts:?}");
        }
        assert_eq!(outcome(&["{ is no JSON\n\n"]).await, (0, Class::Network));
        assert_eq!(outcome(&["data: 1\n", "{\"in\":2}\n"]).await, (0, Class::Network), "within an event it is none");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_the_stream() {
        let silent = chunks(&["data: 1\n\n"]).chain(stream::pending());
        let items: Vec<_> = echoed(silent).collect().await;
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
        let items: Vec<_> = echoed(Box::pin(endless)).collect().await;
        assert_eq!(items.last().unwrap().as_ref().unwrap_err().class, Class::Timeout);
        assert_eq!(began.elapsed(), limits().answer);
    }
}
