//! How many durable events one front's log stores, and how fast it gives them back.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use croft_front::events::log::{Append, Appended, Authority, EventLog, NewEvent};
use croft_front::session::store::{Inserted, NewSession};
use croft_front::store::Stores;
use croft_front::store::postgres::Postgres;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{ContentBlock, SessionCreated, StreamEventsRequest, Text, UserMessage, content_block};
use croft_serve::Tasks;
use futures::future::try_join_all;
use tokio::time::Instant;

use super::stage::Stage;
use crate::bench::load;
use crate::bench::row::Row;
use crate::bench::samples::Samples;
use crate::client::scripted_agent;

/// As the front's own pool.
const CONNECTIONS: u32 = 16;
const REPLAYED: u32 = 10_000;

/// The log of one front, in this process, with so many appends of so many events at a time.
pub(super) async fn stored(
    stage: &Stage,
    lanes: usize,
    sessions: usize,
    events: usize,
    seconds: u32,
) -> anyhow::Result<Row> {
    let postgres = Postgres::connect(&stage.place.postgres_front_url, CONNECTIONS).await?.with_append_lanes(lanes);
    let tasks = Tasks::new();
    let stores = Stores::postgres(&postgres, &tasks);
    let tenant = stage.tenants[0].id;
    let mut ids = Vec::with_capacity(sessions);
    for _ in 0..sessions {
        ids.push(session(&stores, tenant).await?);
    }
    let at_a_time = u32::try_from(events)?;
    let (before, begun) = (load::of(std::process::id())?.cpu, Instant::now());
    let until = begun + Duration::from_secs(seconds.into());
    let writers = ids.into_iter().map(|id| {
        let log = Arc::clone(&stores.events);
        tasks.spawn("writer", async move {
            let mut appends = 0_u32;
            while Instant::now() < until {
                append(&*log, tenant, id, (0..events).map(|_| result()).collect()).await?;
                appends += 1;
            }
            anyhow::Ok(appends)
        })
    });
    let counted = try_join_all(writers).await?;
    let appends: u32 = counted.into_iter().sum::<anyhow::Result<u32>>()?;
    let rate = f64::from(appends) * f64::from(at_a_time) / begun.elapsed().as_secs_f64();
    let used = load::of(std::process::id())?.cpu.saturating_sub(before).as_secs_f64();
    ensure!(tasks.shutdown(Duration::from_secs(5)).await == 0, "the log does not come to rest");
    Ok(Row::value(
        format!("durable events stored, {sessions} sessions × {events} at a time, {lanes} lanes"),
        format!("{rate:.0}/s"),
    )
    .reach("≥ 50,000/s", rate >= 50_000.0)
    .besides(format!("CPU seconds of {seconds}: the log and its callers {used:.1}")))
}

/// All of a session's events, from the front to a client of gRPC.
pub(super) async fn replayed(stage: &Stage, times: usize) -> anyhow::Result<Row> {
    let postgres = Postgres::connect(&stage.place.postgres_front_url, 2).await?;
    let tasks = Tasks::new();
    let stores = Stores::postgres(&postgres, &tasks);
    let tenant = stage.tenants[0].id;
    let id = session(&stores, tenant).await?;
    for _ in 0..(REPLAYED - 1) / 101 {
        append(&*stores.events, tenant, id, (0..101).map(|_| result()).collect()).await?;
    }
    let mut client = stage.client().await?;
    let before = stage.cpu()?;
    let mut taken = Vec::with_capacity(times);
    for _ in 0..times {
        let begun = Instant::now();
        let request =
            StreamEventsRequest { session_id: id.to_string(), durable_only: true, ..StreamEventsRequest::default() };
        let mut events = client.lifecycle.stream_events(request).await?.into_inner();
        for seq in 1..=u64::from(REPLAYED) {
            let event = events.message().await?.context("the stream ended")?.event.context("no event")?;
            ensure!(event.seq == seq, "{} came after {}", event.seq, seq - 1);
        }
        taken.push(begun.elapsed());
    }
    let taken: Samples = taken.into_iter().collect();
    let _ = tasks.shutdown(Duration::from_secs(5)).await;
    Ok(Row::times(format!("replay of {REPLAYED} events by gRPC"), taken)
        .p99_within(Duration::from_millis(50))
        .besides(stage.cpu_since(before)?))
}

pub(super) async fn session(stores: &Stores, tenant: TenantId) -> anyhow::Result<SessionId> {
    let agent = scripted_agent("bench");
    let created = SessionCreated { agent: Some(agent.clone()), config_hash: String::new(), parent: None };
    let created = NewEvent::now(Kind::SessionCreated(created));
    let new = NewSession::of(SessionId::generate(), tenant, "open", agent, vec![created]);
    match stores.sessions.insert(new).await? {
        Inserted::New { session, .. } => Ok(session.id),
        Inserted::Existing(session) => anyhow::bail!("{} was there", session.id),
    }
}

async fn append(log: &dyn EventLog, tenant: TenantId, id: SessionId, events: Vec<NewEvent>) -> anyhow::Result<()> {
    let append = Append::of(tenant, id, Authority::Caller, events);
    match log.append(append).await? {
        Appended::New(_) => Ok(()),
        Appended::Existing { .. } => anyhow::bail!("an append without a key was known"),
    }
}

/// An event of a usual size: some 200 bytes.
fn result() -> NewEvent {
    let text = "a result of a tool, as long as results are when they are short and say what was asked for".to_owned();
    NewEvent::now(Kind::UserMessage(UserMessage {
        content: vec![ContentBlock { block: Some(content_block::Block::Text(Text { text })) }],
        ..UserMessage::default()
    }))
}
