//! How much later a token comes to a WebSocket than the provider sent it.

use std::borrow::Cow;
use std::collections::HashSet;
use std::time::Duration;

use anyhow::{bail, ensure};
use croft_proto::v1::AgentSpec;
use futures::future::try_join_all;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::provider::{self, PER_SECOND};
use super::socket::Socket;
use super::stage::Stage;
use crate::bench::metronome::Metronome;
use crate::bench::row::Row;
use crate::bench::samples::{Samples, human};

/// Within the front's bound of 64 subscriptions.
const SESSIONS_A_SOCKET: usize = 50;
/// Turns that are begun in a second. To begin all of them at once is another load, of which there is a measure of its own; and at a
/// rate that has a common measure with their tokens', all of those would come in step.
const BEGUN_A_SECOND: u32 = 97;

/// What came to a socket. Moments are in microseconds since this program began.
#[derive(Default)]
struct Heard {
    /// When each token was sent, and how long it took.
    tokens: Vec<(u64, Duration)>,
    dropped: u64,
    /// When the last of the sessions began to speak, and when the first of them ended.
    all_speak: u64,
    one_ended: u64,
}

/// `sessions` answers at a time, each of [`PER_SECOND`] tokens a second. What counts is what is sent while all of them speak; with the
/// beginnings and ends of their turns it is told besides.
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
    let turns = u32::try_from(sessions)?;
    let asked = format!("previews={}", PER_SECOND * (seconds + turns.div_ceil(BEGUN_A_SECOND)));
    let (mut tell, mut listeners) = (Vec::new(), Vec::new());
    for (socket, ids) in sockets {
        let (begin, begins) = unbounded_channel();
        tell.push(begin);
        listeners.push(listen(socket, ids, &asked, begins));
    }
    let begin = async {
        let mut ticks = Metronome::start().ticks(BEGUN_A_SECOND, turns);
        while let Some((number, _)) = ticks.recv().await {
            // Who is gone has failed, and says so.
            let _ = tell[number as usize % tell.len()].send(());
        }
    };
    let (heard, ()) = tokio::join!(try_join_all(listeners), begin);
    let heard = heard?;
    let dropped: u64 = heard.iter().map(|heard| heard.dropped).sum();
    let all_speak = heard.iter().map(|heard| heard.all_speak).max().unwrap_or_default();
    let one_ended = heard.iter().map(|heard| heard.one_ended).min().unwrap_or_default();
    let times = |from: u64, until: u64| -> Samples {
        let tokens = heard.iter().flat_map(|heard| &heard.tokens);
        tokens.filter(|(sent, _)| (from..until).contains(sent)).map(|(_, took)| *took).collect()
    };
    let whole = times(0, u64::MAX);
    let measure = format!("preview, provider → WebSocket, {sessions} sessions × {PER_SECOND}/s");
    let row = Row::times(measure, times(all_speak, one_ended));
    let row = match reach {
        Some(reach) => row.p99_within(reach),
        None => row,
    };
    Ok(row
        .besides(format!(
            "with the beginnings and ends of turns p50 {}, p99 {}",
            human(whole.p50()),
            human(whole.p99())
        ))
        .besides(format!("{dropped} dropped"))
        .besides(stage.cpu_since(before)?))
}

/// Begins the turn of the next session whenever it is told to, and hears all of them to their ends.
async fn listen(
    mut socket: Socket,
    ids: &[String],
    asked: &str,
    mut begins: UnboundedReceiver<()>,
) -> anyhow::Result<Heard> {
    let (mut heard, mut speaking, mut ended) = (Heard::default(), HashSet::new(), 0);
    let mut next = ids.iter();
    while ended < ids.len() {
        let frame = tokio::select! {
            Some(()) = begins.recv() => {
                let (content, id) = (json!([{ "text": { "text": asked } }]), next.next());
                socket.say(&json!({ "send": { "sessionId": id, "content": content } })).await?;
                continue;
            }
            frame = socket.hear_text() => frame?,
        };
        let now = provider::now();
        match serde_json::from_str(&frame)? {
            Frame::Event(Event { session_id, text_delta: Some(delta), .. }) => {
                let took = |sent: u64| (sent, Duration::from_micros(now.saturating_sub(sent)));
                heard.tokens.extend(provider::moments(&delta.text).map(took));
                if speaking.len() < ids.len() && speaking.insert(session_id.into_owned()) {
                    heard.all_speak = now;
                }
            }
            Frame::Event(Event { session_idle: Some(idle), .. }) => {
                ensure!(idle.stop_reason == "STOP_REASON_END_TURN", "a turn ended: {frame}");
                if ended == 0 {
                    heard.one_ended = now;
                }
                ended += 1;
            }
            Frame::Gap { dropped_previews } => heard.dropped += dropped_previews.parse::<u64>()?,
            Frame::Error(_) => bail!("the front says {frame}"),
            Frame::Event(_) | Frame::Sent(_) => {}
        }
    }
    Ok(heard)
}

/// What the front says, as far as it is looked at here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
enum Frame<'frame> {
    #[serde(borrow)]
    Event(Event<'frame>),
    Gap {
        #[serde(borrow)]
        dropped_previews: Cow<'frame, str>,
    },
    Sent(IgnoredAny),
    Error(IgnoredAny),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event<'frame> {
    #[serde(borrow)]
    session_id: Cow<'frame, str>,
    #[serde(borrow)]
    text_delta: Option<TextDelta<'frame>>,
    session_idle: Option<SessionIdle>,
}

#[derive(Deserialize)]
struct TextDelta<'frame> {
    #[serde(borrow)]
    text: Cow<'frame, str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SessionIdle {
    stop_reason: String,
}
