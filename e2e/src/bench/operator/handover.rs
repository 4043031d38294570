//! Two operators, and the one that leads goes.

use std::time::Duration;

use kube::api::PostParams;

use super::children::{Children, spec};
use crate::bench::api;
use crate::bench::row::Row;
use crate::bench::samples::{Samples, human};
use crate::bench::stage::Stage;

const REACH: Duration = Duration::from_secs(2);
/// `--lease-seconds` as it is unless told.
const LEASE: Duration = Duration::from_secs(15);

/// How the leader goes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Terminated,
    Killed,
}

/// Handovers of both sorts.
pub async fn all(stage: &mut Stage, children: &Children, handovers: u32, crashes: u32) -> anyhow::Result<[Row; 2]> {
    let terminated = rounds(stage, children, End::Terminated, handovers).await?.all_within(REACH);
    let killed = rounds(stage, children, End::Killed, crashes).await?.all_within(LEASE);
    Ok([terminated, killed])
}

async fn rounds(stage: &mut Stage, children: &Children, end: End, rounds: u32) -> anyhow::Result<Row> {
    let (mut taken, mut served) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        // Each place is used in turn; the one that led before is free again.
        let place = stage.other_place();
        let mut standby = stage.start_operator(&format!("operator-{end:?}-{round}"), stage.ports[place])?;
        standby.ready().await?;
        stage.quiet().await?;
        let gone = match end {
            End::Terminated => stage.operator.terminate().await?,
            End::Killed => stage.operator.kill()?,
        };
        let name = format!("orphan-{end:?}-{round:03}").to_lowercase();
        let tenants = api::all(&stage.client, &api::agent_tenants());
        tenants.create(&PostParams::default(), &api::tenant(&name, &spec())).await?;
        let leads = standby.until_scraped(|scrape| scrape.sum("croft_operator_leader", &[]) > 0.0).await?;
        taken.push(leads - gone);
        served.push(children.complete(&name).await? - gone);
        stage.operator.wait().await?;
        stage.replace_operator(standby, place);
    }
    let served: Samples = served.into_iter().collect();
    let how = match end {
        End::Terminated => "SIGTERM",
        End::Killed => "kill -9",
    };
    Ok(Row::times(format!("leader handover, {how} → the other leads"), taken.into_iter().collect()).besides(format!(
        "a tenant made at that moment has all its children after {} / {}",
        human(served.p50()),
        human(served.max())
    )))
}
