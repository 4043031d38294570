//! Which replica writes: the one that holds a Lease.
//!
//! A replica that loses it ends: the one that holds it now must not be written against, and a fresh start is the simplest
//! way to forget all plans. One that is told to stop gives the Lease back, and another takes it at once.

mod fence;
mod standby;

use std::time::Duration;

use kube::{Client, Config};
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder, LeaseParams};
use tokio_util::sync::CancellationToken;

pub use fence::{Closed, Fence};
use standby::Standby;

/// The Lease, in the operator's namespace.
pub const LEASE: &str = "croft-operator";

/// How long the passes at hand may take to end before the Lease is given back without them; they are safe to break off.
const DRAIN_MAX: Duration = Duration::from_secs(1);
/// How long it may take to get a Lease that was free a moment ago; after that someone else probably has it.
const TAKE_MAX: Duration = Duration::from_secs(3);
/// How long it may take to give it back; after that it is left to run out.
const RELEASE_MAX: Duration = Duration::from_secs(2);
/// After somebody else was quicker.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Between two tries that failed.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// How the Lease is held.
#[derive(Debug, Clone)]
pub struct Election {
    pub namespace: String,
    /// Unlike any other replica's.
    pub identity: String,
    /// After a crash, another replica takes over when this has passed.
    pub lease_seconds: u64,
    /// The holder renews so long before the end.
    pub renew_before_seconds: u64,
}

/// Clients for the Lease alone. The usual one tries a request again for minutes, in which the Lease would be lost.
#[derive(Clone)]
pub struct Clients {
    /// Gives up soon.
    hasty: Client,
    /// Waits for as long as a watch has nothing to tell.
    patient: Client,
}

impl Clients {
    /// Fails when the configuration can't be used.
    pub fn new(config: &Config) -> kube::Result<Self> {
        let mut config = config.clone();
        config.default_retry = false;
        config.connect_timeout = Some(Duration::from_secs(2));
        config.read_timeout = None;
        let patient = Client::try_from(config.clone())?;
        config.read_timeout = Some(Duration::from_secs(3));
        config.write_timeout = Some(Duration::from_secs(3));
        Ok(Self { hasty: Client::try_from(config)?, patient })
    }
}

impl Election {
    /// Runs `lead` while this replica holds the Lease, and gives the Lease back when `stopping` is cancelled and `lead`
    /// has ended, or has been given time to. `fence` is open for just as long. Fails when the Lease is lost.
    pub async fn run<Fut>(
        self,
        clients: Clients,
        fence: Fence,
        lead: impl FnOnce() -> Fut,
        stopping: CancellationToken,
    ) -> anyhow::Result<()>
    where
        Fut: Future<Output = ()>,
    {
        let Some(manager) = stopping.run_until_cancelled(Box::pin(self.win(clients, &fence))).await else {
            return Ok(());
        };
        tracing::info!(identity = self.identity, "leads");
        let drained = async {
            stopping.cancelled().await;
            tokio::time::sleep(DRAIN_MAX).await;
        };
        let outcome = tokio::select! {
            () = lead() => Ok(()),
            () = drained => {
                tracing::info!("passes are broken off, so that another replica can go on");
                Ok(())
            }
            () = lost(&manager) => Err(anyhow::anyhow!("the Lease is lost: another replica has it")),
            () = fence.closes() => Err(anyhow::anyhow!("the Lease is lost: it could not be renewed in time")),
        };
        // A Lease that is lost is no longer ours to give.
        let holds = fence.is_open();
        // Whatever is still on its way in some task must not come after the next leader's first write.
        fence.close();
        if !holds {
            return outcome;
        }
        match tokio::time::timeout(RELEASE_MAX, manager.release()).await {
            Ok(Ok(())) => tracing::info!(identity = self.identity, "leads no more"),
            Ok(Err(error)) => tracing::warn!(%error, "cannot give the Lease back"),
            Err(_) => tracing::warn!("the Lease can't be given back in time"),
        }
        outcome
    }

    /// Waits until the Lease is ours, however long that takes.
    async fn win(&self, clients: Clients, fence: &Fence) -> LeaseManager {
        let duration = Duration::from_secs(self.lease_seconds);
        let standby = Standby::new(clients.patient, &self.namespace, &self.identity, duration);
        let client = fence.listen(clients.hasty, &self.identity, duration);
        loop {
            standby.free().await;
            match tokio::time::timeout(TAKE_MAX, self.take(client.clone())).await {
                Ok(Ok(Some(manager))) if fence.is_open() => return manager,
                // Someone was quicker, which the watch tells. Where it tells of nobody, asking without a pause would help nobody.
                Ok(Ok(_)) | Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "cannot take the Lease");
                    tokio::time::sleep(TRY_AGAIN).await;
                }
            }
        }
    }

    async fn take(&self, client: Client) -> Result<Option<LeaseManager>, kube_lease_manager::LeaseManagerError> {
        let params = LeaseParams::new(self.identity.clone(), self.lease_seconds, self.renew_before_seconds);
        let builder = LeaseManagerBuilder::new(client, LEASE).with_namespace(&self.namespace).with_parameters(params);
        let manager = builder.build().await?;
        Ok(manager.changed().await?.then_some(manager))
    }
}

/// Renews the Lease again and again, and resolves when someone else has it. The fence knows when a Lease that can't be
/// renewed has run out.
async fn lost(manager: &LeaseManager) {
    loop {
        match manager.changed().await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::warn!(%error, "cannot renew the Lease");
                tokio::time::sleep(TRY_AGAIN).await;
            }
        }
    }
}
