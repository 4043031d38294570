//! What a WebSocket is subscribed to. Only sessions that have something to say are looked at: to ask each of them for every event
//! would cost the more the more there are.

use std::collections::HashMap;

use croft_proto::id::SessionId;
use croft_proto::v1::SessionEvent;
use futures::stream::{self, AbortHandle, Abortable, BoxStream, SelectAll};
use futures::{FutureExt, StreamExt};

use crate::error::Error;

/// A session and what it says; `None` comes last.
pub(super) type Said = (SessionId, Option<Result<SessionEvent, Error>>);

/// At most one of each session.
#[derive(Default)]
pub(super) struct Subscriptions {
    streams: SelectAll<Abortable<BoxStream<'static, Said>>>,
    open: HashMap<SessionId, AbortHandle>,
}

impl Subscriptions {
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    pub(super) fn contains(&self, session: SessionId) -> bool {
        self.open.contains_key(&session)
    }

    pub(super) fn insert(&mut self, session: SessionId, events: BoxStream<'static, Result<SessionEvent, Error>>) {
        let said = events.map(Some).chain(stream::once(async { None })).map(move |said| (session, said));
        let (stream, handle) = stream::abortable(said.boxed());
        self.streams.push(stream);
        if let Some(former) = self.open.insert(session, handle) {
            former.abort();
        }
    }

    /// Nothing of the session comes any more.
    pub(super) fn remove(&mut self, session: SessionId) {
        if let Some(handle) = self.open.remove(&session) {
            handle.abort();
        }
    }

    /// What is said next; `None` while there is no subscription. Safe to cancel.
    pub(super) async fn next(&mut self) -> Option<Said> {
        self.streams.next().await
    }

    /// What has been said already, and waits. Whoever is told that nothing has asks again with [`Self::next`], which wakes them.
    pub(super) fn waiting(&mut self) -> Option<Said> {
        self.streams.next().now_or_never().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(seqs: &[u64]) -> BoxStream<'static, Result<SessionEvent, Error>> {
        let events: Vec<_> = seqs.iter().map(|seq| Ok(SessionEvent { seq: *seq, ..SessionEvent::default() })).collect();
        stream::iter(events).boxed()
    }

    fn seq(said: Option<Said>) -> Option<u64> {
        said.and_then(|(_, event)| event).map(|event| event.unwrap().seq)
    }

    #[tokio::test]
    async fn what_is_removed_says_nothing_any_more_not_even_that_it_has_ended() {
        let (heron, plover) = (SessionId::generate(), SessionId::generate());
        let mut subscriptions = Subscriptions::default();
        subscriptions.insert(heron, says(&[1, 2]));
        assert_eq!(seq(subscriptions.next().await), Some(1));
        subscriptions.remove(heron);
        assert!(!subscriptions.contains(heron));
        assert!(subscriptions.waiting().is_none());
        subscriptions.insert(plover, says(&[7]));
        assert_eq!(seq(subscriptions.next().await), Some(7));
        let (session, last) = subscriptions.next().await.unwrap();
        assert!(session == plover && last.is_none());
        subscriptions.remove(plover);
        assert!(subscriptions.next().await.is_none());
        assert_eq!(subscriptions.len(), 0);
    }

    #[tokio::test]
    async fn a_session_that_is_subscribed_to_again_says_nothing_twice() {
        let heron = SessionId::generate();
        let mut subscriptions = Subscriptions::default();
        subscriptions.insert(heron, says(&[1, 2]));
        subscriptions.insert(heron, says(&[1]));
        assert_eq!(subscriptions.len(), 1);
        assert_eq!(seq(subscriptions.next().await), Some(1));
        assert!(subscriptions.next().await.unwrap().1.is_none());
        assert!(subscriptions.waiting().is_none());
    }

    #[tokio::test]
    async fn what_comes_after_a_look_in_vain_wakes_whoever_waits() {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let mut subscriptions = Subscriptions::default();
        subscriptions.insert(SessionId::generate(), tokio_stream::wrappers::ReceiverStream::new(receiver).boxed());
        assert!(subscriptions.waiting().is_none());
        let (said, sent) =
            tokio::join!(subscriptions.next(), sender.send(Ok(SessionEvent { seq: 3, ..SessionEvent::default() })));
        sent.unwrap();
        assert_eq!(seq(said), Some(3));
    }
}
