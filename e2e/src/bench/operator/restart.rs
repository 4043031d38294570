//! The operator ends and begins anew among many tenants.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use kube::api::{DeleteParams, ListParams};
use tokio::time::Instant;

use crate::bench::api;
use crate::bench::load::megabytes;
use crate::bench::row::Row;
use crate::bench::samples::{Samples, human};
use crate::bench::stage::{OPERATOR_USER, Stage, until};

const REACH: Duration = Duration::from_secs(10);
const MEMORY: u64 = 100_000_000;
/// Tenants of which a child is taken away while no operator runs.
const DAMAGED: usize = 20;

/// Restarts with nothing to mend, and one with something.
pub async fn all(stage: &mut Stage, times: u32) -> anyhow::Result<Vec<Row>> {
    let names = tenants(stage).await?;
    let count = names.len();
    let (mut converged, mut led) = (Vec::new(), Vec::new());
    let mut writes: BTreeMap<String, usize> = BTreeMap::new();
    let mut load = stage.operator.load()?;
    for _ in 0..times {
        stage.settled().await?;
        end(stage).await?;
        let noted = stage.audit.end()?;
        let (election, all) = begin(stage, count).await?;
        led.push(election);
        converged.push(all);
        stage.quiet().await?;
        for entry in stage.audit.since(noted)? {
            if entry.user == OPERATOR_USER && entry.is_write() {
                *writes.entry(format!("{} {}", entry.verb, entry.resource)).or_default() += 1;
            }
        }
        load = stage.operator.load()?;
    }
    let led: Samples = led.into_iter().collect();
    let damaged = damaged(stage, &names).await?;
    Ok(vec![
        Row::times(format!("restart → a pass over each of {count} tenants done"), converged.into_iter().collect())
            .all_within(REACH)
            .besides(format!("leads after {}", human(led.p50())))
            .besides(format!("{:.2} CPU seconds", load.cpu.as_secs_f64())),
        Row::value(
            format!("API writes on {times} restarts, {count} tenants"),
            writes.values().sum::<usize>().to_string(),
        )
        .reach("0", writes.is_empty())
        .besides(writes.iter().map(|(what, count)| format!("{count} {what}")).collect::<Vec<_>>().join(", ")),
        Row::value(format!("operator's memory (RSS), {count} tenants, after a restart"), megabytes(load.resident))
            .reach(format!("≤ {}", megabytes(MEMORY)), load.resident <= MEMORY)
            .besides(format!("at most {} ever", megabytes(load.resident_max))),
        damaged,
    ])
}

/// While the operator is away, children are deleted; how long after its start are all of them back?
async fn damaged(stage: &mut Stage, names: &[String]) -> anyhow::Result<Row> {
    end(stage).await?;
    let kind = api::child_kinds().into_iter().find(|kind| kind.kind == "LimitRange").context("no such kind")?;
    let step = (names.len() / DAMAGED).max(1);
    let victims: Vec<_> = names.iter().step_by(step).take(DAMAGED).map(|name| format!("tenant-{name}")).collect();
    for namespace in &victims {
        api::within(&stage.trusted, namespace, &kind).delete("tenant", &DeleteParams::default()).await?;
    }
    let noted = stage.audit.end()?;
    begin(stage, 1).await?;
    let mut times = Vec::new();
    for namespace in &victims {
        let objects = api::within(&stage.client, namespace, &kind);
        until("a child is back", async || objects.get_opt("tenant").await.ok()?).await?;
        times.push(stage.operator.started.elapsed());
    }
    stage.quiet().await?;
    let entries = stage.audit.since(noted)?;
    let writes = entries.iter().filter(|entry| entry.user == OPERATOR_USER && entry.is_write()).count();
    let missing = victims.len();
    Ok(Row::times(format!("restart → {missing} children that went meanwhile are back"), times.into_iter().collect())
        .all_within(REACH)
        .besides(format!("{writes} API writes")))
}

async fn tenants(stage: &Stage) -> anyhow::Result<Vec<String>> {
    let tenants = api::all(&stage.client, &api::agent_tenants()).list_metadata(&ListParams::default()).await?;
    Ok(tenants.items.into_iter().filter_map(|tenant| tenant.metadata.name).collect())
}

async fn end(stage: &mut Stage) -> anyhow::Result<()> {
    stage.operator.terminate().await?;
    stage.operator.wait().await
}

/// Starts the operator. Says when it led and when so many passes over tenants were done, from its start.
async fn begin(stage: &mut Stage, passes: usize) -> anyhow::Result<(Duration, Duration)> {
    stage.operator = stage.start_operator("operator-0", stage.ports[0])?;
    let begun: Instant = stage.operator.started;
    let leads = stage.operator.until_scraped(|scrape| scrape.sum("croft_operator_leader", &[]) > 0.0).await?;
    let labels = ["kind=\"AgentTenant\"", "outcome=\"ok\""];
    let wanted = u32::try_from(passes)?;
    let done = stage
        .operator
        .until_scraped(|scrape| scrape.sum("croft_operator_reconciles_total", &labels) >= f64::from(wanted))
        .await?;
    Ok((leads - begun, done - begun))
}
