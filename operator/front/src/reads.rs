//! Long looks into the database: no tenant's may keep the others, or the leases of turns that run, from their connections.

use std::sync::Arc;
use std::time::Duration;

use croft_proto::id::TenantId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::error::Error;
use crate::shares::Shares;

/// Of one tenant at a time; more wait for their turn.
const TENANT_MAX: usize = 2;
/// Of all tenants: half of the connections that a front has by itself.
const ALL_MAX: usize = 8;
/// Who waits longer is told to come again.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// Where whole ledgers, logs and lists are looked through, one after the other. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Reads {
    all: Arc<Semaphore>,
    shares: Shares,
}

impl Default for Reads {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(ALL_MAX)), shares: Shares::of(TENANT_MAX) }
    }
}

impl Reads {
    /// What `look` comes to, once it is its turn. Fails with [`Error::Unavailable`] if that takes too long.
    pub(crate) async fn one<T>(
        &self,
        tenant: TenantId,
        look: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let _turn = timeout(WAIT_MAX, self.turn(tenant)).await.map_err(|_| {
            let problem = anyhow::anyhow!("{TENANT_MAX} long looks of the tenant, or {ALL_MAX} of all, are under way");
            Error::unavailable("postgres", problem)
        })??;
        look.await
    }

    /// As [`Self::one`], of what has begun to be told already: it waits for as long as it takes.
    pub(crate) async fn next<T>(
        &self,
        tenant: TenantId,
        look: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let _turn = self.turn(tenant).await?;
        look.await
    }

    /// The tenant's own first, so that who waits for that keeps nobody else waiting.
    async fn turn(&self, tenant: TenantId) -> Result<[OwnedSemaphorePermit; 2], Error> {
        let own = self.shares.of_tenant(tenant).acquire_owned().await.map_err(Error::internal)?;
        let all = Arc::clone(&self.all).acquire_owned().await.map_err(Error::internal)?;
        Ok([own, all])
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::join_all;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_tenants_looks_keep_nobody_else_waiting() {
        let (reads, now, most) = (Reads::default(), AtomicUsize::new(0), AtomicUsize::new(0));
        let (crowd, other) = (TenantId::generate(), TenantId::generate());
        let look = async || {
            most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(1)).await;
            now.fetch_sub(1, Ordering::Relaxed);
            Ok(())
        };
        let begun = tokio::time::Instant::now();
        let looks = join_all((0..20).map(|_| reads.one(crowd, look())));
        let quick = async {
            tokio::task::yield_now().await;
            reads.one(other, std::future::ready(Ok(begun.elapsed()))).await.unwrap()
        };
        let (looks, quick) = tokio::join!(looks, quick);
        assert_eq!(quick, Duration::ZERO);
        assert_eq!(most.load(Ordering::Relaxed), TENANT_MAX);
        let refused = looks.iter().filter(|look| matches!(look, Err(Error::Unavailable { .. }))).count();
        assert_eq!((looks.len() - refused, begun.elapsed().as_secs()), (12, 6), "those that begin within five seconds");
        let told = join_all((0..20).map(|_| reads.next(crowd, look()))).await;
        assert!(told.iter().all(Result::is_ok), "what has begun to be told is told to its end");
    }

    #[tokio::test(start_paused = true)]
    async fn all_tenants_together_leave_connections_for_the_rest() {
        let (reads, now, most) = (Reads::default(), AtomicUsize::new(0), AtomicUsize::new(0));
        let look = async || {
            most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(1)).await;
            now.fetch_sub(1, Ordering::Relaxed);
            Ok(())
        };
        let looks = join_all((0..20).map(|_| reads.one(TenantId::generate(), look()))).await;
        assert!(looks.iter().all(Result::is_ok));
        assert_eq!(most.load(Ordering::Relaxed), ALL_MAX);
    }
}
