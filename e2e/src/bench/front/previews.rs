//! How much later a token comes to a WebSocket than the provider sent it.

use std::time::Duration;

use anyhow::ensure;
use croft_proto::v1::AgentSpec;
use futures::future::try_join_all;
use serde_json::json;

use super::provider::{self, PER_SECOND};
use super::socket::Socket;
use super::stage::Stage;
use crate::bench::row::Row;

/// Within the front's bound of 64 subscriptions.
const SESSIONS_A_SOCKET: usize = 50;

/// `sessions` answers at a time, each of [`PER_SECOND`] tokens a second.
pub(super) async fn with(stage: &Stage, sessions: usize, seconds: u32, reach: Option<Duration>) -> anyhow::Result<Row> {
    let mut client = stage.client().await?;
    let agent = AgentSpec { name: "bench".to_owned(), model: "claude-haiku-4-5".to_owned(), ..AgentSpec::default() };
    let mut ids = Vec::with_capacity(sessions);
    for _ in 0..sessions {
        ids.push(client.create(agent.clone()).await?.session_id);
    }
    let mut sockets = Vec::new();
    for ids in ids.chunks(SESSIONS_A_SOCKET) {
        let mut socket = Socket::connect(stage.front.http, &stage.tenants[0].api_key).await?;
        for id in ids {
            socket.say(&json!({ "subscribe": { "sessionId": id, "since": "2" } })).await?;
            socket.hear_of("subscribed").await?;
        }
        sockets.push((socket, ids));
    }
    // A client may say no more than so much a second.
    tokio::time::sleep(Duration::from_secs(2)).await;

    let before = stage.cpu()?;
    let tokens = PER_SECOND * seconds;
    let asked = format!("previews={tokens}");
    let listeners = sockets.into_iter().map(|(mut socket, ids)| {
        let asked = &asked;
        async move {
            for id in ids {
                let content = json!([{ "text": { "text": asked } }]);
                socket.say(&json!({ "send": { "sessionId": id, "content": content } })).await?;
            }
            let (mut times, mut dropped, mut ended) = (Vec::new(), 0_u64, 0);
            while ended < ids.len() {
                let frame = socket.hear().await?;
                let now = provider::now();
                ensure!(frame.get("error").is_none(), "the front says {frame}");
                let (event, gap) = (&frame["event"], &frame["gap"]);
                if let Some(text) = event["textDelta"]["text"].as_str() {
                    times.extend(provider::moments(text).map(|sent| Duration::from_micros(now.saturating_sub(sent))));
                } else if let Some(of) = gap["droppedPreviews"].as_str() {
                    dropped += of.parse::<u64>()?;
                } else if event.get("sessionIdle").is_some() {
                    ensure!(event["sessionIdle"]["stopReason"] == "STOP_REASON_END_TURN", "a turn ended: {event}");
                    ended += 1;
                }
            }
            anyhow::Ok((times, dropped))
        }
    });
    let heard = try_join_all(listeners).await?;
    let dropped: u64 = heard.iter().map(|(_, dropped)| dropped).sum();
    let times = heard.into_iter().flat_map(|(times, _)| times).collect();
    let row = Row::times(format!("preview, provider → WebSocket, {sessions} sessions × {PER_SECOND}/s"), times);
    let row = match reach {
        Some(reach) => row.p99_within(reach),
        None => row,
    };
    Ok(row.besides(format!("{dropped} dropped")).besides(stage.cpu_since(before)?))
}
