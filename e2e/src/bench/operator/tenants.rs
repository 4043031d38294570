//! From an AgentTenant's creation to the last of its children, at a rate.

use std::time::Duration;

use anyhow::Context as _;
use kube::api::PostParams;

use super::children::{Children, spec};
use super::fleet;
use crate::bench::api;
use crate::bench::pace::Pace;
use crate::bench::row::Row;
use crate::bench::samples::{Samples, human};
use crate::bench::stage::{OPERATOR_USER, Stage};

/// What is to be reached at [`RATE`].
const REACH: Duration = Duration::from_secs(1);
const RATE: u32 = 20;

/// Makes `count` tenants whose names begin with `prefix`, `per_second` of them. They stay.
pub async fn at(
    stage: &Stage,
    children: &Children,
    prefix: &str,
    per_second: u32,
    count: u32,
) -> anyhow::Result<[Row; 2]> {
    stage.settled().await?;
    let tenants = api::all(&stage.client, &api::agent_tenants());
    let already = tenants.list_metadata(&kube::api::ListParams::default()).await?.items.len();
    let (cpu, noted, passes) = (stage.cpu()?, stage.audit.end()?, fleet::passes(stage).await?);
    let made = Pace { per_second, count }
        .run(async |number| {
            let name = format!("{prefix}-{number:05}");
            let begun = tokio::time::Instant::now();
            let made = tenants.create(&PostParams::default(), &api::tenant(&name, &spec())).await;
            made.map(|_| (name, begun.elapsed()))
        })
        .await;
    let (mut whole, mut ready, mut posted) = (Vec::new(), Vec::new(), Vec::new());
    for (due, made) in made {
        let (name, took) = made.context("a tenant is not taken")?;
        whole.push(children.complete(&name).await? - due);
        ready.push((name, due));
        posted.push(took);
    }
    let cpu = stage.cpu_since(&cpu)?;
    let mut readied = Vec::new();
    for (name, due) in ready {
        readied.push(children.ready(&name).await? - due);
    }
    stage.quiet().await?;
    let entries = stage.audit.since(noted)?;
    let writes = entries.iter().filter(|entry| entry.is_write());
    let passes = fleet::passes(stage).await? - passes;
    let by_operator = writes.clone().filter(|entry| entry.user == OPERATOR_USER).count();
    let posted: Samples = posted.into_iter().collect();
    let whole = Row::times(
        format!("tenant create → all {} children, {per_second}/s beside {already} tenants", children.count()),
        whole.into_iter().collect(),
    );
    let whole = if per_second == RATE { whole.p99_within(REACH) } else { whole };
    let whole = whole
        .besides(format!(
            "of it the API server's answer to the create {} / {}",
            human(posted.p50()),
            human(posted.p99())
        ))
        .besides(cpu);
    let readied =
        Row::times("the same until the tenant is Ready, workers ready at once", readied.into_iter().collect()).besides(
            format!(
                "{} writes a tenant, {} of them the operator's, in {:.1} passes",
                writes.count() / count as usize,
                by_operator / count as usize,
                passes / f64::from(count),
            ),
        );
    Ok([whole, readied])
}
