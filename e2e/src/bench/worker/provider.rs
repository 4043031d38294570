//! A model provider in a process of its own that answers at once, and says in its answer when it was asked and when it had
//! answered. It speaks as much of the Anthropic Messages API as that needs, on connections that stay open.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Of a request; the rest of it is no request of ours.
const REQUEST_BYTES_MAX: usize = 1 << 20;
/// Tokens of one answer, each an event.
const TOKENS: usize = 16;

/// On the clock that all processes of a machine share.
pub(super) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// When it was asked, and when it began to send its answer, as an answer's text tells.
pub(super) fn moments(text: &str) -> Option<(Duration, Duration)> {
    let mut words = text.split_whitespace().filter_map(|word| word.parse().ok().map(Duration::from_nanos));
    Some((words.next()?, words.next()?))
}

/// Serves until the process is ended, and prints where.
#[expect(clippy::print_stdout, reason = "it is how whoever started it learns the address")]
pub async fn serve() -> anyhow::Result<()> {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    println!("{}", listener.local_addr()?);
    let mut calls = tokio::task::JoinSet::new();
    loop {
        let (call, _) = listener.accept().await?;
        // A caller that hangs up ends its connection.
        calls.spawn(async move { drop(answer(call).await) });
        while calls.try_join_next().is_some() {}
    }
}

async fn answer(mut call: TcpStream) -> anyhow::Result<()> {
    call.set_nodelay(true)?;
    let mut bytes = Vec::new();
    while read(&mut call, &mut bytes).await? {
        let asked = now();
        let body = body(asked);
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length:";
        call.write_all(format!("{head} {}\r\n\r\n{body}", body.len()).as_bytes()).await?;
    }
    Ok(())
}

/// Takes one whole request out of `bytes`; false at the connection's end.
async fn read(call: &mut TcpStream, bytes: &mut Vec<u8>) -> anyhow::Result<bool> {
    loop {
        if let Some(head) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
            let length =
                text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
            let whole = head + 4 + length.context("a request of no known length")?;
            if bytes.len() >= whole {
                bytes.drain(..whole);
                return Ok(true);
            }
        }
        ensure!(bytes.len() < REQUEST_BYTES_MAX, "a request is too long");
        if call.read_buf(bytes).await? == 0 {
            return Ok(false);
        }
    }
}

fn body(asked: Duration) -> String {
    let event =
        |event: serde_json::Value| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap_or_default());
    let text = |text: String| {
        let delta = json!({ "type": "text_delta", "text": text });
        event(json!({ "type": "content_block_delta", "index": 0, "delta": delta }))
    };
    let message =
        json!({ "id": "msg_bench", "model": "claude-haiku-4-5", "usage": { "input_tokens": 8, "output_tokens": 1 } });
    let begin = event(json!({ "type": "message_start", "message": message }))
        + &event(json!({ "type": "content_block_start", "index": 0, "content_block": { "type": "text", "text": "" } }));
    let words: String = (1..TOKENS).map(|_| text(" and so on".to_owned())).collect();
    let end = event(json!({ "type": "content_block_stop", "index": 0 }))
        + &event(
            json!({ "type": "message_delta", "delta": { "stop_reason": "end_turn" }, "usage": { "output_tokens": TOKENS } }),
        )
        + &event(json!({ "type": "message_stop" }));
    // Last, so that making the rest counts as the provider's.
    begin + &text(format!("{} {} ", asked.as_nanos(), now().as_nanos())) + &words + &end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_tells_its_moments() {
        let text = body(Duration::from_nanos(5));
        assert!(text.contains("\"5 "));
        let (asked, answered) = moments("5 17  and so on").unwrap();
        assert_eq!((asked.as_nanos(), answered.as_nanos()), (5, 17));
        assert_eq!(moments("none"), None);
    }
}
