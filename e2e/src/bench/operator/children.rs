//! The children of tenants, as a watch of each kind sees them come.

use std::time::Duration;

use anyhow::ensure;
use croft_serve::Tasks;
use kube::api::PostParams;
use serde_json::json;
use tokio::time::Instant;

use crate::bench::api;
use crate::bench::arrivals::Arrivals;
use crate::bench::stage::{PATIENCE, Stage, until};

/// What a tenant has once it is whole, and when each tenant's parts came.
pub struct Children {
    arrivals: Arrivals<(String, String)>,
    ready: Arrivals<String>,
    expected: Vec<String>,
    tasks: Tasks,
}

impl Children {
    /// Watches all kinds of children, and learns from one tenant what belongs to each.
    pub async fn watch(stage: &Stage) -> anyhow::Result<Self> {
        let (tasks, arrivals, ready) = (Tasks::new(), Arrivals::default(), Arrivals::default());
        for kind in api::child_kinds() {
            let name = kind.kind.clone();
            arrivals.follow(&tasks, api::all(&stage.client, &kind), api::CHILDREN, move |object| {
                let tenant = object.metadata.labels.as_ref()?.get("croft.dev/tenant")?.clone();
                let own_name = object.metadata.name.clone()?;
                // The only child whose name differs from tenant to tenant.
                let child = if name == "Namespace" { name.clone() } else { format!("{name}/{own_name}") };
                Some((tenant, child))
            });
        }
        let tenants = api::all(&stage.client, &api::agent_tenants());
        ready.follow(&tasks, tenants.clone(), "", |tenant| {
            api::is_true(tenant, "Ready").then(|| tenant.metadata.name.clone()).flatten()
        });
        arrivals.synced().await;
        ready.synced().await;

        let sample = "sample".to_owned();
        tenants.create(&PostParams::default(), &api::tenant(&sample, &spec())).await?;
        until("the sample tenant is ready", async || ready.get(&sample)).await?;
        stage.quiet().await?;
        let parts = arrivals.keys().into_iter().filter(|(tenant, _)| *tenant == sample);
        let expected: Vec<_> = parts.map(|(_, child)| child).collect();
        ensure!(expected.len() >= 10, "a tenant has only {expected:?}");
        Ok(Self { arrivals, ready, expected, tasks })
    }

    /// How many a tenant has.
    pub fn count(&self) -> usize {
        self.expected.len()
    }

    /// When the last of the tenant's children came.
    pub async fn complete(&self, tenant: &str) -> anyhow::Result<Instant> {
        let keys: Vec<_> = self.expected.iter().map(|child| (tenant.to_owned(), child.clone())).collect();
        let seen = self.arrivals.all(&keys, PATIENCE * 3).await?;
        Ok(seen.into_iter().max().unwrap_or_else(Instant::now))
    }

    /// When the tenant said that it is ready.
    pub async fn ready(&self, tenant: &str) -> anyhow::Result<Instant> {
        let seen = self.ready.all(&[tenant.to_owned()], PATIENCE * 3).await?;
        Ok(seen.into_iter().max().unwrap_or_else(Instant::now))
    }

    /// Ends the watches.
    pub async fn end(self) {
        self.tasks.shutdown(Duration::from_secs(1)).await;
    }
}

/// A tenant as they come in numbers: one worker.
pub fn spec() -> serde_json::Value {
    json!({ "tier": "free", "workers": { "replicas": 1 } })
}
