//! What subscribers cost that have stopped reading.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use croft_proto::v1::StreamEventsRequest;
use croft_proto::v1::session_event::Kind;
use serde_json::json;
use tokio::time::Instant;

use super::socket::Socket;
use super::stage::Stage;
use crate::bench::load::megabytes;
use crate::bench::row::Row;
use crate::client::{Client, message, scripted_agent};

/// Sessions that talk all the time.
const SESSIONS: usize = 4;
/// Of each session, by WebSocket and as many by gRPC.
const STUCK_EACH: usize = 8;
/// Words of one answer, as short as words can be: conversations grow with what is said in them, and a front holds those whose turns
/// begin or end.
const WORDS: usize = 1_000;
/// How much more the front's memory may grow from the middle to the end with them than without, with all that is said in between.
const FLAT: u64 = 4_000_000;

/// Lets sessions talk, first to nobody else and then, in new sessions, to subscribers that never read, and looks at the front's memory in
/// the middle and at the end.
pub(super) async fn subscribers(stage: &Stage, seconds: u32) -> anyhow::Result<Row> {
    let talk = Duration::from_secs(seconds.into());
    // Allocators keep what was once needed: without subscribers first.
    let (clients, ids) = sessions(stage).await?;
    let mut words_before = speak(&clients, &ids, talk).await?;
    let middle_before = resident(stage).await?;
    words_before += speak(&clients, &ids, talk).await?;
    let before = resident(stage).await?;

    let (clients, ids) = sessions(stage).await?;
    let (mut sockets, mut streams) = (Vec::new(), Vec::new());
    for id in &ids {
        for _ in 0..STUCK_EACH {
            let mut socket = Socket::connect(stage.front.http, &stage.tenants[0].api_key).await?;
            socket.say(&json!({ "subscribe": { "sessionId": id, "since": "0" } })).await?;
            socket.hear_of("subscribed").await?;
            sockets.push(socket);
            let request = StreamEventsRequest { session_id: id.clone(), ..StreamEventsRequest::default() };
            streams.push(stage.client().await?.lifecycle.stream_events(request).await?.into_inner());
        }
    }
    let mut words = speak(&clients, &ids, talk).await?;
    let middle = resident(stage).await?;
    words += speak(&clients, &ids, talk).await?;
    let end = resident(stage).await?;
    let count = sockets.len() + streams.len();
    drop((sockets, streams));
    let grown = end.saturating_sub(middle).saturating_sub(before.saturating_sub(middle_before));
    Ok(Row::value(
        format!("front's memory with {count} stuck subscribers of {SESSIONS} sessions that talk"),
        megabytes(end),
    )
    .reach("flat", grown <= FLAT)
    .besides(format!(
        "{} after {talk:?} and {} after twice that without them, {} and {} with them; {words_before} previews without them, {words} \
         with them",
        megabytes(middle_before),
        megabytes(before),
        megabytes(middle),
        megabytes(end),
    )))
}

/// New ones, each with a client of its own.
async fn sessions(stage: &Stage) -> anyhow::Result<(Vec<Client>, Vec<String>)> {
    let clients = stage.clients_of(&stage.tenants[0], SESSIONS).await?;
    let mut ids = Vec::new();
    for client in &clients {
        ids.push(client.clone().create(scripted_agent("bench")).await?.session_id);
    }
    Ok((clients, ids))
}

/// The front's memory at rest: the least of a few looks, in bytes.
async fn resident(stage: &Stage) -> anyhow::Result<u64> {
    let mut least = u64::MAX;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        least = least.min(stage.front.program.load()?.resident);
    }
    Ok(least)
}

/// Turns one after the other in each session; how many words were said.
async fn speak(clients: &[Client], ids: &[String], duration: Duration) -> anyhow::Result<usize> {
    let answer = json!({ "script": [{ "text": "a ".repeat(WORDS), "token_delay_ms": 0 }] }).to_string();
    let until = Instant::now() + duration;
    let sessions = clients.iter().zip(ids).map(async |(client, id)| {
        let (mut client, mut words) = (client.clone(), 0);
        while Instant::now() < until {
            let mut events = client.lifecycle.send_message(message(id, &answer)).await?.into_inner();
            let mut ended = false;
            while let Some(event) = events.message().await? {
                ended |= matches!(event.event.context("no event")?.kind, Some(Kind::SessionIdle(_)));
            }
            ensure!(ended, "a turn's stream ended before it");
            words += WORDS;
        }
        anyhow::Ok(words)
    });
    Ok(futures::future::try_join_all(sessions).await?.into_iter().sum())
}
