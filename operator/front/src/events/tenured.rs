//! A stream of events that ends with its caller's credential, and says from where to go on with a better one.

use croft_proto::v1::SessionEvent;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, Stream, StreamExt};

use crate::error::Error;
use crate::identity::Tenure;
use crate::seats::Seat;

struct Tenured {
    events: BoxStream<'static, Result<SessionEvent, Error>>,
    ended: BoxFuture<'static, ()>,
    /// The last number that was sent.
    last_seq: u64,
    _seat: Seat,
}

/// These events, which come after `after_seq`, for as long as the tenure lasts; then [`Error::CredentialEnded`] as the last item.
pub(crate) fn tenured(
    events: impl Stream<Item = Result<SessionEvent, Error>> + Send + 'static,
    after_seq: u64,
    tenure: Tenure,
    seat: Seat,
) -> impl Stream<Item = Result<SessionEvent, Error>> + Send + 'static {
    let tenured = Tenured { events: events.boxed(), ended: tenure.ended().boxed(), last_seq: after_seq, _seat: seat };
    stream::unfold(Some(tenured), |tenured| async move {
        let mut tenured = tenured?;
        let next = tokio::select! {
            // First, since a stream that always has something to say would never come to it.
            biased;
            () = &mut tenured.ended => {
                return Some((Err(Error::CredentialEnded { resume_after: tenured.last_seq }), None));
            }
            next = tenured.events.next() => next?,
        };
        if let Ok(event) = &next {
            tenured.last_seq = tenured.last_seq.max(event.seq);
        }
        Some((next, Some(tenured)))
    })
}
