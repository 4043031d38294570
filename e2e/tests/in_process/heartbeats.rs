//! Leases of turns that run: renewed together for as long as the turns take, and given up when nobody can renew them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use croft_e2e::client::{message, scripted_agent};
use croft_front::Error;
use croft_front::core::Options;
use croft_front::lease::{Abandoned, LeaseStore};
use croft_front::store::Stores;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::StopReason;
use futures::future::join_all;

use crate::world::{Ground, World, read_all, stop_reason};

const TTL: Duration = Duration::from_millis(900);
/// Longer than a lease is good for.
const LONG: &str = r#"{"script": [{"delay_ms": 2000}, {"text": "done"}]}"#;

/// Leases whose renewals are counted, and may fail.
struct Watched {
    behind: Arc<dyn LeaseStore>,
    calls: AtomicUsize,
    renewed: AtomicUsize,
    is_away: AtomicBool,
}

#[async_trait]
impl LeaseStore for Watched {
    async fn acquire(&self, t: TenantId, s: SessionId, holder: &str, ttl: Duration) -> Result<Option<u64>, Error> {
        self.behind.acquire(t, s, holder, ttl).await
    }

    async fn renew_all(
        &self,
        t: TenantId,
        leases: &[(SessionId, u64)],
        ttl: Duration,
    ) -> Result<Vec<SessionId>, Error> {
        if self.is_away.load(Ordering::SeqCst) {
            return Err(Error::unavailable("postgres", anyhow::anyhow!("connection refused")));
        }
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.renewed.fetch_add(leases.len(), Ordering::SeqCst);
        self.behind.renew_all(t, leases, ttl).await
    }

    async fn release(&self, tenant: TenantId, session: SessionId, epoch: u64) -> Result<(), Error> {
        self.behind.release(tenant, session, epoch).await
    }

    async fn abandon(&self, tenant: TenantId, session: SessionId, epoch: u64) -> Result<(), Error> {
        self.behind.abandon(tenant, session, epoch).await
    }

    async fn abandoned(&self, limit: u32) -> Result<Vec<Abandoned>, Error> {
        self.behind.abandoned(limit).await
    }
}

async fn watched_world() -> (World, Arc<Watched>) {
    let mut stores = Stores::memory();
    let leases = Arc::new(Watched {
        behind: Arc::clone(&stores.leases),
        calls: AtomicUsize::new(0),
        renewed: AtomicUsize::new(0),
        is_away: AtomicBool::new(false),
    });
    stores.leases = Arc::clone(&leases) as _;
    let options = Options { lease_ttl: TTL, ..Options::default() };
    (World::on(Ground { stores, options, ..Ground::default() }).await, leases)
}

#[tokio::test]
async fn turns_that_run_are_kept_by_one_call_for_all() {
    let (world, leases) = watched_world().await;
    let turns = (0..20).map(|_| {
        let mut client = world.client();
        async move {
            let session = client.create(scripted_agent("slow")).await.unwrap();
            let sent = client.lifecycle.send_message(message(&session.session_id, LONG)).await.unwrap();
            stop_reason(&read_all(sent.into_inner()).await)
        }
    });
    assert_eq!(join_all(turns).await, [Some(StopReason::EndTurn); 20]);
    let (calls, renewed) = (leases.calls.load(Ordering::SeqCst), leases.renewed.load(Ordering::SeqCst));
    assert!(renewed >= 20 * 3, "each is renewed, or others would have taken them over: {renewed}");
    assert!(calls * 10 <= renewed, "{calls} calls for {renewed} renewals");
    assert_eq!(world.core.metrics.lease_losses.get(), 0);
}

#[tokio::test]
async fn a_turn_that_nobody_can_renew_is_given_up_in_time_and_goes_on_later() {
    let (world, leases) = watched_world().await;
    let mut client = world.client();
    let session = client.create(scripted_agent("slow")).await.unwrap();
    leases.is_away.store(true, Ordering::SeqCst);
    let sent = client.lifecycle.send_message(message(&session.session_id, LONG)).await.unwrap();
    // Before the turn would have been over.
    let given_up = async {
        while world.core.metrics.lease_losses.get() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), given_up).await.expect("the lease runs out");
    leases.is_away.store(false, Ordering::SeqCst);
    let events = read_all(sent.into_inner()).await;
    assert_eq!(stop_reason(&events), Some(StopReason::EndTurn), "{events:?}");
}
