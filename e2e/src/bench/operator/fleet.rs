//! A large number of tenants, at rest.

use std::time::Duration;

use kube::api::{ListParams, Patch, PatchParams, PostParams};
use serde_json::json;

use super::children::{Children, spec};
use crate::bench::api;
use crate::bench::load::megabytes;
use crate::bench::pace::Pace;
use crate::bench::row::Row;
use crate::bench::stage::{OPERATOR_USER, Stage, until};

/// What the operator may keep in memory.
const MEMORY: u64 = 100_000_000;

/// Makes tenants until there are `count`, and waits until all are whole and the operator rests.
pub async fn grow(stage: &Stage, children: &Children, count: u32) -> anyhow::Result<()> {
    let tenants = api::all(&stage.client, &api::agent_tenants());
    let there = u32::try_from(tenants.list_metadata(&ListParams::default()).await?.items.len())?;
    let missing = Pace { per_second: 15, count: count.saturating_sub(there) };
    let made = missing
        .run(async |number| {
            let name = format!("fleet-{number:05}");
            tenants.create(&PostParams::default(), &api::tenant(&name, &spec())).await.map(|_| name)
        })
        .await;
    for (_, made) in made {
        let name = made?;
        children.complete(&name).await?;
        children.ready(&name).await?;
    }
    stage.settled().await
}

/// What the operator has in memory.
pub async fn memory(stage: &Stage) -> anyhow::Result<Row> {
    let count = api::all(&stage.client, &api::agent_tenants()).list_metadata(&ListParams::default()).await?.items.len();
    let load = stage.operator.load()?;
    let row =
        Row::value(format!("operator's memory (RSS), {count} tenants, after making them"), megabytes(load.resident));
    Ok(row
        .reach(format!("≤ {}", megabytes(MEMORY)), load.resident <= MEMORY)
        .besides(format!("at most {} ever", megabytes(load.resident_max))))
}

/// What happens while nothing does.
pub async fn idle(stage: &Stage, seconds: u64) -> anyhow::Result<Row> {
    let (cpu, noted, before) = (stage.operator.load()?.cpu, stage.audit.end()?, passes(stage).await?);
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let entries = stage.audit.since(noted)?;
    let ours = entries.iter().filter(|entry| entry.user == OPERATOR_USER);
    let writes = ours.clone().filter(|entry| entry.is_write()).count();
    let cpu = stage.operator.load()?.cpu.saturating_sub(cpu);
    Ok(Row::value(format!("API writes in {seconds} s in which nothing changes"), writes.to_string())
        .reach("0", writes == 0)
        .besides(format!("{} passes", passes(stage).await? - before))
        .besides(format!("{} requests of any kind, its lease's among them", ours.count()))
        .besides(format!("{:.2} CPU seconds", cpu.as_secs_f64())))
}

/// Passes that find nothing to do: a label of a tenant is changed, again and again.
pub async fn touched(stage: &Stage, times: u32) -> anyhow::Result<Row> {
    let tenants = api::all(&stage.client, &api::agent_tenants());
    let (noted, cpu, begun) = (stage.audit.end()?, stage.operator.load()?.cpu, passes(stage).await?);
    for time in 0..times {
        let before = passes(stage).await?;
        let patch = Patch::Merge(json!({ "metadata": { "labels": { "touched": time.to_string() } } }));
        tenants.patch("sample", &PatchParams::default(), &patch).await?;
        until("a pass over the tenant", async || (passes(stage).await.ok()? > before).then_some(())).await?;
    }
    stage.quiet().await?;
    let entries = stage.audit.since(noted)?;
    let writes = entries.iter().filter(|entry| entry.user == OPERATOR_USER && entry.is_write()).count();
    let passes = passes(stage).await? - begun;
    let cpu = stage.operator.load()?.cpu.saturating_sub(cpu);
    Ok(Row::value(format!("API writes in {passes} passes that change nothing"), writes.to_string())
        .reach("0", writes == 0)
        .besides(format!("{:.1} ms of CPU a pass, all included", cpu.as_secs_f64() * 1e3 / passes)))
}

/// Passes over tenants so far.
pub(super) async fn passes(stage: &Stage) -> anyhow::Result<f64> {
    Ok(stage.operator.scrape().await?.sum("croft_operator_reconciles_total", &["kind=\"AgentTenant\""]))
}
