//! Until when this replica may write: the end of its Lease, as far as it can be sure of it.
//!
//! A process that was stopped for a minute goes on where it was and believes that it still leads. So each write asks here
//! first, and here the time runs from the moment at which the last successful renewal was *sent*: nobody else can have
//! the Lease before the fence is closed.

use std::time::Duration;

use http::{Method, Request, Response};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Client;
use kube::client::Body;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// A write that came after the Lease's end.
#[derive(Debug, thiserror::Error)]
#[error("this replica does not lead any more")]
pub struct Closed;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Term {
    Closed,
    Until(Instant),
    Unguarded,
}

/// Lets writes through while this replica leads. Clones share it.
#[derive(Debug, Clone)]
pub struct Fence {
    term: watch::Sender<Term>,
}

impl Fence {
    /// Nothing passes until the Lease is held.
    pub fn closed() -> Self {
        Self { term: watch::Sender::new(Term::Closed) }
    }

    /// Everything passes: for what every replica may write, such as what is created once and never changed.
    pub fn unguarded() -> Self {
        Self { term: watch::Sender::new(Term::Unguarded) }
    }

    /// Whether a write may begin now.
    pub fn is_open(&self) -> bool {
        match *self.term.borrow() {
            Term::Closed => false,
            Term::Until(end) => Instant::now() < end,
            Term::Unguarded => true,
        }
    }

    /// Resolves once nothing passes any more.
    pub async fn closes(&self) {
        let mut changes = self.term.subscribe();
        loop {
            let term = *changes.borrow_and_update();
            match term {
                Term::Closed => return,
                Term::Until(end) if Instant::now() >= end => return,
                Term::Until(end) => tokio::select! {
                    () = sleep_until(end) => {}
                    // The sender is here, so there is a change to come.
                    _ = changes.changed() => {}
                },
                Term::Unguarded => std::future::pending().await,
            }
        }
    }

    pub(super) fn close(&self) {
        self.term.send_replace(Term::Closed);
    }

    fn open_until(&self, end: Instant) {
        self.term.send_replace(Term::Until(end));
    }

    /// What an answer of the API server about the Lease means to `identity`. Only a write's answer proves that the Lease
    /// was ours at a time that we know.
    fn learn(&self, lease: &Lease, identity: &str, renewed: Option<Instant>, duration: Duration) {
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
        match renewed {
            _ if holder != Some(identity) => self.close(),
            Some(sent) => self.open_until(sent + duration),
            None => {}
        }
    }

    /// `client`, listened to: what passes through it opens and closes this fence. For requests about the Lease alone.
    pub(super) fn listen(&self, client: Client, identity: &str, duration: Duration) -> Client {
        let (fence, identity, namespace) = (self.clone(), identity.to_owned(), client.default_namespace().to_owned());
        let service = tower::service_fn(move |request: Request<Body>| {
            let (client, fence, identity) = (client.clone(), fence.clone(), identity.clone());
            async move {
                let renewed = (request.method() == Method::PATCH).then(Instant::now);
                let (head, body) = client.send(request).await?.into_parts();
                let body = body.collect_bytes().await?;
                if head.status.is_success()
                    && let Ok(lease) = serde_json::from_slice(&body)
                {
                    fence.learn(&lease, &identity, renewed, duration);
                }
                Ok::<_, kube::Error>(Response::from_parts(head, Body::from(body)))
            }
        });
        Client::new(service, namespace)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const LEASE: Duration = Duration::from_secs(15);

    fn held_by(holder: Option<&str>) -> Lease {
        serde_json::from_value(json!({ "spec": { "holderIdentity": holder } })).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_term_runs_from_the_moment_at_which_its_renewal_was_sent() {
        let fence = Fence::closed();
        assert!(!fence.is_open());
        let sent = Instant::now();
        // The answer takes its time.
        tokio::time::advance(Duration::from_secs(4)).await;
        fence.learn(&held_by(Some("heron")), "heron", Some(sent), LEASE);
        assert!(fence.is_open());
        fence.closes().await;
        assert_eq!(sent.elapsed(), LEASE);
        assert!(!fence.is_open());
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_proves_nothing_and_another_holder_ends_it() {
        let fence = Fence::closed();
        fence.learn(&held_by(Some("heron")), "heron", None, LEASE);
        assert!(!fence.is_open());
        for taken in [held_by(Some("egret")), held_by(None)] {
            fence.learn(&held_by(Some("heron")), "heron", Some(Instant::now()), LEASE);
            assert!(fence.is_open());
            fence.learn(&taken, "heron", None, LEASE);
            assert!(!fence.is_open());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_the_end_is_not_misled_by_a_renewal() {
        let fence = Fence::closed();
        let begun = Instant::now();
        fence.open_until(begun + LEASE);
        let renewing = fence.clone();
        let renew = async move {
            tokio::time::sleep(LEASE.mul_f32(0.9)).await;
            renewing.open_until(begun + 2 * LEASE);
        };
        tokio::join!(fence.closes(), renew);
        assert_eq!(begun.elapsed(), 2 * LEASE);
    }
}
