//! Which replica writes: the one that holds a Lease.
//!
//! A replica that loses it ends: the one that holds it now must not be written against, and a fresh start is the simplest
//! way to forget all plans.

use std::time::Duration;

use anyhow::Context as _;
use kube::{Client, Config};
use kube_lease_manager::{LeaseManagerBuilder, LeaseParams};
use tokio_util::sync::CancellationToken;

/// The Lease, in the operator's namespace.
pub const LEASE: &str = "croft-operator";

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

/// A client for the Lease alone. The usual one tries a request again for minutes, in which the Lease would be lost.
pub fn client(config: &Config) -> kube::Result<Client> {
    let mut config = config.clone();
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(2));
    config.read_timeout = Some(Duration::from_secs(3));
    config.write_timeout = Some(Duration::from_secs(3));
    Client::try_from(config)
}

impl Election {
    /// Runs `lead` while this replica holds the Lease, and gives the Lease back when `stopping` is cancelled and `lead`
    /// has ended. Fails when the Lease is lost or can't be had.
    pub async fn run<Fut>(
        self,
        client: Client,
        lead: impl FnOnce() -> Fut,
        stopping: CancellationToken,
    ) -> anyhow::Result<()>
    where
        Fut: Future<Output = ()>,
    {
        let params = LeaseParams::new(self.identity.clone(), self.lease_seconds, self.renew_before_seconds);
        let manager = LeaseManagerBuilder::new(client, LEASE)
            .with_namespace(self.namespace)
            .with_parameters(params)
            .build()
            .await
            .context("cannot create or read the Lease croft-operator")?;
        let (mut holds, holding) = manager.watch().await;
        let won = stopping.run_until_cancelled(holds.wait_for(|&holds| holds)).await.map(|won| won.map(drop));
        let outcome = match won {
            None => Ok(()),
            Some(Err(_)) => Err(anyhow::anyhow!("the Lease can't be watched any more")),
            Some(Ok(())) => {
                tracing::info!(identity = self.identity, "leads");
                tokio::select! {
                    () = lead() => Ok(()),
                    _ = holds.wait_for(|&holds| !holds) => Err(anyhow::anyhow!("the Lease is lost")),
                }
            }
        };
        // Its task releases the Lease when nobody listens any more.
        drop(holds);
        match holding.await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot give the Lease back"),
            Err(error) => tracing::warn!(%error, "the task that holds the Lease has failed"),
        }
        outcome
    }
}
