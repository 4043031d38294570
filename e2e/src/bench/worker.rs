//! The worker's measures, which need nothing but its program: how quickly answers are decoded, and what the worker adds to
//! the time that a provider takes, what a session takes in it, and how soon it goes on with another's.

pub mod decode;
pub mod hops;
pub mod idle;
pub mod overhead;
pub mod provider;
pub mod restore;

use std::io::Write;
use std::path::PathBuf;

use super::row::Row;

/// How much is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct WorkerExtent {
    /// Seconds that each load lasts
    #[arg(long, default_value_t = 20)]
    pub seconds: u32,
    /// Requests a second, one rate after the other
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1_000])]
    pub rates: Vec<u32>,
    /// Megabytes that are decoded of each provider's streams
    #[arg(long, default_value_t = 256)]
    pub decoded_mb: usize,
}

/// What the measures are taken of.
#[derive(Debug, Clone)]
pub struct Place {
    /// The folder of croft-worker.
    pub programs: PathBuf,
    /// For logs.
    pub scratch: PathBuf,
}

/// Takes all measures and writes each to `out` when it is there. Says whether all reaches hold.
pub async fn run(place: &Place, extent: &WorkerExtent, out: &mut impl Write) -> anyhow::Result<bool> {
    let mut all_hold = true;
    let mut tell = |row: Row| {
        all_hold &= row.holds();
        writeln!(out, "{row}").and_then(|()| out.flush())
    };
    for row in decode::all(extent.decoded_mb).await? {
        tell(row)?;
    }
    for row in overhead::all(place, extent).await? {
        tell(row)?;
    }
    tell(idle::sessions(place).await?)?;
    tell(restore::checkpoint(place).await?)?;
    Ok(all_hold)
}
