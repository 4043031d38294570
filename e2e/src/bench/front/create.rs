//! How long it takes to open a session, and how many can be opened.

use std::time::Duration;

use futures::future::try_join_all;
use tokio::time::Instant;

use super::stage::{Stage, Tenant};
use crate::bench::pace::Pace;
use crate::bench::row::Row;
use crate::bench::samples::{Samples, human};
use crate::client::scripted_agent;

/// Connections that calls go by in turns.
pub(super) const CONNECTIONS: usize = 4;
const P50: Duration = Duration::from_millis(3);
const P99: Duration = Duration::from_millis(10);
/// Calls under way at a time while as many sessions as possible are opened.
const AT_A_TIME: usize = 32;

/// Both measures, for a tenant without a limit and for one with a limit.
pub(super) async fn all(stage: &Stage, seconds: u32) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for tenant in &stage.tenants[..2] {
        rows.push(at_rate(stage, tenant, 100, seconds).await?);
        rows.push(sustained(stage, tenant, seconds).await?);
    }
    Ok(rows)
}

async fn at_rate(stage: &Stage, tenant: &Tenant, per_second: u32, seconds: u32) -> anyhow::Result<Row> {
    let clients = stage.clients_of(tenant, CONNECTIONS).await?;
    // Each of the front's connections to the database plans a statement when it first runs it.
    try_join_all((0..AT_A_TIME * 8).map(|number| {
        let mut client = clients[number % clients.len()].clone();
        async move { client.create(scripted_agent("warm")).await }
    }))
    .await?;
    let before = stage.cpu()?;
    let calls = Pace { per_second, count: per_second * seconds }
        .run(async |number| {
            let begun = Instant::now();
            let made = clients[number as usize % clients.len()].clone().create(scripted_agent("bench")).await;
            (begun, Instant::now(), made)
        })
        .await;
    let (mut times, mut late) = (Vec::with_capacity(calls.len()), Vec::with_capacity(calls.len()));
    for (due, (begun, answered, made)) in calls {
        made?;
        late.push(begun - due);
        times.push(answered - begun);
    }
    Ok(within(Row::times, format!("`CreateSession` at {per_second}/s, tenant `{}`", tenant.name), times)
        .besides(lateness(late))
        .besides(stage.cpu_since(before)?))
}

/// By how much the harness's own work made calls later than they were due.
/// Their times begin when they are made; were this much, what a slow front does to those who wait would not show.
pub(super) fn lateness(late: Vec<Duration>) -> String {
    let late: Samples = late.into_iter().collect();
    format!("called late by p50 {}, p99 {}", human(late.p50()), human(late.p99()))
}

/// A row of times that shall stay within the reach of calls.
pub(super) fn within(row: impl Fn(String, Samples) -> Row, measure: String, times: Vec<Duration>) -> Row {
    let times: Samples = times.into_iter().collect();
    let holds = !times.is_empty() && times.p50() <= P50 && times.p99() <= P99;
    row(measure, times).reach(format!("p50 ≤ {}, p99 ≤ {}", human(P50), human(P99)), holds)
}

async fn sustained(stage: &Stage, tenant: &Tenant, seconds: u32) -> anyhow::Result<Row> {
    let clients = stage.clients_of(tenant, CONNECTIONS).await?;
    let (before, begun) = (stage.cpu()?, Instant::now());
    let until = begun + Duration::from_secs(seconds.into());
    let callers = (0..AT_A_TIME).map(|number| {
        let mut client = clients[number % clients.len()].clone();
        async move {
            let mut made = 0_u32;
            while Instant::now() < until {
                client.create(scripted_agent("bench")).await?;
                made += 1;
            }
            anyhow::Ok(made)
        }
    });
    let made: u32 = try_join_all(callers).await?.into_iter().sum();
    let rate = f64::from(made) / begun.elapsed().as_secs_f64();
    Ok(Row::value(format!("`CreateSession`, {AT_A_TIME} at a time, tenant `{}`", tenant.name), format!("{rate:.0}/s"))
        .reach("≥ 1,000/s", rate >= 1_000.0)
        .besides(stage.cpu_since(before)?))
}
