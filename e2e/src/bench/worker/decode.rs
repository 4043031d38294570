//! How many bytes of server-sent events and JSON one core turns into deltas in a second.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use croft_llm::recorded::Format;
use croft_llm::{Delta, Limits};
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::bench::row::Row;

/// Bytes a second that are to be reached, in millions.
const REACH: f64 = 200.0;
/// Bytes that a read of a connection brings at a time.
const READ_BYTES: usize = 16 * 1024;
/// Tokens of one answer: a long one, so that its begin and end weigh little.
const TOKENS: usize = 2_000;
/// What a model says; each token is an event of its own, as providers send them.
const WORDS: [&str; 8] = ["The", " beds", " along", " the \"south\"", " wall", " get\n", " Käfer", " often,"];

/// Of each provider's interface, this many megabytes.
pub(super) async fn all(megabytes: usize) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for format in Format::ALL {
        rows.push(of(format, megabytes).await?);
    }
    Ok(rows)
}

async fn of(format: Format, megabytes: usize) -> anyhow::Result<Row> {
    let body = bytes::Bytes::from(answer(format));
    let reads: Vec<_> =
        (0..body.len()).step_by(READ_BYTES).map(|at| body.slice(at..body.len().min(at + READ_BYTES))).collect();
    let rounds = 1 + (megabytes * 1_000_000).div_ceil(body.len());
    let mut spent = Duration::ZERO;
    for round in 0..rounds {
        let begun = Instant::now();
        let mut deltas =
            format.deltas(stream::iter(reads.clone().into_iter().map(Ok::<_, Infallible>)), Limits::default());
        let (mut tokens, mut stopped) = (0, false);
        while let Some(delta) = deltas.next().await {
            match delta.context("a stream of our own is not understood")? {
                Delta::Text { .. } => tokens += 1,
                Delta::Stop(_) => stopped = true,
                _ => {}
            }
        }
        // The first warms up.
        if round > 0 {
            spent += begun.elapsed();
        }
        ensure!(tokens == TOKENS && stopped, "{tokens} tokens of {TOKENS} came");
    }
    #[expect(clippy::cast_precision_loss, reason = "a quotient for people")]
    let [bytes, events] = [body.len(), TOKENS].map(|count| (count * (rounds - 1)) as f64);
    let rate = bytes / spent.as_secs_f64() / 1e6;
    let name = format!("decode {}, one core", format.as_str());
    Ok(Row::value(name, format!("{rate:.0} MB/s")).reach(format!("≥ {REACH:.0} MB/s"), rate >= REACH).besides(format!(
        "{:.0} ns an event of {:.0} bytes",
        spent.as_secs_f64() * 1e9 / events,
        bytes / events
    )))
}

/// One answer as its provider streams it.
fn answer(format: Format) -> String {
    let words = (0..TOKENS).map(|number| WORDS[number % WORDS.len()]);
    match format {
        Format::Anthropic => anthropic(words),
        Format::OpenAiChat => chat(words),
        Format::OpenAiResponses => responses(words),
        Format::Gemini => gemini(words),
    }
}

fn named(body: &mut String, event: &Value) {
    let name = event["type"].as_str().unwrap_or_default();
    // A String takes all that is written to it.
    let _ = write!(body, "event: {name}\ndata: {event}\n\n");
}

fn data(body: &mut String, event: &Value) {
    let _ = write!(body, "data: {event}\n\n");
}

fn anthropic(words: impl Iterator<Item = &'static str>) -> String {
    let mut body = String::new();
    let message =
        json!({ "id": "msg_1", "model": "claude-haiku-4-5", "usage": { "input_tokens": 8, "output_tokens": 1 } });
    named(&mut body, &json!({ "type": "message_start", "message": message }));
    let block = json!({ "type": "text", "text": "" });
    named(&mut body, &json!({ "type": "content_block_start", "index": 0, "content_block": block }));
    for word in words {
        let delta = json!({ "type": "text_delta", "text": word });
        named(&mut body, &json!({ "type": "content_block_delta", "index": 0, "delta": delta }));
    }
    named(&mut body, &json!({ "type": "content_block_stop", "index": 0 }));
    let delta = json!({ "stop_reason": "end_turn", "stop_sequence": null });
    named(&mut body, &json!({ "type": "message_delta", "delta": delta, "usage": { "output_tokens": TOKENS } }));
    named(&mut body, &json!({ "type": "message_stop" }));
    body
}

fn chat(words: impl Iterator<Item = &'static str>) -> String {
    let mut body = String::new();
    let chunk = |delta: Value, finish: Option<&str>| {
        json!({
            "id": "chatcmpl-AbCdEfGhIjKlMnOpQrStUvWxYz012", "object": "chat.completion.chunk", "created": 1_795_600_000,
            "model": "gpt-6-luna-2026-09-22", "service_tier": "default", "system_fingerprint": "fp_50cad350e4",
            "choices": [{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish }], "usage": null,
            "obfuscation": "hX3kQ9zW",
        })
    };
    for word in words {
        data(&mut body, &chunk(json!({ "content": word }), None));
    }
    data(&mut body, &chunk(json!({}), Some("stop")));
    let usage = json!({ "prompt_tokens": 8, "completion_tokens": TOKENS });
    data(&mut body, &json!({ "id": "c", "model": "m", "choices": [], "usage": usage }));
    body + "data: [DONE]\n\n"
}

fn responses(words: impl Iterator<Item = &'static str>) -> String {
    let mut body = String::new();
    let response = |status: &str| json!({ "id": "resp_1", "model": "gpt-6-luna", "status": status, "usage": null });
    named(&mut body, &json!({ "type": "response.created", "sequence_number": 0, "response": response("in_progress") }));
    for (number, word) in words.enumerate() {
        named(
            &mut body,
            &json!({
                "type": "response.output_text.delta", "sequence_number": number + 4, "delta": word,
                "item_id": "msg_0123456789abcdef0123456789abcdef0123456789abcdef", "output_index": 0,
                "content_index": 0, "logprobs": [], "obfuscation": "hX3kQ9zW",
            }),
        );
    }
    named(&mut body, &json!({ "type": "response.completed", "response": response("completed") }));
    body
}

fn gemini(words: impl Iterator<Item = &'static str>) -> String {
    let mut body = String::new();
    let chunk = |text: &str, finish: Option<&str>| {
        let content = json!({ "parts": [{ "text": text }], "role": "model" });
        let details = json!([{ "modality": "TEXT", "tokenCount": 8 }]);
        let usage = json!({
            "promptTokenCount": 8, "candidatesTokenCount": 17, "totalTokenCount": 25, "promptTokensDetails": details,
        });
        let mut candidate = json!({ "content": content, "index": 0 });
        if let Some(finish) = finish {
            candidate["finishReason"] = finish.into();
        }
        json!({
            "candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-3.8-flash",
            "responseId": "AbCdEfGhIjKlMnOpQrStUvWx",
        })
    };
    for word in words {
        data(&mut body, &chunk(word, None));
    }
    data(&mut body, &chunk("", Some("STOP")));
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_measured_is_understood() {
        for format in Format::ALL {
            let row = of(format, 1).await.unwrap();
            assert!(row.to_string().contains("MB/s"));
        }
    }
}
