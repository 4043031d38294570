//! The front's measures.

pub mod authority;
mod collector;
pub mod create;
pub mod log;
pub mod metering;
pub mod previews;
mod provider;
pub mod routes;
mod socket;
pub mod sockets;
pub mod stage;
pub mod stuck;
pub mod takeover;
pub mod turns;

use std::io::Write;
use std::time::Duration;

use super::alone::alone;
use super::row::Row;
use metering::Settled;
use stage::{Place, Stage};

/// How much is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct FrontExtent {
    /// Seconds that each load lasts
    #[arg(long, default_value_t = 10)]
    pub seconds: u32,
    /// Sessions that answer at the same time
    #[arg(long, default_value_t = 200)]
    pub streams: usize,
    /// Transactions that the log appends in at a time, one setting after the other
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4])]
    pub lanes: Vec<usize>,
    /// Idle sockets that wait for events; each takes a file of this program's and one of the front's
    #[arg(long, default_value_t = 10_000)]
    pub sockets: u32,
    /// Turns whose front is killed
    #[arg(long, default_value_t = 100)]
    pub takeovers: usize,
    /// Measures to take, by name, if not all
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<Measure>,
}

/// What can be asked for by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Measure {
    Sockets,
    Create,
    Turns,
    Previews,
    Log,
    Replay,
    Stuck,
    Takeover,
    Leave,
    Rows,
    Verify,
}

/// Takes the measures and writes each to `out` when it is there. Says whether all reaches hold.
pub async fn run(place: Place, extent: &FrontExtent, out: &mut impl Write) -> anyhow::Result<bool> {
    let wanted = |measure| extent.only.is_empty() || extent.only.contains(&measure);
    let mut all_hold = true;
    let mut tell = |row: Row| {
        all_hold &= row.holds();
        writeln!(out, "{row}").and_then(|()| out.flush())
    };
    let mut stage = Stage::set(place).await?;
    // First, while the front's memory holds nothing else.
    if wanted(Measure::Sockets) {
        tell(sockets::idle(&stage, extent.sockets).await?)?;
    }
    if wanted(Measure::Create) {
        for row in alone(create::all(&stage, extent.seconds))? {
            tell(row)?;
        }
    }
    if wanted(Measure::Turns) {
        for row in alone(turns::all(&stage, extent.seconds))? {
            tell(row)?;
        }
    }
    if wanted(Measure::Previews) {
        tell(previews::with(&stage, 1, extent.seconds, None).await?)?;
        tell(previews::with(&stage, extent.streams, extent.seconds, Some(Duration::from_millis(1))).await?)?;
    }
    if wanted(Measure::Log) {
        for &lanes in &extent.lanes {
            tell(log::stored(&stage, lanes, 256, 8, extent.seconds).await?)?;
        }
    }
    if wanted(Measure::Replay) {
        tell(log::replayed(&stage, 20).await?)?;
    }
    if wanted(Measure::Stuck) {
        tell(stuck::subscribers(&stage, extent.seconds).await?)?;
    }
    if wanted(Measure::Takeover) {
        tell(takeover::after_kill(&mut stage, extent.takeovers).await?)?;
        tell(takeover::after_worker_kill(&mut stage, extent.takeovers).await?)?;
    }
    if wanted(Measure::Leave) {
        tell(metering::bare(&stage, 10_000, extent.seconds)?)?;
        tell(metering::leave(&stage, 10_000, extent.seconds, Settled::No).await?)?;
        tell(metering::leave(&stage, 2_500, extent.seconds, Settled::Yes).await?)?;
        // Counters need no file: what they hold is compared with the ledger when they come back empty.
        metering::keep_file(&stage, false).await?;
        tell(
            metering::leave(&stage, 10_000, extent.seconds, Settled::No)
                .await?
                .besides("Redis keeps no file of appends"),
        )?;
        metering::keep_file(&stage, true).await?;
    }
    if wanted(Measure::Rows) {
        tell(metering::rows(&stage, 256, extent.seconds).await?)?;
    }
    if wanted(Measure::Verify) {
        tell(metering::verified(&stage, 200_000).await?)?;
    }
    let left = stage.tasks.shutdown(Duration::from_secs(5)).await;
    anyhow::ensure!(left == 0, "{left} tasks of the harness do not end");
    Ok(all_hold)
}
