//! The Anthropic adapter over real HTTP, against a server of ours.

#![expect(clippy::unwrap_used, reason = "a helper of tests may fail loudly")]

use std::time::Duration;

use croft_llm::anthropic::{Anthropic, Settings};
use croft_llm::{Class, Delta, Error, Limits, Provider as _, Request, Stop, ToolDefinition};
use croft_proto::v1::content_block::Block;
use croft_proto::v1::image::Source;
use croft_proto::v1::{
    ContentBlock, Image, Message, NativeBlock, Role, Text, Thinking, TokenUsage, ToolOutput, ToolUse,
};
use futures::StreamExt as _;
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use wiremock::matchers::{body_json, header, method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

const KEY: &str = "sk-ant-very-secret";

fn provider(base_url: &str, limits: Limits) -> Anthropic {
    let settings = Settings { base_url: base_url.into(), api_key: SecretString::from(KEY).into(), limits };
    Anthropic::new(settings).unwrap()
}

fn block(block: Block) -> ContentBlock {
    ContentBlock { block: Some(block) }
}

fn text(text: &str) -> ContentBlock {
    block(Block::Text(Text { text: text.into() }))
}

fn message(role: Role, content: Vec<ContentBlock>) -> Message {
    Message { role: role.into(), content, ..Message::default() }
}

fn hello() -> Request {
    Request {
        model: "claude-haiku-4-5".into(),
        messages: vec![message(Role::User, vec![text("hello")])],
        output_tokens_max: 64,
        ..Request::default()
    }
}

fn golden(name: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/anthropic");
    std::fs::read_to_string(format!("{folder}/{name}.sse")).unwrap()
}

/// A server that gives this answer to a well-formed call.
async fn server(answer: ResponseTemplate) -> MockServer {
    let server = MockServer::start().await;
    Mock::given(method("POST"))
        .and(path("/v1/messages"))
        .and(header("x-api-key", KEY))
        .and(header("anthropic-version", "2023-06-01"))
        .and(header("content-type", "application/json"))
        .respond_with(answer)
        .mount(&server)
        .await;
    server
}

async fn call(base_url: &str, limits: Limits) -> Result<Vec<Delta>, Error> {
    let deltas: Vec<_> = provider(base_url, limits).stream(hello()).collect().await;
    deltas.into_iter().collect()
}

async fn failure(answer: ResponseTemplate) -> Error {
    let server = server(answer).await;
    call(&server.uri(), Limits::default()).await.unwrap_err()
}

fn refusal(status: u16, kind: &str, message: &str) -> ResponseTemplate {
    let body = json!({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"});
    ResponseTemplate::new(status).set_body_json(body).insert_header("request-id", "req_1")
}

#[tokio::test]
async fn an_answer_streams_in() {
    let answer = ResponseTemplate::new(200).set_body_raw(golden("text"), "text/event-stream; charset=utf-8");
    let server = server(answer).await;
    let deltas = call(&format!("{}/v1/", server.uri()), Limits::default()).await.unwrap();
    let heard: String = deltas
        .iter()
        .filter_map(|delta| match delta {
            Delta::Text { text, .. } => Some(text.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(heard, "Grüße aus dem 🌻-Beet,\n\"heute\" \\ morgen.");
    assert_eq!(deltas.last(), Some(&Delta::Stop(Stop::EndTurn)));
    let usage = TokenUsage { input_uncached_tokens: 25, output_tokens: 17, ..TokenUsage::default() };
    assert!(deltas.contains(&Delta::Usage(usage)));
}

#[tokio::test]
async fn a_model_that_asks_for_no_key_is_sent_none() {
    let server = MockServer::start().await;
    let answer = ResponseTemplate::new(200).set_body_raw(golden("text"), "text/event-stream; charset=utf-8");
    Mock::given(path("/v1/messages")).respond_with(answer).expect(1).mount(&server).await;
    let settings =
        Settings { base_url: server.uri(), api_key: SecretString::default().into(), limits: Limits::default() };
    let deltas: Vec<_> = Anthropic::new(settings).unwrap().stream(hello()).collect().await;
    assert!(deltas.iter().all(Result::is_ok));
    let requests = server.received_requests().await.unwrap();
    assert!(!requests[0].headers.contains_key("x-api-key"));
}

#[tokio::test]
async fn a_conversation_goes_out_in_the_apis_form() {
    let server = MockServer::start().await;
    let tool = ToolDefinition {
        name: "clock".into(),
        description: "Tells the time.".into(),
        input_schema: json!({"type": "object"}),
    };
    let call = |id: &str, arguments: &str| {
        let arguments_json = arguments.into();
        block(Block::ToolUse(ToolUse { tool_call_id: id.into(), name: "clock".into(), arguments_json }))
    };
    let output = |id: &str, is_error| {
        let content = vec![text("noon")];
        block(Block::ToolOutput(ToolOutput { tool_call_id: id.into(), content, is_error }))
    };
    let native = |provider: &str| {
        block(Block::Native(NativeBlock { provider: provider.into(), json: r#"{"type":"hologram"}"#.into() }))
    };
    let thinking = |text: &str, signature: &str| {
        block(Block::Thinking(Thinking {
            text: text.into(),
            signature: signature.into(),
            redacted_data: String::new(),
        }))
    };
    let redacted = Thinking { redacted_data: "Em8".into(), ..Thinking::default() };
    let picture = |source| block(Block::Image(Image { media_type: "image/png".into(), source: Some(source) }));
    let request = Request {
        model: "claude-haiku-4-5".into(),
        system: "Be kind.".into(),
        messages: vec![
            message(Role::User, vec![text("what time?"), text(""), picture(Source::Data(vec![1, 2, 3].into()))]),
            message(
                Role::Assistant,
                vec![thinking("hm", "sig"), thinking("unsigned", ""), block(Block::Thinking(redacted))],
            ),
            message(
                Role::Assistant,
                vec![native("anthropic"), native("openai"), call("a", r#"{"x":1}"#), call("b", "{oops")],
            ),
            message(Role::Tool, vec![output("a", false), output("b", true)]),
            message(Role::User, vec![text("and?"), picture(Source::Url("https://pictures.test/1.png".into()))]),
            message(Role::Assistant, vec![]),
        ],
        tools: vec![tool],
        output_tokens_max: 99,
        temperature: Some(0.5),
        refused: Vec::new(),
    };
    let expected: Value = json!({
        "model": "claude-haiku-4-5",
        "max_tokens": 99,
        "stream": true,
        "system": [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}],
        "temperature": 0.5,
        "tools": [{"name": "clock", "description": "Tells the time.", "input_schema": {"type": "object"}}],
        "messages": [
            {"role": "user", "content": [
                {"type": "text", "text": "what time?"},
                {
                    "type": "image",
                    "source": {"type": "base64", "media_type": "image/png", "data": "AQID"},
                    "cache_control": {"type": "ephemeral"},
                },
            ]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": "sig"},
                {"type": "redacted_thinking", "data": "Em8"},
                {"type": "hologram"},
                {"type": "tool_use", "id": "a", "name": "clock", "input": {"x": 1}},
                {"type": "tool_use", "id": "b", "name": "clock", "input": {"unparsed": "{oops"}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "noon"}], "is_error": false},
                {"type": "tool_result", "tool_use_id": "b", "content": [{"type": "text", "text": "noon"}], "is_error": true},
                {"type": "text", "text": "and?"},
                {
                    "type": "image",
                    "source": {"type": "url", "url": "https://pictures.test/1.png"},
                    "cache_control": {"type": "ephemeral"},
                },
            ]},
        ],
    });
    let answer = ResponseTemplate::new(200).set_body_raw(golden("refusal"), "text/event-stream");
    Mock::given(body_json(&expected)).respond_with(answer).mount(&server).await;
    let deltas: Vec<_> = provider(&server.uri(), Limits::default()).stream(request).collect().await;
    assert!(matches!(deltas.last(), Some(Ok(Delta::Stop(Stop::Refusal)))), "{deltas:?}");
}

/// The bodies of these calls, in their order.
async fn sent(requests: impl IntoIterator<Item = Request>) -> Vec<Value> {
    let server = server(refusal(400, "invalid_request_error", "no")).await;
    let provider = provider(&server.uri(), Limits::default());
    for request in requests {
        assert!(provider.stream(request).next().await.unwrap().is_err());
    }
    server.received_requests().await.unwrap().iter().map(|request| request.body_json().unwrap()).collect()
}

/// Where breakpoints of the cache stand in a body, as JSON pointers in its order.
fn breakpoints(body: &Value) -> Vec<String> {
    fn look(value: &Value, path: &str, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                for (name, field) in fields {
                    if name == "cache_control" {
                        assert_eq!(*field, json!({"type": "ephemeral"}));
                        found.push(path.to_owned());
                    } else {
                        look(field, &format!("{path}/{name}"), found);
                    }
                }
            }
            Value::Array(items) => {
                items.iter().enumerate().for_each(|(place, item)| look(item, &format!("{path}/{place}"), found));
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    look(body, "", &mut found);
    found.sort();
    found
}

#[tokio::test]
async fn what_a_request_begins_with_is_to_be_cached_up_to_where_the_one_before_ended() {
    let tool = |name: &str| ToolDefinition {
        name: name.into(),
        description: "d".into(),
        input_schema: json!({"type": "object"}),
    };
    let called = || {
        let thinking = Thinking { text: "hm".into(), signature: "sig".into(), redacted_data: String::new() };
        let call = ToolUse { tool_call_id: "a".into(), name: "clock".into(), arguments_json: "{}".into() };
        message(Role::Assistant, vec![block(Block::Thinking(thinking)), block(Block::ToolUse(call))])
    };
    let noon = ToolOutput { tool_call_id: "a".into(), content: vec![text("noon")], is_error: false };
    let first = Request { system: "Be kind.".into(), tools: vec![tool("clock"), tool("calculator")], ..hello() };
    let mut second = first.clone();
    second.messages.extend([called(), message(Role::Tool, vec![block(Block::ToolOutput(noon))])]);
    let unprompted = Request { system: String::new(), ..first.clone() };
    let bare = Request { tools: Vec::new(), ..unprompted.clone() };
    // An answer that was paused ends in what takes no breakpoint.
    let mut paused = bare.clone();
    paused.messages.push(called());
    paused.messages[1].content.reverse();

    let bodies = sent([first, second, unprompted, bare, paused]).await;
    let found: Vec<_> = bodies.iter().map(breakpoints).collect();
    let [hello, system] = ["/messages/0/content/0", "/system/0"];
    assert_eq!(found[0], [hello, system]);
    assert_eq!(found[1], [hello, "/messages/2/content/0", system]);
    assert_eq!(found[2], [hello, "/tools/1"]);
    assert_eq!(found[3], [hello]);
    assert_eq!(found[4], [hello, "/messages/1/content/0"]);
    // What the first request had cached is what the second begins with.
    for place in ["/system", "/tools", "/messages/0"] {
        assert_eq!(bodies[0].pointer(place), bodies[1].pointer(place), "{place}");
    }
}

#[tokio::test]
async fn an_error_of_white_space_alone_says_something_all_the_same() {
    let output = |id: &str, said: &str, is_error| {
        block(Block::ToolOutput(ToolOutput { tool_call_id: id.into(), content: vec![text(said)], is_error }))
    };
    let call = |id: &str| {
        block(Block::ToolUse(ToolUse { tool_call_id: id.into(), name: "clock".into(), arguments_json: "{}".into() }))
    };
    let mut request = hello();
    request.messages.extend([
        message(Role::Assistant, vec![call("a"), call("b"), call("c")]),
        message(Role::Tool, vec![output("a", " \n", true), output("b", "late", true), output("c", "", false)]),
    ]);
    let bodies = sent([request]).await;
    let results = &bodies[0]["messages"][2]["content"];
    assert_eq!(results[0]["content"], json!([{"type": "text", "text": "The tool failed and did not say why."}]));
    assert_eq!(results[1]["content"], json!([{"type": "text", "text": "late"}]));
    assert_eq!(results[2]["content"], json!([]), "what is no error may be empty");
}

#[tokio::test]
async fn each_refusal_has_its_class() {
    let cases = [
        (400, "invalid_request_error", "max_tokens: must be positive", Class::Invalid),
        (400, "invalid_request_error", "prompt is too long: 9 tokens > 8 maximum", Class::Context),
        (
            400,
            "invalid_request_error",
            "At least one of the image dimensions exceed max allowed size for many-image requests: 2000 pixels",
            Class::Context,
        ),
        (400, "invalid_request_error", "Too much media: 0 document pages + 101 images > 100", Class::Context),
        (400, "invalid_request_error", "Your credit balance is too low", Class::Quota),
        (401, "authentication_error", "invalid x-api-key", Class::Auth),
        (402, "billing_error", "pay", Class::Quota),
        (403, "permission_error", "no", Class::Auth),
        (404, "not_found_error", "model: claude-0", Class::Invalid),
        (409, "conflict_error", "again", Class::Overload),
        (413, "request_too_large", "too large", Class::Context),
        (429, "rate_limit_error", "slow down", Class::Rate),
        (500, "api_error", "oops", Class::Overload),
        (503, "unheard_of_error", "oops", Class::Overload),
        (504, "timeout_error", "late", Class::Timeout),
        (529, "overloaded_error", "Overloaded", Class::Overload),
    ];
    for (status, kind, message, class) in cases {
        let error = failure(refusal(status, kind, message)).await;
        assert_eq!((error.class, error.message.as_str()), (class, message), "{status} {kind}");
        assert_eq!((error.status, error.request_id.as_deref()), (Some(status), Some("req_1")));
    }
}

#[tokio::test]
async fn a_refusal_without_a_sensible_body_goes_by_its_status() {
    let gateway = ResponseTemplate::new(502).set_body_string("<html>bad gateway</html>");
    assert_eq!(failure(gateway).await.class, Class::Overload);
    let redirect = ResponseTemplate::new(307).insert_header("location", "https://elsewhere.test/");
    assert_eq!(failure(redirect).await.class, Class::Invalid, "the key must not follow a redirect");
}

#[tokio::test]
async fn what_the_headers_say_of_retrying_is_kept() {
    let slow = refusal(429, "rate_limit_error", "slow down").insert_header("retry-after", "7");
    let error = failure(slow).await;
    assert_eq!((error.retry_after, error.is_retryable()), (Some(Duration::from_secs(7)), true));

    let exact = refusal(529, "overloaded_error", "busy").insert_header("retry-after-ms", "250");
    assert_eq!(failure(exact).await.retry_after, Some(Duration::from_millis(250)));

    let never = refusal(500, "api_error", "oops").insert_header("x-should-retry", "false");
    assert!(!failure(never).await.is_retryable());

    let spent = refusal(429, "rate_limit_error", "spend limit reached").insert_header("x-should-retry", "true");
    assert!(!failure(spent).await.is_retryable());
}

#[tokio::test]
async fn an_error_after_200_ends_the_stream_with_its_class() {
    let answer = ResponseTemplate::new(200).set_body_raw(golden("overloaded_after_200"), "text/event-stream");
    let error = failure(answer).await;
    assert_eq!((error.class, error.status), (Class::Overload, None));
}

#[tokio::test]
async fn the_key_is_in_no_error() {
    let error = failure(refusal(401, "authentication_error", &format!("the key {KEY} is wrong"))).await;
    assert_eq!(error.message, "the key *** is wrong");
    assert!(!format!("{error:?}").contains(KEY));

    let gone = call("http://127.0.0.1:1", Limits::default()).await.unwrap_err();
    assert_eq!(gone.class, Class::Network);
    assert!(!format!("{gone:?}").contains(KEY));
}

/// A server that sends `body` as the begin of an answer and then does as `after` says.
async fn raw(
    body: String,
    idle: Duration,
    after: impl AsyncFn(&mut tokio::net::TcpStream),
) -> Result<Vec<Delta>, Error> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let limits = Limits { idle, opened: Duration::from_mins(1), ..Limits::default() };
    let serve = async {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 64 * 1024];
        assert!(socket.read(&mut request).await.unwrap() > 0);
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
        socket.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        after(&mut socket).await;
    };
    let (outcome, ()) = tokio::join!(call(&url, limits), serve);
    outcome
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_truncated() {
    let whole = golden("text");
    let half = whole[..whole.find("event: message_delta").unwrap()].to_owned();
    let error = raw(half, Duration::from_mins(1), async |socket| socket.shutdown().await.unwrap()).await.unwrap_err();
    assert_eq!(error.class, Class::Truncated);
    assert!(error.is_retryable());
}

#[tokio::test]
async fn an_answer_that_falls_silent_times_out() {
    let whole = golden("text");
    let half = whole[..whole.find("event: message_delta").unwrap()].to_owned();
    let silence = async |socket: &mut tokio::net::TcpStream| {
        // Until the caller hangs up.
        let mut nothing = [0; 1];
        assert_eq!(socket.read(&mut nothing).await.unwrap_or(0), 0);
    };
    assert_eq!(raw(half, Duration::from_millis(200), silence).await.unwrap_err().class, Class::Timeout);
}
