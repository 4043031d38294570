//! What every provider promises, run against each of them in its own format over real HTTP.

#![expect(clippy::unwrap_used, reason = "a helper of tests may fail loudly")]
#![allow(unreachable_pub, reason = "its modules are of this test program alone")]

mod faults;
mod fixture;
mod scene;

use std::time::Duration;

use croft_llm::{Assembly, Class, Delta, Error, Request, Stop};
use croft_proto::v1::content_block::Block;
use croft_proto::v1::{ContentBlock, Message, Role, Text, TokenUsage, ToolOutput};
use fixture::{FIXTURES, Fixture, KEY, server, settings, stream};
use futures::StreamExt as _;
use scene::{Act, CACHED_TOKENS, End, OUTPUT_TOKENS, PROMPT_TOKENS, REASONING_TOKENS, Refusal, Scene, scene};
use serde_json::{Value, json};
use wiremock::ResponseTemplate;

const CLOCK: Act = Act::Call { id: "call_A", name: "clock", arguments: r#"{"sleep_ms":5}"# };
const CALCULATOR: Act = Act::Call { id: "call_B", name: "calculator", arguments: r#"{"expression":"6*7"}"# };

pub(crate) fn text(text: &str) -> ContentBlock {
    ContentBlock { block: Some(Block::Text(Text { text: text.into() })) }
}

pub(crate) fn user(said: &str) -> Request {
    let message = Message { role: Role::User.into(), content: vec![text(said)], ..Message::default() };
    Request { model: "model-x".into(), messages: vec![message], output_tokens_max: 64, ..Request::default() }
}

pub(crate) fn hello() -> Request {
    user("hello")
}

/// All that comes of a scene.
async fn played(fixture: &dyn Fixture, scene: &Scene) -> Vec<Result<Delta, Error>> {
    let server = server(fixture, stream(fixture.play(scene))).await;
    fixture.open(settings(&server.uri())).stream(fixture.request(scene)).collect().await
}

async fn refused(fixture: &dyn Fixture, class: Class) -> Error {
    let (status, body) = fixture.refuse(Refusal(class));
    let answer = ResponseTemplate::new(status).set_body_json(body).insert_header("retry-after", "7");
    let server = server(fixture, answer).await;
    let request = fixture.refused_request(Refusal(class));
    let mut deltas: Vec<_> = fixture.open(settings(&server.uri())).stream(request).collect().await;
    assert_eq!(deltas.len(), 1, "{}: a call that is refused does not open", fixture.name());
    deltas.pop().unwrap().unwrap_err()
}

fn assembled(name: &str, deltas: &[Result<Delta, Error>]) -> Assembly {
    let mut assembly = Assembly::default();
    for delta in deltas {
        assembly.push(delta.as_ref().unwrap_or_else(|error| panic!("{name}: {error:?}")));
    }
    assembly
}

fn said(content: &[ContentBlock]) -> String {
    let texts = content.iter().filter_map(|block| match &block.block {
        Some(Block::Text(text)) => Some(text.text.as_str()),
        _ => None,
    });
    texts.collect()
}

#[tokio::test]
async fn an_answer_opens_once_is_accounted_for_and_ends_with_its_stop() {
    for fixture in FIXTURES {
        let name = fixture.name();
        let deltas =
            played(fixture, &scene(&[Act::Say("Grüße aus dem "), Act::Say("🌻-Beet")], End::Stop(Stop::EndTurn))).await;
        let assembly = assembled(name, &deltas);
        assert_eq!(said(&assembly.content()), "Grüße aus dem 🌻-Beet", "{name}");
        let place = |wanted: fn(&Delta) -> bool| deltas.iter().flatten().position(wanted);
        assert_eq!(place(|delta| matches!(delta, Delta::Opened { .. })), Some(0), "{name}");
        let opened = deltas.iter().flatten().filter(|delta| matches!(delta, Delta::Opened { .. })).count();
        assert_eq!(opened, 1, "{name}");
        assert_eq!(place(|delta| matches!(delta, Delta::Stop(_))), Some(deltas.len() - 1), "{name}");
        assert_eq!(assembly.stop, Some(Stop::EndTurn), "{name}");
        assert!(!assembly.response_id.is_empty(), "{name}");
        let usage = assembly.usage.unwrap();
        if fixture.counts() {
            let expected = TokenUsage {
                input_uncached_tokens: PROMPT_TOKENS - CACHED_TOKENS,
                cache_read_tokens: CACHED_TOKENS,
                output_tokens: OUTPUT_TOKENS,
                reasoning_tokens: REASONING_TOKENS,
                ..TokenUsage::default()
            };
            assert_eq!(usage, expected, "{name}");
        } else {
            assert!(usage.input_uncached_tokens > 0 && usage.output_tokens > 0, "{name}");
        }
    }
}

#[tokio::test]
async fn parallel_calls_come_whole_and_in_order() {
    for fixture in FIXTURES {
        let name = fixture.name();
        let deltas =
            played(fixture, &scene(&[Act::Say("let me look"), CLOCK, CALCULATOR], End::Stop(Stop::ToolUse))).await;
        let assembly = assembled(name, &deltas);
        assert_eq!(assembly.stop, Some(Stop::ToolUse), "{name}");
        let calls = assembly.calls();
        let heard: Vec<(&str, Value)> = calls
            .iter()
            .map(|call| (call.name.as_str(), serde_json::from_str(&call.arguments_json).unwrap()))
            .collect();
        assert_eq!(heard, [("clock", json!({"sleep_ms": 5})), ("calculator", json!({"expression": "6*7"}))], "{name}");
        assert_ne!(calls[0].tool_call_id, calls[1].tool_call_id, "{name}");
    }
}

#[tokio::test]
async fn thinking_comes_before_what_it_led_to() {
    for fixture in FIXTURES {
        let name = fixture.name();
        let deltas = played(fixture, &scene(&[Act::Think("hm"), Act::Say("noon")], End::Stop(Stop::EndTurn))).await;
        let content = assembled(name, &deltas).content();
        let Some(Block::Thinking(thinking)) = &content[0].block else { panic!("{name}: {content:?}") };
        assert_eq!(thinking.text, "hm", "{name}");
        assert_eq!(said(&content), "noon", "{name}");
    }
}

#[tokio::test]
async fn an_answer_that_did_not_end_by_itself_says_why() {
    for fixture in FIXTURES {
        for stop in [Stop::MaxTokens, Stop::Refusal] {
            let name = fixture.name();
            let deltas = played(fixture, &scene(&[Act::Say("and so")], End::Stop(stop))).await;
            let assembly = assembled(name, &deltas);
            assert_eq!((assembly.stop, said(&assembly.text_only()).as_str()), (Some(stop), "and so"), "{name}");
        }
    }
}

#[tokio::test]
async fn an_error_after_output_ends_the_answer_and_what_came_stands() {
    for fixture in FIXTURES {
        for (end, class) in [(End::Fail, Class::Overload), (End::Cut, Class::Truncated)] {
            let name = fixture.name();
            let mut deltas = played(fixture, &scene(&[Act::Say("I was")], end)).await;
            let error = deltas.pop().unwrap().unwrap_err();
            assert_eq!((error.class, error.status, error.is_retryable()), (class, None, true), "{name}");
            let assembly = assembled(name, &deltas);
            assert_eq!((said(&assembly.text_only()).as_str(), assembly.stop), ("I was", None), "{name}");
        }
    }
}

#[tokio::test]
async fn a_refusal_at_the_door_has_its_class_and_its_wait() {
    for fixture in FIXTURES {
        for class in
            [Class::Rate, Class::Quota, Class::Overload, Class::Auth, Class::Context, Class::Timeout, Class::Invalid]
        {
            let name = fixture.name();
            let error = refused(fixture, class).await;
            assert_eq!((error.class, error.retry_after), (class, Some(Duration::from_secs(7))), "{name}: {error}");
            assert_eq!(error.is_retryable(), class.is_retryable(), "{name}: {error}");
            assert_eq!(error.status.is_some(), fixture.is_remote(), "{name}: {error}");
        }
    }
}

#[tokio::test]
async fn nothing_happens_until_the_stream_is_polled() {
    for fixture in FIXTURES.into_iter().filter(|fixture| fixture.is_remote()) {
        let server = server(fixture, stream(String::new())).await;
        drop(fixture.open(settings(&server.uri())).stream(hello()));
        assert!(server.received_requests().await.unwrap().is_empty(), "{}", fixture.name());
    }
}

#[tokio::test]
async fn what_a_model_said_and_its_tools_results_go_back_to_it() {
    for fixture in FIXTURES.into_iter().filter(|fixture| fixture.is_remote()) {
        let name = fixture.name();
        let first = scene(&[Act::Think("hm"), Act::Say("let me look"), CLOCK, CALCULATOR], End::Stop(Stop::ToolUse));
        let server = server(fixture, stream(fixture.play(&first))).await;
        let provider = fixture.open(settings(&server.uri()));
        let deltas: Vec<_> = provider.stream(hello()).collect().await;
        let assembly = assembled(name, &deltas);
        let mut request = hello();
        let answer = Message { role: Role::Assistant.into(), content: assembly.content(), ..Message::default() };
        request.messages.push(answer);
        let result = |(id, result): (String, &str)| {
            let output = ToolOutput { tool_call_id: id, content: vec![text(result)], is_error: false };
            ContentBlock { block: Some(Block::ToolOutput(output)) }
        };
        let ids: Vec<_> = assembly.calls().into_iter().map(|call| call.tool_call_id).collect();
        let content = ids.iter().cloned().zip(["it is noon", "it is 42"]).map(result).collect();
        request.messages.push(Message { role: Role::Tool.into(), content, ..Message::default() });
        let again: Vec<_> = provider.stream(request).collect().await;
        assert!(again.iter().all(Result::is_ok), "{name}: {again:?}");
        let requests = server.received_requests().await.unwrap();
        let body = String::from_utf8(requests[1].body.clone()).unwrap();
        for wanted in ["hello", "let me look", "clock", "6*7", "it is noon", "it is 42", &ids[0], &ids[1]] {
            assert!(body.contains(wanted), "{name}: {wanted} is missing in {body}");
        }
        // The proof of its thinking, where it has one, goes back too.
        let proof = match name {
            "anthropic" => "\"sig\"",
            "openai responses" => "gAAA",
            "gemini" => "c2ln",
            _ => "",
        };
        assert!(body.contains(proof), "{name}: {body}");
    }
}

#[tokio::test]
async fn the_key_goes_into_its_header_and_into_nothing_else() {
    for fixture in FIXTURES.into_iter().filter(|fixture| fixture.is_remote()) {
        let name = fixture.name();
        let (status, mut body) = fixture.refuse(Refusal(Class::Auth));
        body["error"]["message"] = format!("the key {KEY} is wrong").into();
        let server = server(fixture, ResponseTemplate::new(status).set_body_json(body)).await;
        let deltas: Vec<_> = fixture.open(settings(&server.uri())).stream(hello()).collect().await;
        let error = deltas.into_iter().next().unwrap().unwrap_err();
        assert_eq!(error.message, "the key *** is wrong", "{name}");
        assert!(!format!("{error:?}").contains(KEY), "{name}");
        let requests = server.received_requests().await.unwrap();
        let elsewhere = format!("{} {}", requests[0].url, String::from_utf8_lossy(&requests[0].body));
        assert!(!elsewhere.contains(KEY), "{name}");

        let gone = fixture.open(settings("http://127.0.0.1:1")).stream(hello()).collect::<Vec<_>>().await;
        let gone = gone.into_iter().next().unwrap().unwrap_err();
        assert_eq!(gone.class, Class::Network, "{name}");
        assert!(!format!("{gone:?}").contains(KEY), "{name}");
    }
}

#[tokio::test]
async fn a_provider_without_a_key_is_sent_none() {
    for fixture in FIXTURES.into_iter().filter(|fixture| fixture.is_remote()) {
        let name = fixture.name();
        let server = wiremock::MockServer::start().await;
        let scene = scene(&[Act::Say("hello")], End::Stop(Stop::EndTurn));
        let answer = wiremock::Mock::given(wiremock::matchers::any()).respond_with(stream(fixture.play(&scene)));
        answer.mount(&server).await;
        let settings =
            croft_llm::Settings { api_key: secrecy::SecretString::default().into(), ..settings(&server.uri()) };
        let deltas: Vec<_> = fixture.open(settings).stream(hello()).collect().await;
        assert!(deltas.iter().all(Result::is_ok), "{name}: {deltas:?}");
        let requests = server.received_requests().await.unwrap();
        assert!(!requests[0].headers.contains_key(fixture.door().1), "{name}");
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    for fixture in FIXTURES.into_iter().filter(|fixture| fixture.is_remote()) {
        let redirect = ResponseTemplate::new(307).insert_header("location", "https://elsewhere.test/");
        let server = server(fixture, redirect).await;
        let deltas: Vec<_> = fixture.open(settings(&server.uri())).stream(hello()).collect().await;
        assert_eq!(deltas[0].as_ref().unwrap_err().class, Class::Invalid, "{}", fixture.name());
    }
}
