//! How long a turn stands still when its front is killed.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{StopReason, StreamEventsRequest, StreamEventsResponse};
use futures::future::try_join_all;
use tokio::time::{Instant, timeout};
use tonic::Streaming;

use super::stage::Stage;
use crate::bench::row::Row;
use crate::client::{message, scripted_agent};

/// The model thinks for longer than it takes to begin all the turns.
const SCRIPT: &str = r#"{"script": [{"delay_ms": 4000}, {"text": "done", "token_delay_ms": 0}]}"#;
/// The default of `--lease-ttl-ms`, and what may come on top of it.
const REACH: Duration = Duration::from_secs(12);
/// What takes longer has failed.
const PATIENCE: Duration = Duration::from_mins(1);

/// Kills the second front in so many turns. Clients watch at the first.
pub(super) async fn after_kill(stage: &mut Stage, turns: usize) -> anyhow::Result<Row> {
    let mut doomed = stage.another_front("front-1").await?;
    let mut there = stage.client_of(&doomed, &stage.tenants[0]).await?;
    let mut here = stage.client().await?;
    let (mut streams, mut sent) = (Vec::new(), Vec::new());
    for _ in 0..turns {
        let id = there.create(scripted_agent("bench")).await?.session_id;
        let request = StreamEventsRequest { session_id: id.clone(), ..StreamEventsRequest::default() };
        streams.push(here.lifecycle.stream_events(request).await?.into_inner());
        sent.push(there.lifecycle.send_message(message(&id, SCRIPT)).await?.into_inner());
    }
    for stream in &mut streams {
        started(stream, 0).await?;
    }
    let killed = doomed.program.kill()?;
    let resumed = streams.iter_mut().map(async |stream| {
        started(stream, 1).await?;
        let resumed = Instant::now();
        ended(stream).await?;
        anyhow::Ok(resumed - killed)
    });
    let times = try_join_all(resumed).await?.into_iter().collect();
    drop(sent);
    Ok(Row::times(format!("takeover of {turns} turns after `kill -9` of their front"), times)
        .all_within(REACH)
        .besides("until the turn's next step begins; every turn then ends as without it"))
}

/// Kills one of a tenant's two workers in so many turns, of which it has half.
pub(super) async fn after_worker_kill(stage: &mut Stage, turns: usize) -> anyhow::Result<Row> {
    let mut client = stage.client_of(&stage.front, &stage.tenants[2]).await?;
    let (mut streams, mut sent) = (Vec::new(), Vec::new());
    for _ in 0..turns {
        let id = client.create(scripted_agent("bench")).await?.session_id;
        let request = StreamEventsRequest { session_id: id.clone(), ..StreamEventsRequest::default() };
        streams.push(client.lifecycle.stream_events(request).await?.into_inner());
        sent.push(client.lifecycle.send_message(message(&id, SCRIPT)).await?.into_inner());
    }
    let mut of_doomed = Vec::new();
    for mut stream in streams {
        if on(&mut stream).await? == "worker-pair-0" {
            of_doomed.push(stream);
        }
    }
    ensure!(!of_doomed.is_empty(), "the worker has none of the turns");
    let killed = stage.tenants[2].workers[0].kill()?;
    let count = of_doomed.len();
    let resumed = of_doomed.iter_mut().map(async |stream| {
        on(stream).await?;
        let resumed = Instant::now();
        ended(stream).await?;
        anyhow::Ok(resumed - killed)
    });
    let times = try_join_all(resumed).await?.into_iter().collect();
    drop(sent);
    Ok(Row::times(format!("takeover of {count} turns after `kill -9` of their worker"), times)
        .all_within(REACH)
        .besides("until the turn's next step begins; every turn then ends as without it"))
}

/// Waits for the next step, and tells its worker.
async fn on(stream: &mut Streaming<StreamEventsResponse>) -> anyhow::Result<String> {
    loop {
        if let Kind::StepStarted(step) = next(stream).await? {
            return Ok(step.worker);
        }
    }
}

/// Waits for a step under a later epoch than this.
async fn started(stream: &mut Streaming<StreamEventsResponse>, after_epoch: u64) -> anyhow::Result<()> {
    loop {
        if let Kind::StepStarted(step) = next(stream).await?
            && step.epoch > after_epoch
        {
            return Ok(());
        }
    }
}

async fn ended(stream: &mut Streaming<StreamEventsResponse>) -> anyhow::Result<()> {
    loop {
        if let Kind::SessionIdle(idle) = next(stream).await? {
            ensure!(idle.stop_reason() == StopReason::EndTurn, "a turn ended with {:?}", idle.stop_reason());
            return Ok(());
        }
    }
}

async fn next(stream: &mut Streaming<StreamEventsResponse>) -> anyhow::Result<Kind> {
    let event = timeout(PATIENCE, stream.message()).await.context("no event for a minute")??;
    event.and_then(|event| event.event?.kind).context("the stream ended")
}
