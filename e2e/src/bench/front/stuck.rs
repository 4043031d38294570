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
/// Words of one answer.
const WORDS: usize = 1_000;
/// How much more memory the front may hold at the end than in the middle, with all that was said in between.
const FLAT: u64 = 4_000_000;

/// Lets sessions talk to subscribers that never read, and looks at the front's memory in the middle and at the end.
pub(super) async fn subscribers(stage: &Stage, seconds: u32) -> anyhow::Result<Row> {
    let clients = stage.clients_of(&stage.tenants[0], SESSIONS).await?;
    let (mut ids, mut sockets, mut streams) = (Vec::new(), Vec::new(), Vec::new());
    for client in &clients {
        ids.push(client.clone().create(scripted_agent("bench")).await?.session_id);
    }
    let talk = Duration::from_secs(seconds.into());
    // Allocators keep what was once needed: without subscribers first.
    let words_before = speak(&clients, &ids, talk).await?;
    let before = stage.front.program.load()?.resident;
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
    let middle = stage.front.program.load()?.resident;
    words += speak(&clients, &ids, talk).await?;
    let end = stage.front.program.load()?.resident;
    let count = sockets.len() + streams.len();
    drop((sockets, streams));
    Ok(Row::value(
        format!("front's memory with {count} stuck subscribers of {SESSIONS} sessions that talk"),
        megabytes(end),
    )
    .reach("flat", end.saturating_sub(middle) <= FLAT)
    .besides(format!(
        "{} without them, {} after {talk:?}, {} after twice that; {words_before} previews in {talk:?} without them, {words} in \
         twice that with them",
        megabytes(before),
        megabytes(middle),
        megabytes(end),
    )))
}

/// Turns one after the other in each session; how many words were said.
async fn speak(clients: &[Client], ids: &[String], duration: Duration) -> anyhow::Result<usize> {
    let answer = json!({ "script": [{ "text": "token ".repeat(WORDS), "token_delay_ms": 0 }] }).to_string();
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
