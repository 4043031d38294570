//! How long a message waits for its answer's first token, and how many turns there can be.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use croft_proto::v1::StopReason;
use croft_proto::v1::session_event::Kind;
use futures::future::try_join_all;
use tokio::time::Instant;

use super::create::{CONNECTIONS, lateness, within};
use super::stage::{Stage, Tenant};
use crate::bench::pace::Pace;
use crate::bench::row::Row;
use crate::client::{Client, message, scripted_agent};

/// The model answers at once.
const SCRIPT: &str = r#"{"script": [{"text": "one two three four", "token_delay_ms": 0}]}"#;
/// Turns under way at a time while as many as possible are run.
const AT_A_TIME: usize = 32;
/// Sessions that each of them goes round.
const SESSIONS_EACH: usize = 8;

/// At a rate, without and with limits of the tenant's, and as many as possible.
pub(super) async fn all(stage: &Stage, seconds: u32) -> anyhow::Result<Vec<Row>> {
    let [open, limited] = [&stage.tenants[0], &stage.tenants[1]];
    let clients = stage.clients_of(open, CONNECTIONS).await?;
    let clients_of_limited = stage.clients_of(limited, CONNECTIONS).await?;
    Ok(vec![
        first_token(stage, open, &clients, 20, seconds).await?,
        first_token(stage, open, &clients, 100, seconds).await?,
        first_token(stage, limited, &clients_of_limited, 100, seconds).await?,
        sustained(stage, &clients, seconds).await?,
    ])
}

async fn sessions(clients: &[Client], count: usize) -> anyhow::Result<Vec<String>> {
    let mut ids = Vec::with_capacity(count);
    for number in 0..count {
        ids.push(clients[number % clients.len()].clone().create(scripted_agent("bench")).await?.session_id);
    }
    Ok(ids)
}

/// Sends a message and reads its turn to the end. Says when the first token came.
async fn turn(mut client: Client, session_id: &str) -> anyhow::Result<Instant> {
    let mut events = client.lifecycle.send_message(message(session_id, SCRIPT)).await?.into_inner();
    let mut first = None;
    while let Some(event) = events.message().await? {
        match event.event.and_then(|event| event.kind) {
            Some(Kind::TextDelta(_)) => {
                first.get_or_insert_with(Instant::now);
            }
            Some(Kind::Error(error)) => bail!("{}: {}", error.reason, error.message),
            Some(Kind::SessionIdle(idle)) => {
                ensure!(idle.stop_reason() == StopReason::EndTurn, "a turn ended with {:?}", idle.stop_reason());
                return first.context("a turn had no token");
            }
            _ => {}
        }
    }
    bail!("a stream ended before its turn")
}

async fn first_token(
    stage: &Stage,
    tenant: &Tenant,
    clients: &[Client],
    per_second: u32,
    seconds: u32,
) -> anyhow::Result<Row> {
    let count = per_second * seconds;
    // A session has a turn a second at most: none is busy when its next message comes.
    let ids = sessions(clients, per_second as usize).await?;
    // Each of the front's connections to the database plans a statement when it first runs it.
    let warm = sessions(clients, AT_A_TIME).await?;
    for _ in 0..8 {
        try_join_all(warm.iter().map(|id| turn(clients[0].clone(), id))).await?;
    }
    let before = stage.cpu()?;
    let calls = Pace { per_second, count }
        .run(async |number| {
            let number = number as usize;
            let begun = Instant::now();
            (begun, turn(clients[number % clients.len()].clone(), &ids[number % ids.len()]).await)
        })
        .await;
    let (mut times, mut late) = (Vec::with_capacity(calls.len()), Vec::with_capacity(calls.len()));
    for (due, (begun, first)) in calls {
        late.push(begun - due);
        times.push(first? - begun);
    }
    let measure = format!("`SendMessage` → first token, at {per_second} turns/s, tenant `{}`", tenant.name);
    Ok(within(Row::times, measure, times).besides(lateness(late)).besides(stage.cpu_since(before)?))
}

async fn sustained(stage: &Stage, clients: &[Client], seconds: u32) -> anyhow::Result<Row> {
    let ids = sessions(clients, AT_A_TIME * SESSIONS_EACH).await?;
    let (before, begun) = (stage.cpu()?, Instant::now());
    let until = begun + Duration::from_secs(seconds.into());
    let callers = ids.chunks(SESSIONS_EACH).enumerate().map(|(number, own)| {
        let client = clients[number % clients.len()].clone();
        async move {
            let mut turns = 0_u32;
            for id in own.iter().cycle() {
                if Instant::now() >= until {
                    break;
                }
                turn(client.clone(), id).await?;
                turns += 1;
            }
            anyhow::Ok(turns)
        }
    });
    let turns: u32 = try_join_all(callers).await?.into_iter().sum();
    let rate = f64::from(turns) / begun.elapsed().as_secs_f64();
    Ok(Row::value(format!("whole turns, {AT_A_TIME} at a time"), format!("{rate:.0}/s"))
        .reach("≥ 500/s", rate >= 500.0)
        .besides(stage.cpu_since(before)?))
}
