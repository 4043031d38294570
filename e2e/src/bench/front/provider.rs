//! A model provider that writes into each token when it was sent, so that whoever gets it knows how long it took.
//!
//! It speaks the Anthropic Messages API, as much of it as a streamed answer needs. A message that contains `previews=100`
//! is answered with so many tokens, at the rate of [`PER_SECOND`].

use std::io::Write as _;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::OnceLock;

use anyhow::Context as _;
use croft_serve::Tasks;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::bench::metronome::Metronome;

/// Tokens of one answer.
pub(super) const PER_SECOND: u32 = 50;
/// Of a request; the rest of it is no request of ours.
const REQUEST_BYTES_MAX: usize = 1 << 20;

/// Microseconds since this program first asked.
pub(super) fn now() -> u64 {
    static BEGUN: OnceLock<Instant> = OnceLock::new();
    u64::try_from(BEGUN.get_or_init(Instant::now).elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// The moments that stand in a piece of an answer.
pub(super) fn moments(text: &str) -> impl Iterator<Item = u64> {
    text.split_whitespace().filter_map(|word| word.parse().ok())
}

/// Serves on a free port, and says where.
pub(super) async fn serve(tasks: &Tasks) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (stopping, tasks_of_calls, metronome) = (tasks.stopping(), tasks.clone(), Metronome::start());
    let accepting = async move {
        while let Ok((call, _)) = listener.accept().await {
            let (stopping, metronome) = (tasks_of_calls.stopping(), metronome.clone());
            // A caller that hangs up ends its call.
            drop(tasks_of_calls.spawn("provider-call", async move {
                drop(stopping.run_until_cancelled(answer(call, &metronome)).await);
            }));
        }
    };
    drop(tasks.spawn("provider", async move { stopping.run_until_cancelled(accepting).await }));
    Ok(address)
}

async fn answer(mut call: TcpStream, metronome: &Metronome) -> anyhow::Result<()> {
    call.set_nodelay(true)?;
    let request = read(&mut call).await?;
    let asked = request.rsplit_once("previews=").map(|(_, rest)| rest);
    let digits: String = asked.unwrap_or("1").chars().take_while(char::is_ascii_digit).collect();
    let previews: u32 = digits.parse()?;

    let mut start = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n".to_owned();
    let usage = json!({ "input_tokens": 8, "output_tokens": 1 });
    let message = json!({
        "id": "msg_bench", "type": "message", "role": "assistant", "model": "claude-haiku-4-5", "content": [],
        "stop_reason": null, "stop_sequence": null, "usage": usage,
    });
    start += &event("message_start", &json!({ "message": message }));
    start += &event("content_block_start", &json!({ "index": 0, "content_block": { "type": "text", "text": "" } }));
    call.write_all(start.as_bytes()).await?;
    // A copy of the socket, which does not block either.
    let mut socket = std::net::TcpStream::from(call.as_fd().try_clone_to_owned()?);
    let (tell, all_told) = oneshot::channel();
    let mut tell = Some(tell);
    metronome.each(PER_SECOND, previews, move |number, _| {
        let written = socket.write_all(token(now()).as_bytes()).is_ok();
        if written
            && number + 1 == previews
            && let Some(tell) = tell.take()
        {
            // Nobody is there any more: then there is nothing more to do.
            let _ = tell.send(());
        }
        written
    });
    all_told.await.context("a worker does not take its tokens")?;
    let mut end = event("content_block_stop", &json!({ "index": 0 }));
    let stop = json!({ "delta": { "stop_reason": "end_turn", "stop_sequence": null }, "usage": { "output_tokens": previews } });
    end += &event("message_delta", &stop);
    end += &event("message_stop", &json!({}));
    call.write_all(end.as_bytes()).await?;
    Ok(call.shutdown().await?)
}

/// A whole request as text.
async fn read(call: &mut TcpStream) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
            });
            if body.len() >= length.context("a request of no known length")? {
                return Ok(body.to_owned());
            }
        }
        anyhow::ensure!(bytes.len() < REQUEST_BYTES_MAX, "a request is too long");
        anyhow::ensure!(call.read_buf(&mut bytes).await? > 0, "a request was cut short");
    }
}

/// As [`event`] would write it. Of these there are many, and whatever this program does takes from what it measures.
fn token(sent: u64) -> String {
    format!(
        "event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"index\":0,\"delta\":{{\"type\":\"text_delta\",\"text\":\"{sent} \"}}}}\n\n"
    )
}

fn event(kind: &str, data: &Value) -> String {
    let mut data = data.clone();
    data["type"] = kind.into();
    format!("event: {kind}\ndata: {data}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_an_event_like_any_other() {
        let delta = json!({ "type": "text_delta", "text": "7 " });
        let read =
            |event: String| -> Value { serde_json::from_str(event.split_once("data: ").unwrap().1.trim()).unwrap() };
        assert_eq!(read(token(7)), read(event("content_block_delta", &json!({ "index": 0, "delta": delta }))));
    }

    #[test]
    fn a_piece_of_an_answer_may_hold_several_moments() {
        assert_eq!(moments("12 345 ").collect::<Vec<_>>(), [12, 345]);
        assert_eq!(moments("no moment").count(), 0);
    }
}
