//! From an AgentSession's creation to its `Ready`, at a rate.

use std::time::Duration;

use anyhow::Context as _;
use croft_serve::Tasks;
use kube::api::{DeleteParams, ListParams, PostParams};

use crate::bench::api;
use crate::bench::arrivals::Arrivals;
use crate::bench::pace::Pace;
use crate::bench::row::Row;
use crate::bench::samples::{Samples, human};
use crate::bench::stage::{OPERATOR_USER, Stage, TENANT, until};

/// What is to be reached at [`RATE`].
const REACH: Duration = Duration::from_millis(300);
const RATE: u32 = 75;
const PATIENCE: Duration = Duration::from_mins(2);

/// Declares `count` sessions, `per_second` of them, then deletes them.
pub async fn at(stage: &Stage, per_second: u32, count: u32) -> anyhow::Result<Row> {
    let tasks = Tasks::new();
    let objects = api::within(&stage.client, &format!("tenant-{TENANT}"), &api::agent_sessions());
    let name = |number: u32| format!("at-{per_second}-{number:05}");
    let ready = Arrivals::default();
    ready.follow(&tasks, objects.clone(), "", |object| {
        api::is_true(object, "Ready").then(|| object.metadata.name.clone()).flatten()
    });
    ready.synced().await;
    stage.quiet().await?;

    let (cpu, noted, before) = (stage.cpu()?, stage.audit.end()?, stage.operator.scrape().await?);
    let created = Pace { per_second, count }
        .run(async |number| {
            let session = api::session(&name(number), &format!("tenant-{TENANT}"));
            let begun = tokio::time::Instant::now();
            objects.create(&PostParams::default(), &session).await.map(|_| (number, begun.elapsed()))
        })
        .await;
    let mut due = Vec::new();
    let mut posted = Vec::new();
    for (at, created) in created {
        let (number, took) = created.context("a session is not taken")?;
        due.push((name(number), at));
        posted.push(took);
    }
    let keys: Vec<_> = due.iter().map(|(name, _)| name.clone()).collect();
    let seen = ready.all(&keys, PATIENCE).await?;
    let cpu = stage.cpu_since(&cpu)?;
    let entries = stage.audit.since(noted)?;
    let of_sessions = |entry: &&_| is_about_sessions(entry);
    let writes = entries.iter().filter(of_sessions).count();
    let by_operator = entries.iter().filter(of_sessions).filter(|entry| entry.user == OPERATOR_USER).count();
    let passes = ["kind=\"AgentSession\""];
    let passes = stage.operator.scrape().await?.sum("croft_operator_reconciles_total", &passes)
        - before.sum("croft_operator_reconciles_total", &passes);

    let times: Samples = due.iter().zip(seen).map(|((_, due), seen)| seen - *due).collect();
    let posted: Samples = posted.into_iter().collect();
    let row = Row::times(format!("AgentSession create → Ready, {per_second}/s"), times);
    let row = if per_second == RATE { row.p99_within(REACH) } else { row };
    let row = row
        .besides(format!(
            "of it the API server's answer to the create {} / {}",
            human(posted.p50()),
            human(posted.p99())
        ))
        .besides(format!(
            "a session: {} writes, {} of them the operator's, {} passes",
            each(writes, count),
            each(by_operator, count),
            (passes / f64::from(count) * 100.0).round() / 100.0
        ))
        .besides(cpu);
    objects.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
    until("the sessions are gone", async || {
        objects.list_metadata(&ListParams::default().limit(1)).await.ok()?.items.is_empty().then_some(())
    })
    .await?;
    stage.quiet().await?;
    tasks.shutdown(Duration::from_secs(1)).await;
    Ok(row)
}

fn is_about_sessions(entry: &crate::bench::audit::Entry) -> bool {
    entry.is_write() && entry.resource.starts_with("agentsessions")
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn each(total: usize, count: u32) -> f64 {
    (total as f64 / f64::from(count) * 100.0).round() / 100.0
}
