//! What the scripted provider promises to the demo and to users' tests.

#![expect(clippy::unwrap_used, reason = "a helper of tests may fail loudly")]

use std::time::Duration;

use croft_llm::scripted::Scripted;
use croft_llm::{Assembly, Class, Delta, Error, Provider as _, Request, Stop};
use croft_proto::v1::content_block::Block;
use croft_proto::v1::{ContentBlock, Message, Role, Text};
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::time::Instant;

fn heard(text: &str) -> Request {
    let content = vec![ContentBlock { block: Some(Block::Text(Text { text: text.into() })) }];
    let messages = vec![Message { role: Role::User.into(), content, ..Message::default() }];
    Request { model: "scripted-1".into(), messages, ..Request::default() }
}

fn script(steps: &Value) -> Request {
    heard(&json!({ "script": steps }).to_string())
}

async fn deltas(request: Request) -> Vec<Result<Delta, Error>> {
    Scripted::new().stream(request).collect().await
}

fn assembled(deltas: &[Result<Delta, Error>]) -> Assembly {
    let mut assembly = Assembly::default();
    for delta in deltas {
        assembly.push(delta.as_ref().unwrap());
    }
    assembly
}

fn said(assembly: &Assembly) -> String {
    let texts = assembly.text_only().into_iter().filter_map(|block| match block.block {
        Some(Block::Text(text)) => Some(text.text),
        _ => None,
    });
    texts.collect()
}

#[tokio::test(start_paused = true)]
async fn prose_is_repeated_word_by_word() {
    let began = Instant::now();
    let deltas = deltas(heard("how do leeks grow")).await;
    assert_eq!(began.elapsed(), Duration::from_millis(60), "six words of 10 ms");
    let assembly = assembled(&deltas);
    assert_eq!(said(&assembly), "You said: how do leeks grow");
    assert_eq!(assembly.stop, Some(Stop::EndTurn));
    let usage = assembly.usage.unwrap();
    assert_eq!((usage.input_uncached_tokens, usage.output_tokens), (5, 7), "four characters a token");
    assert_eq!(deltas.iter().flatten().filter(|delta| delta.is_output()).count(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_script_is_played_step_by_step() {
    let steps = json!([
        {"thinking": "hm"},
        {"text": "two words", "token_delay_ms": 100},
        {"delay_ms": 300},
        {"tool_call": {"name": "clock", "arguments": {"sleep_ms": 5}}},
        {"tool_call": {"name": "clock"}},
        {"text": "only after the results"},
    ]);
    let began = Instant::now();
    let assembly = assembled(&deltas(script(&steps)).await);
    assert_eq!(began.elapsed(), Duration::from_millis(500));
    assert_eq!(said(&assembly), "two words");
    assert_eq!(assembly.stop, Some(Stop::ToolUse));
    let calls = assembly.calls();
    assert_eq!(calls[0].arguments_json, r#"{"sleep_ms":5}"#);
    assert_eq!(calls[1].arguments_json, "{}");
    assert_ne!(calls[0].tool_call_id, calls[1].tool_call_id);
}

#[tokio::test(start_paused = true)]
async fn an_error_comes_where_the_script_has_it() {
    let at_once = deltas(script(&json!([{"error": {"class": "rate", "message": "slow", "retry_after_ms": 70}}]))).await;
    assert_eq!(at_once.len(), 1, "a call that is refused does not open");
    let error = at_once[0].as_ref().unwrap_err();
    assert_eq!((error.class, error.retry_after), (Class::Rate, Some(Duration::from_millis(70))));

    let later = deltas(script(&json!([{"text": "I was"}, {"error": {"class": "overload"}}]))).await;
    assert!(matches!(later[0], Ok(Delta::Opened { .. })));
    assert_eq!(later.last().unwrap().as_ref().unwrap_err().class, Class::Overload);
}

#[tokio::test(start_paused = true)]
async fn a_script_with_a_mistake_says_so() {
    for steps in [json!([{"txet": "x"}]), json!([{"error": {"class": "weather"}}])] {
        let deltas = deltas(script(&steps)).await;
        let error = deltas.last().unwrap().as_ref().unwrap_err();
        assert_eq!(error.class, Class::Invalid);
        assert!(error.message.contains("mistake"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_script_may_stop_for_another_reason() {
    let assembly = assembled(&deltas(script(&json!([{"text": "and so"}, {"stop": "max_tokens"}]))).await);
    assert_eq!(assembly.stop, Some(Stop::MaxTokens));
}
