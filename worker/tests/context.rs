//! Conversations that are too long for the model.

#![expect(clippy::unwrap_used, reason = "a helper of tests may fail loudly")]

mod support;

use std::sync::{Arc, Mutex};

use croft_llm::anthropic::Anthropic;
use croft_llm::openai::Chat;
use croft_llm::scripted::Scripted;
use croft_llm::{Class, DeltaStream, Limits, Provider, Providers, Request, Settings, estimate};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    AgentLimits, AgentSpec, ContentBlock, Image, Message, Role, SessionCheckpoint, StopReason, content_block, image,
};
use croft_worker::tools::Builtins;
use futures::StreamExt as _;
use secrecy::SecretString;
use serde_json::{Value, json};
use support::*;
use wiremock::matchers::path;
use wiremock::{Mock, MockServer, Respond, ResponseTemplate};

/// Takes so many tokens, and answers as the scripted one does.
struct Narrow {
    tokens_max: u32,
    sent: Arc<Mutex<Vec<u32>>>,
}

impl Provider for Narrow {
    fn name(&self) -> &'static str {
        "narrow"
    }

    fn stream(&self, request: Request) -> DeltaStream {
        let tokens = estimate::conversation_tokens(&request.messages);
        self.sent.lock().unwrap().push(tokens);
        if tokens > self.tokens_max {
            let error = croft_llm::Error::new("narrow", Class::Context, "too long");
            return futures::stream::iter([Err(error)]).boxed();
        }
        Scripted::new().stream(request)
    }
}

/// Twenty exchanges of some 250 tokens each.
fn long_talk() -> SessionCheckpoint {
    let message = |role: Role| Message { role: role.into(), content: text(&"x".repeat(500)), ..Message::default() };
    let messages = (0..20).flat_map(|_| [message(Role::User), message(Role::Assistant)]).collect();
    SessionCheckpoint {
        checkpoint_id: "long".into(),
        messages,
        turn_id: "turn-0".into(),
        ..SessionCheckpoint::default()
    }
}

async fn told(tokens_max: u32, limits: AgentLimits) -> (Heard, Vec<u32>) {
    let sent = Arc::<Mutex<Vec<u32>>>::default();
    let narrow = Narrow { tokens_max, sent: Arc::clone(&sent) };
    let heard = asked("narrow", Providers::new().with(narrow), limits, long_talk()).await;
    let sent = sent.lock().unwrap().clone();
    (heard, sent)
}

/// A further turn of a talk, at this provider.
async fn asked(provider: &str, providers: Providers, limits: AgentLimits, talk: SessionCheckpoint) -> Heard {
    let worker = worker_with(options(), providers, Builtins::default()).await;
    let session_id = session();
    let agent = AgentSpec { model: "narrow-1".into(), limits: Some(limits), tools: Vec::new(), ..agent() };
    init(&worker.client, &session_id, &agent).await.unwrap();
    let mut start = start(&session_id, text("and now?"));
    start.checkpoint = Some(talk);
    let mut front = Front::open(&worker.client, start).await;
    front.provider = provider.into();
    front.finish().await
}

#[tokio::test(start_paused = true)]
async fn a_conversation_that_does_not_fit_is_shortened_until_it_does_and_stays_whole_itself() {
    let (heard, sent) = told(1_500, AgentLimits::default()).await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    assert!(sent.len() == 3 && sent.is_sorted_by(|one, other| one > other), "{sent:?}");
    assert_eq!(heard.checkpoint().messages.len(), 42, "the checkpoint holds all of it");
    assert!(heard.previews.iter().any(|kind| matches!(kind, Kind::Progress(_))), "people are told");
    assert_eq!(heard.story().iter().filter(|name| **name == "attempt").count(), 3, "each attempt is told");
}

#[tokio::test(start_paused = true)]
async fn an_agents_own_bound_is_kept_from_the_first_call() {
    let limits = AgentLimits { context_tokens_max: 1_000, ..AgentLimits::default() };
    let (heard, sent) = told(1_500, limits).await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    assert!(sent.len() == 1 && sent[0] <= 1_050, "{sent:?}");
}

#[tokio::test(start_paused = true)]
async fn what_never_fits_ends_the_turn_with_its_reason() {
    let (heard, sent) = told(10, AgentLimits::default()).await;
    assert_eq!(heard.stop_reason(), StopReason::ContextFull);
    assert!(sent.len() < 6, "{sent:?}");
}

/// llama.cpp with a small context, which it tells of as a fault of its own, as some of its builds do.
struct LlamaCpp;

impl Respond for LlamaCpp {
    fn respond(&self, request: &wiremock::Request) -> ResponseTemplate {
        if request.body.len() > 6_000 {
            let message = "request (9000 tokens) exceeds the available context size (4096 tokens), try increasing it";
            let error = json!({"code": 500, "message": message, "type": "exceed_context_size_error"});
            return ResponseTemplate::new(500).set_body_json(json!({ "error": error }));
        }
        let chunk = |delta: Value, reason: Option<&str>| {
            let choice = json!({"index": 0, "delta": delta, "finish_reason": reason});
            format!("data: {}\n\n", json!({"id": "chatcmpl-1", "model": "narrow-1", "choices": [choice]}))
        };
        let said = chunk(json!({"role": "assistant", "content": "noon"}), None);
        let body = format!("{said}{}data: [DONE]\n\n", chunk(json!({}), Some("stop")));
        ResponseTemplate::new(200).set_body_raw(body, "text/event-stream")
    }
}

#[tokio::test]
async fn a_server_that_takes_a_long_conversation_for_a_fault_of_its_own_is_sent_a_shorter_one() {
    let server = MockServer::start().await;
    Mock::given(path("/v1/chat/completions")).respond_with(LlamaCpp).mount(&server).await;
    let api_key = SecretString::default().into();
    let chat = Chat::new(Settings { base_url: server.uri(), api_key, limits: Limits::default() }).unwrap();
    let heard = asked("openai", Providers::new().with(chat), AgentLimits::default(), long_talk()).await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    let sent: Vec<_> = server.received_requests().await.unwrap().iter().map(|request| request.body.len()).collect();
    assert!(sent.len() > 1 && sent.is_sorted_by(|one, other| one > other), "{sent:?}: none is sent twice");
}

/// Anthropic, to which pictures beyond the twentieth must be small, and these are not.
struct FewPictures;

fn pictures(request: &wiremock::Request) -> usize {
    String::from_utf8_lossy(&request.body).matches(r#""type":"image""#).count()
}

impl Respond for FewPictures {
    fn respond(&self, request: &wiremock::Request) -> ResponseTemplate {
        if pictures(request) > 20 {
            let message =
                "At least one of the image dimensions exceed max allowed size for many-image requests: 2000 pixels";
            let error = json!({"type": "invalid_request_error", "message": message});
            return ResponseTemplate::new(400).set_body_json(json!({"type": "error", "error": error}));
        }
        let usage = json!({"input_tokens": 9, "output_tokens": 1});
        let events = [
            json!({"type": "message_start", "message": {"id": "msg_1", "model": "claude-x", "usage": usage}}),
            json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
            json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "noon"}}),
            json!({"type": "content_block_stop", "index": 0}),
            json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}}),
            json!({"type": "message_stop"}),
        ];
        let event = |event: &Value| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap());
        let body = events.iter().map(event).collect::<Vec<_>>().concat();
        ResponseTemplate::new(200).set_body_raw(body, "text/event-stream")
    }
}

#[tokio::test]
async fn pictures_that_are_too_many_for_their_size_are_left_out_the_oldest_first() {
    let server = MockServer::start().await;
    Mock::given(path("/v1/messages")).respond_with(FewPictures).mount(&server).await;
    let api_key = SecretString::default().into();
    let claude = Anthropic::new(Settings { base_url: server.uri(), api_key, limits: Limits::default() }).unwrap();
    let source = Some(image::Source::Data(b"\x89PNG\r\n\x1a\n\0".as_slice().into()));
    let picture = content_block::Block::Image(Image { media_type: "image/png".into(), source });
    let shown = || [text("look"), vec![ContentBlock { block: Some(picture.clone()) }]].concat();
    let message = |role: Role, content| Message { role: role.into(), content, ..Message::default() };
    let messages =
        (0..30).flat_map(|_| [message(Role::User, shown()), message(Role::Assistant, text("nice"))]).collect();
    let talk = SessionCheckpoint { messages, ..long_talk() };
    let heard = asked("anthropic", Providers::new().with(claude), AgentLimits::default(), talk).await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    let sent: Vec<_> = server.received_requests().await.unwrap().iter().map(pictures).collect();
    assert!(sent.first() == Some(&30) && sent.last().is_some_and(|left| (1..=20).contains(left)), "{sent:?}");
}
