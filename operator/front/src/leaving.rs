//! How the streams of a replica that goes away end: each at a moment of its own, so that the other replicas are not asked for all of them at
//! once.

use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, Stream, StreamExt};
use tokio_util::sync::CancellationToken;

use crate::error::Error;

/// From when intake stops, until the last stream has ended. No new ones come then, so that it holds up a shutdown by no more.
pub(crate) const LEAVE_WITHIN: Duration = Duration::from_secs(5);

/// Resolves at some moment within so long after `stopping`.
pub(crate) async fn leaving(stopping: CancellationToken, within: Duration) {
    stopping.cancelled().await;
    tokio::time::sleep(some_part_of(within)).await;
}

/// A time between none and all of it, another one at each call; all of it where the system has no chance to give.
pub(crate) fn some_part_of(whole: Duration) -> Duration {
    let mut dice = [0; 4];
    let part = getrandom::fill(&mut dice).map_or(u32::MAX, |()| u32::from_ne_bytes(dice));
    whole.mul_f64(f64::from(part) / f64::from(u32::MAX))
}

/// Before a caller goes on whose stream ended as its replica goes away: at another.
const COME_BACK_AFTER: Duration = Duration::from_secs(1);

/// What a stream ends with whose replica goes away. Each does at a planned restart, and their callers go on elsewhere, so that there is nothing to
/// be looked into: their answers bear [`UnremarkableOnce`](croft_serve::grpc::UnremarkableOnce).
pub(crate) fn goodbye() -> Error {
    Error::Unavailable { part: "this replica", retry_after: COME_BACK_AFTER, source: None }
}

struct Leaving<T> {
    events: BoxStream<'static, Result<T, Error>>,
    left: BoxFuture<'static, ()>,
}

/// These events until `left`, and then the error as the last item.
pub(crate) fn until_left<T: 'static>(
    events: impl Stream<Item = Result<T, Error>> + Send + 'static,
    left: impl Future<Output = ()> + Send + 'static,
    goodbye: impl FnOnce() -> Error + Send + 'static,
) -> impl Stream<Item = Result<T, Error>> + Send + 'static {
    let leaving = Leaving { events: events.boxed(), left: left.boxed() };
    stream::unfold(Some((leaving, goodbye)), |state| async move {
        let (mut leaving, goodbye) = state?;
        tokio::select! {
            // First, since a stream that always has something to say would never come to it.
            biased;
            () = &mut leaving.left => Some((Err(goodbye()), None)),
            next = leaving.events.next() => Some((next?, Some((leaving, goodbye)))),
        }
    })
}

#[cfg(test)]
mod tests {
    use futures::stream::FuturesUnordered;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn those_who_leave_do_so_one_after_the_other_and_in_time() {
        let stopping = CancellationToken::new();
        let mut all: FuturesUnordered<_> = (0..100).map(|_| leaving(stopping.clone(), LEAVE_WITHIN)).collect();
        assert_eq!(all.next().now_or_never(), None, "nobody leaves before");
        stopping.cancel();
        let (began, mut left) = (Instant::now(), Vec::new());
        while all.next().await.is_some() {
            left.push(began.elapsed());
        }
        // By the clock of timers, which counts milliseconds.
        assert!(left.iter().all(|after| *after <= LEAVE_WITHIN + Duration::from_millis(1)), "{left:?}");
        let early = left.iter().filter(|after| **after < LEAVE_WITHIN / 2).count();
        assert!((10..=90).contains(&early), "{early} of 100 left in the first half");
    }

    /// A planned restart was an error in the log for each stream that was open.
    #[test]
    fn that_a_replica_goes_away_is_told_to_callers_and_not_to_the_log() {
        let goodbye = goodbye();
        assert_eq!((goodbye.reason(), goodbye.retry_after()), ("UNAVAILABLE", Some(COME_BACK_AFTER)));
        assert!(matches!(goodbye, Error::Unavailable { source: None, .. }), "{goodbye:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_word_comes_once_and_only_to_who_is_cut_off() {
        let (stopping, goodbye) =
            (CancellationToken::new(), || Error::unavailable("this replica", anyhow::anyhow!("")));
        let over = until_left(stream::iter([Ok(1)]), stopping.clone().cancelled_owned(), goodbye);
        assert!(matches!(over.collect::<Vec<_>>().await[..], [Ok(1)]));
        let endless = stream::iter([Ok(1)]).chain(stream::pending());
        let mut endless = std::pin::pin!(until_left(endless, stopping.clone().cancelled_owned(), goodbye));
        assert!(matches!(endless.next().await, Some(Ok(1))));
        stopping.cancel();
        assert!(matches!(endless.next().await, Some(Err(Error::Unavailable { .. }))));
        assert!(endless.next().await.is_none());
    }
}
