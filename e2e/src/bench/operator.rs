//! The operator's measures, in the order in which the cluster fills.

pub mod bare;
pub mod children;
pub mod drift;
pub mod fleet;
pub mod handover;
pub mod index;
pub mod restart;
pub mod sessions;
pub mod tenants;

use std::io::Write;

use super::row::{HEAD, Row};
use super::stage::{Place, Stage};
use children::Children;

/// How much is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct Extent {
    /// Tenants of the large cluster
    #[arg(long, default_value_t = 1_000)]
    pub tenants: u32,
    /// Seconds that sessions are declared for, at each rate
    #[arg(long, default_value_t = 10)]
    pub session_seconds: u32,
    /// Sessions declared a second, one rate after the other
    #[arg(long, value_delimiter = ',', default_values_t = [2, 20, 75])]
    pub session_rates: Vec<u32>,
    /// Tenants made a second, for ten seconds, one rate after the other
    #[arg(long, value_delimiter = ',', default_values_t = [5, 10, 20])]
    pub tenant_rates: Vec<u32>,
    /// Seconds in which nothing happens
    #[arg(long, default_value_t = 60)]
    pub idle_seconds: u64,
    /// Times that the operator is started anew
    #[arg(long, default_value_t = 3)]
    pub restarts: u32,
    /// Handovers by SIGTERM
    #[arg(long, default_value_t = 10)]
    pub handovers: u32,
    /// Handovers by SIGKILL, each of which takes as long as a lease
    #[arg(long, default_value_t = 3)]
    pub crashes: u32,
    /// Times that each child is deleted, and edited
    #[arg(long, default_value_t = 5)]
    pub drifts: u32,
}

/// Takes all measures and writes each to `out` when it is there. Says whether all reaches hold.
pub async fn run(place: Place, extent: &Extent, out: &mut impl Write) -> anyhow::Result<bool> {
    let mut all_hold = true;
    let mut tell = |row: Row| {
        all_hold &= row.holds();
        writeln!(out, "{row}").and_then(|()| out.flush())
    };
    for row in index::all()? {
        tell(row)?;
    }
    let mut stage = Stage::set(place).await?;
    writeln!(std::io::stderr(), "the stage is set")?;
    for &rate in &extent.session_rates {
        tell(sessions::at(&stage, rate, rate * extent.session_seconds).await?)?;
    }
    let children = Children::watch(&stage).await?;
    for &rate in &extent.tenant_rates {
        let count = (rate * 10).min(extent.tenants);
        for row in tenants::at(&stage, &children, &format!("at-{rate}"), rate, count).await? {
            tell(row)?;
        }
    }
    if let Some(&rate) = extent.tenant_rates.iter().max() {
        tell(bare::at(&stage, rate, (rate * 10).min(extent.tenants)).await?)?;
    }
    fleet::grow(&stage, &children, extent.tenants).await?;
    tell(fleet::memory(&stage).await?)?;
    tell(fleet::idle(&stage, extent.idle_seconds).await?)?;
    tell(fleet::touched(&stage, 100).await?)?;
    for row in tenants::at(&stage, &children, "late", 20, 200.min(extent.tenants)).await? {
        tell(row)?;
    }
    for row in drift::all(&stage, extent.drifts).await? {
        tell(row)?;
    }
    for row in restart::all(&mut stage, extent.restarts).await? {
        tell(row)?;
    }
    for row in handover::all(&mut stage, &children, extent.handovers, extent.crashes).await? {
        tell(row)?;
    }
    children.end().await;
    Ok(all_hold)
}

/// Writes the head of the table.
pub fn head(out: &mut impl Write) -> std::io::Result<()> {
    writeln!(out, "{HEAD}")
}
