//! Waits for the Lease to be free: released, gone, not renewed for as long as it lasts, or our own from before a restart.
//!
//! Our own is given back first, as from someone who let it run out: whoever holds a Lease and never took it is not told by
//! kube-lease-manager that it leads, and would wait for itself for ever. A container that is started again in its pod has the name that
//! it had.
//! A watch tells of a release at once; kube-lease-manager would look again only at the Lease's end. That end is judged by
//! the time that has passed here since the Lease last changed, as clocks of two machines may differ.

use std::time::Duration;

use futures::{Stream, StreamExt as _};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, ResourceExt as _};
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use super::{LEASE, RELEASE_MAX};
use crate::mirror;
use crate::writes::FIELD_MANAGER;

/// A watch that is silent for longer is made anew: a release may have got lost in it.
const SILENCE_MAX_SECONDS: u32 = 10;
/// Between two tries to free a Lease that has run out.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// One replica's view of the Lease.
pub(super) struct Standby {
    leases: Api<Lease>,
    identity: String,
    duration: Duration,
}

/// A Lease that someone else holds.
#[derive(Debug, Clone)]
struct Held {
    version: String,
    runs_out: Instant,
}

impl Standby {
    /// `client` must not give up on a watch that has nothing to tell.
    pub(super) fn new(client: Client, namespace: &str, identity: &str, duration: Duration) -> Self {
        Self { leases: Api::namespaced(client, namespace), identity: identity.to_owned(), duration }
    }

    /// Resolves when `identity` may try to take the Lease.
    pub(super) async fn free(&self) {
        let config = watcher::Config::default().fields(&format!("metadata.name={LEASE}")).timeout(SILENCE_MAX_SECONDS);
        let events = watcher(self.leases.clone(), config).backoff(mirror::again());
        self.free_by(events).await;
    }

    async fn free_by(&self, events: impl Stream<Item = watcher::Result<Event<Lease>>>) {
        let mut events = std::pin::pin!(events);
        let mut held: Option<Held> = None;
        let mut is_listed = false;
        loop {
            let runs_out = async {
                match &held {
                    Some(held) => sleep_until(held.runs_out).await,
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                event = events.next() => event,
                () = runs_out => {
                    if let Some(held) = &mut held {
                        if self.release(&held.version).await {
                            return;
                        }
                        held.runs_out = Instant::now() + TRY_AGAIN;
                    }
                    continue;
                }
            };
            match event {
                Some(Ok(Event::Init)) => is_listed = false,
                Some(Ok(Event::InitApply(lease) | Event::Apply(lease))) => {
                    is_listed = true;
                    match self.held(&lease, held.as_ref()) {
                        Some(now) => held = Some(now),
                        None => return,
                    }
                }
                Some(Ok(Event::InitDone)) if !is_listed => return,
                Some(Ok(Event::InitDone)) => {}
                Some(Ok(Event::Delete(_))) | None => return,
                Some(Err(error)) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot watch the Lease");
                }
            }
        }
    }

    /// `None` if it is free.
    fn held(&self, lease: &Lease, before: Option<&Held>) -> Option<Held> {
        let spec = lease.spec.as_ref()?;
        let holder = spec.holder_identity.as_deref().filter(|holder| !holder.is_empty())?;
        let version = lease.resource_version().unwrap_or_default();
        // A list after a broken watch tells the same again, which prolongs nothing.
        if let Some(before) = before.filter(|before| before.version == version) {
            return Some(before.clone());
        }
        let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let is_own = holder == self.identity;
        let duration = if is_own { Duration::ZERO } else { seconds.map_or(self.duration, Duration::from_secs) };
        Some(Held { version, runs_out: Instant::now() + duration })
    }

    /// Takes the Lease from a holder that has let it run out, or from ourselves before a restart, unless it was renewed at the last moment. Says whether the
    /// Lease is free.
    async fn release(&self, version: &str) -> bool {
        let nobodys = json!({
            "metadata": { "resourceVersion": version },
            "spec": { "holderIdentity": null, "acquireTime": null, "renewTime": null, "leaseDurationSeconds": null },
        });
        let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let nobodys = Patch::Merge(nobodys);
        // This client waits for as long as a watch may be silent.
        match tokio::time::timeout(RELEASE_MAX, self.leases.patch(LEASE, &parameters, &nobodys)).await {
            Ok(Ok(_)) => true,
            Err(_) => {
                tracing::info!("the Lease has run out, and the API server does not answer to that");
                false
            }
            Ok(Err(error)) => {
                tracing::info!(
                    error = &error as &dyn std::error::Error,
                    "the Lease has run out and can't be freed yet"
                );
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use http::{Request, Response};
    use kube::client::Body;

    use super::*;

    const DURATION: Duration = Duration::from_secs(15);

    fn lease(version: &str, holder: Option<&str>) -> Lease {
        let spec = json!({ "holderIdentity": holder, "leaseDurationSeconds": 15 });
        serde_json::from_value(json!({ "metadata": { "name": LEASE, "resourceVersion": version }, "spec": spec }))
            .unwrap()
    }

    /// Sees these events, each after so many seconds; the API server lets it free the Lease or not.
    async fn seconds_until_free(events: Vec<(u64, Event<Lease>)>, lets_free: bool) -> u64 {
        let answer = tower::service_fn(move |_: Request<Body>| {
            let lease = serde_json::to_vec(&lease("9", None)).unwrap();
            let conflict =
                serde_json::to_vec(&json!({ "status": "Failure", "code": 409, "reason": "Conflict" })).unwrap();
            let (code, body) = if lets_free { (200, lease) } else { (409, conflict) };
            std::future::ready(Ok::<_, std::convert::Infallible>(
                Response::builder().status(code).body(Body::from(body)).unwrap(),
            ))
        });
        let standby = Standby::new(Client::new(answer, "plots"), "plots", "heron", DURATION);
        let events = stream::iter(events).then(|(after, event)| async move {
            tokio::time::sleep(Duration::from_secs(after)).await;
            Ok(event)
        });
        let begun = Instant::now();
        standby.free_by(events.chain(stream::pending())).await;
        begun.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_release_is_taken_at_once() {
        let events = vec![
            (0, Event::Init),
            (0, Event::InitApply(lease("1", Some("egret")))),
            (0, Event::InitDone),
            (3, Event::Apply(lease("2", None))),
        ];
        assert_eq!(seconds_until_free(events, false).await, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_nobody_has_made_is_free_and_our_own_is_given_back() {
        assert_eq!(seconds_until_free(vec![(0, Event::Init), (0, Event::InitDone)], false).await, 0);
        let own = vec![(0, Event::Init), (0, Event::InitApply(lease("1", Some("heron"))))];
        assert_eq!(seconds_until_free(own, true).await, 0);
        // It is tried again until it is given back.
        let refused = vec![(0, Event::Apply(lease("1", Some("heron")))), (4, Event::Apply(lease("2", None)))];
        assert_eq!(seconds_until_free(refused, false).await, 4);
        let deleted = vec![(0, Event::Apply(lease("1", Some("egret")))), (2, Event::Delete(lease("2", Some("egret"))))];
        assert_eq!(seconds_until_free(deleted, false).await, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_that_renews_no_more_loses_it_when_it_has_run_out() {
        let events = vec![
            (0, Event::Apply(lease("1", Some("egret")))),
            (5, Event::Apply(lease("2", Some("egret")))),
            // The watch broke and tells the same again.
            (5, Event::Init),
            (0, Event::InitApply(lease("2", Some("egret")))),
            (0, Event::InitDone),
        ];
        assert_eq!(seconds_until_free(events, true).await, 20);
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_at_the_last_moment_is_respected() {
        // Nothing was heard of the renewal: only the API server knows of it, and refuses.
        let events = vec![(0, Event::Apply(lease("1", Some("egret")))), (40, Event::Apply(lease("3", None)))];
        assert_eq!(seconds_until_free(events, false).await, 40);
    }
}
