//! A streamed answer as deltas: what the providers' decoders have in common.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use serde_json::Value;
use sse_stream::{Sse, SseStream};
use tokio::time::{Instant, timeout, timeout_at};

use crate::body::{Limits, watched};
use crate::delta::Delta;
use crate::error::{Class, Error};

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

    /// The answer is whole, though the provider may have more to tell of it.
    fn is_whole(&self) -> bool;

    /// Ends an answer that is whole, with [`Delta::Stop`] as the last delta.
    fn end(&mut self, deltas: &mut VecDeque<Delta>);

    /// [`Delta::Stop`] was added: nothing follows.
    fn is_over(&self) -> bool;
}

/// The deltas of a body. `first_token_until` is when output must have begun.
pub(crate) fn decoded<S, E, D>(
    bytes: S,
    decoder: D,
    limits: Limits,
    first_token_until: Instant,
) -> impl Stream<Item = Result<Delta, Error>> + Send + use<S, E, D>
where
    S: Stream<Item = Result<Bytes, E>> + Send + Unpin + 'static,
    E: std::error::Error + Send + Sync + 'static,
    D: Decoder + 'static,
{
    let events = SseStream::from_bytes_stream(Box::pin(watched(D::PROVIDER, bytes, limits, D::failure)));
    let answer =
        Answer { events, decoder, limits, first_token_until, ready: VecDeque::new(), has_output: false, failed: None };
    // Boxed, as every delta moves it.
    stream::unfold(Some(Box::new(answer)), |state| async move {
        let mut answer = state?;
        let item = answer.next().await?;
        let next = item.is_ok().then_some(answer);
        Some((item, next))
    })
}

struct Answer<Events, D> {
    events: Events,
    decoder: D,
    limits: Limits,
    first_token_until: Instant,
    /// Deltas that wait for the listener. One event comes to a few at most.
    ready: VecDeque<Delta>,
    has_output: bool,
    /// What follows the deltas that are ready.
    failed: Option<Error>,
}

impl<Events, D> Answer<Events, D>
where
    Events: Stream<Item = Result<Sse, sse_stream::Error>> + Unpin,
    D: Decoder,
{
    async fn next(&mut self) -> Option<Result<Delta, Error>> {
        loop {
            if let Some(delta) = self.ready.pop_front() {
                self.has_output |= delta.is_output();
                return Some(Ok(delta));
            }
            if let Some(error) = self.failed.take() {
                return Some(Err(error));
            }
            if self.decoder.is_over() {
                return None;
            }
            let heard = match self.event().await {
                Ok(Some(Sse { data: Some(data), .. })) => self.decoder.event(&data, &mut self.ready),
                // A name, an id or a pause for reconnecting, and no data.
                Ok(Some(_)) => Ok(()),
                Ok(None) => Err(cut(D::PROVIDER)),
                Err(error) => Err(error),
            };
            match heard {
                Ok(()) => {}
                // The connection broke, but nothing that matters was lost.
                Err(error) if self.decoder.is_whole() && is_of_the_transport(error.class) => {
                    self.decoder.end(&mut self.ready);
                }
                Err(error) => self.failed = Some(error),
            }
        }
    }

    /// The next event; `None` at the end of the body, or when an answer that is whole has had its time.
    async fn event(&mut self) -> Result<Option<Sse>, Error> {
        let next = self.events.next();
        let next = if self.decoder.is_whole() {
            timeout(LINGER, next).await.unwrap_or(None)
        } else if self.has_output {
            next.await
        } else {
            timeout_at(self.first_token_until, next).await.map_err(|_| too_late(D::PROVIDER, self.limits))?
        };
        next.transpose().map_err(|error| broken(D::PROVIDER, error))
    }
}

fn is_of_the_transport(class: Class) -> bool {
    matches!(class, Class::Truncated | Class::Network | Class::Timeout)
}

/// The failure of a stream that ends too early.
pub(crate) fn cut(provider: &'static str) -> Error {
    Error::new(provider, Class::Truncated, "ended its answer before it was whole")
}

/// The failure of a call that brought no output in time.
pub(crate) fn too_late(provider: &'static str, limits: Limits) -> Error {
    Error::new(provider, Class::Timeout, format!("gave no output for {:?}", limits.first_token))
}

/// The failure of an event that is not of the format.
pub(crate) fn senseless(provider: &'static str, error: serde_json::Error) -> Error {
    Error::new(provider, Class::Network, "sent an event that makes no sense").because(error)
}

/// An error of the body keeps its class on the way through the parser.
fn broken(provider: &'static str, error: sse_stream::Error) -> Error {
    match error {
        sse_stream::Error::Body(source) => match source.downcast::<Error>() {
            Ok(error) => *error,
            Err(source) => Error::new(provider, Class::Network, "broke the stream off").because(source),
        },
        other => Error::new(provider, Class::Network, "sent what is no event stream").because(other),
    }
}
