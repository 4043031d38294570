//! What a model thought, and its provider does not take back: of another organization's key, or at another address, nobody can verify it.

use croft_llm::openai::Responses;
use croft_llm::scripted::Scripted;
use croft_llm::{Class, Delta, Error, Limits, Providers, Request, Settings, Stop};
use croft_proto::v1::content_block::Block;
use croft_proto::v1::{AgentSpec, NativeBlock, SessionCheckpoint, StepStart, StopReason, TokenUsage};
use croft_worker::tools::Builtins;
use secrecy::SecretString;
use wiremock::matchers::path;
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::canned::{Canned, agent, attempts, course, fails, opened, said, says, told, turn_from, worker};
use crate::support::{self, Front, Heard, init, options, session, start, text, worker_with};

/// As in `invalid_encrypted_content`.
const REFUSED: &str = "The encrypted content for item rs_00 could not be verified. Reason: Encrypted content organization_id did not match the target organization.";

fn refuses() -> Vec<Result<Delta, Error>> {
    vec![Err(Error::new("canned", Class::Invalid, REFUSED))]
}

/// An answer with a call, behind thoughts of both sorts.
fn thinks_and_calls() -> Vec<Result<Delta, Error>> {
    let native = NativeBlock { provider: "a".into(), json: "{}".into() };
    vec![
        Ok(opened()),
        Ok(Delta::Thinking { block: 0, text: "hm".into() }),
        Ok(Delta::Signature { block: 0, signature: "of-the-old-account".into() }),
        Ok(Delta::Native { block: 1, native }),
        Ok(Delta::Text { block: 2, text: "let me look".into() }),
        Ok(Delta::ToolCallStarted { block: 3, tool_call_id: "one".into(), name: "clock".into() }),
        Ok(Delta::ToolCallStopped { block: 3, arguments_json: "{}".into() }),
        Ok(Delta::Stop(Stop::ToolUse)),
    ]
}

/// How many blocks of thoughts each call was made with, and how many of calls and their results.
fn sent(canned: &Canned) -> Vec<(usize, usize)> {
    let count = |request: &Request, is_one: fn(&Block) -> bool| {
        let blocks = request.messages.iter().flat_map(|message| &message.content);
        blocks.filter(|block| block.block.as_ref().is_some_and(is_one)).count()
    };
    let thoughts: fn(&Block) -> bool = |block| matches!(block, Block::Thinking(_) | Block::Native(_));
    let calls: fn(&Block) -> bool = |block| matches!(block, Block::ToolUse(_) | Block::ToolOutput(_));
    canned.requests.lock().unwrap().iter().map(|request| (count(request, thoughts), count(request, calls))).collect()
}

#[tokio::test(start_paused = true)]
async fn thoughts_that_a_provider_does_not_take_back_are_left_out_at_once_and_for_good() {
    let a = Canned::new("a", [thinks_and_calls(), refuses(), says("noon")]);
    let b = Canned::new("b", [says("from b")]);
    let heard = turn_from(&worker(&[&a, &b]).await, &agent(), &[], None).await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    assert_eq!(course(&heard), [("a", "", ""), ("a", "invalid", ""), ("a", "", "")], "no other model takes over");
    assert_eq!(attempts(&heard)[1].usage, Some(TokenUsage::default()), "nobody charges for a refusal");
    assert_eq!(said(&heard).last(), Some(&("noon".to_owned(), "a".to_owned())));
    assert!(told(&heard).is_empty(), "nobody need know");
    assert_eq!(heard.checkpoint().model_calls, 2, "it is no further call");
    assert_eq!(sent(&a), [(0, 0), (2, 2), (0, 2)], "the call and its result stay");

    // At another worker, which has learnt nothing.
    let again = Canned::new("a", [says("later")]);
    let from = SessionCheckpoint { turn_id: "turn-0".into(), ..heard.checkpoint() };
    let heard = turn_from(&worker(&[&again]).await, &agent(), &[], Some(from)).await;
    assert_eq!((heard.stop_reason(), sent(&again)), (StopReason::EndTurn, vec![(0, 2)]));
}

/// It was something else.
#[tokio::test(start_paused = true)]
async fn a_call_that_is_refused_without_thoughts_too_gives_way() {
    let a = Canned::new("a", [thinks_and_calls(), refuses()]);
    let b = Canned::new("b", [says("noon")]);
    let heard = turn_from(&worker(&[&a, &b]).await, &agent(), &[], None).await;
    assert_eq!(said(&heard).last(), Some(&("noon".to_owned(), "b".to_owned())));
    assert_eq!(course(&heard)[1..], [("a", "invalid", ""), ("a", "invalid", ""), ("b", "", "error")]);
}

/// The one that takes over has thoughts of its own in the conversation.
#[tokio::test(start_paused = true)]
async fn what_one_provider_does_not_take_back_says_nothing_of_anothers() {
    let a = Canned::new("a", [thinks_and_calls(), fails(Class::Auth)]);
    let mut of_b = thinks_and_calls();
    of_b[5] = Ok(Delta::ToolCallStarted { block: 3, tool_call_id: "two".into(), name: "clock".into() });
    let b = Canned::new("b", [of_b, refuses(), says("noon")]);
    let heard = turn_from(&worker(&[&a, &b]).await, &agent(), &[], None).await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    assert_eq!(sent(&b), [(0, 2), (2, 4), (0, 4)]);
    let thoughts = |provider: &str| {
        let messages = heard.checkpoint().messages.into_iter().filter(|message| message.provider == provider);
        messages
            .flat_map(|message| message.content)
            .filter(|block| matches!(block.block, Some(Block::Thinking(_))))
            .count()
    };
    assert_eq!((thoughts("a"), thoughts("b")), (1, 0));
}

/// An answer of OpenAI's as it was recorded.
fn golden(name: &str) -> ResponseTemplate {
    let path = format!("{}/llm/tests/golden/openai-responses/{name}.sse", env!("CARGO_MANIFEST_DIR"));
    ResponseTemplate::new(200).set_body_raw(std::fs::read(path).unwrap(), "text/event-stream")
}

/// A turn at OpenAI's endpoint, at a worker that has just started.
async fn turn_at(server: &MockServer, turn_id: &str, from: Option<SessionCheckpoint>) -> Heard {
    let api_key = SecretString::from("sk-of-nobody").into();
    let settings = Settings { base_url: server.uri(), api_key, limits: Limits::default() };
    let providers = Providers::new().with(Responses::new(settings).unwrap()).with(Scripted::new());
    let worker = worker_with(options(), providers, Builtins::default()).await;
    let agent = AgentSpec { model: "gpt-6-sol".into(), ..support::agent() };
    let session_id = session();
    init(&worker.client, &session_id, &agent).await.unwrap();
    let start = StepStart { turn_id: turn_id.into(), checkpoint: from, ..start(&session_id, text("hello")) };
    let mut front = Front::open(&worker.client, start).await;
    (front.provider, front.model) = ("openai".into(), "gpt-6-sol".into());
    front.finish().await
}

#[tokio::test]
async fn a_session_goes_on_when_its_key_is_another_organizations() {
    let server = MockServer::start().await;
    Mock::given(path("/v1/responses")).respond_with(golden("thinking")).up_to_n_times(1).mount(&server).await;
    let first = turn_at(&server, "turn-1", None).await;
    assert_eq!(first.stop_reason(), StopReason::EndTurn);

    let error = serde_json::json!({"error": {
        "message": REFUSED,
        "type": "invalid_request_error",
        "param": null,
        "code": "invalid_encrypted_content",
    }});
    let is_of_the_other =
        |request: &wiremock::Request| String::from_utf8_lossy(&request.body).contains("gAAAAABo7w-whole");
    let refusal = ResponseTemplate::new(400).set_body_json(error);
    Mock::given(path("/v1/responses")).and(is_of_the_other).respond_with(refusal).with_priority(1).mount(&server).await;
    Mock::given(path("/v1/responses")).respond_with(golden("text")).mount(&server).await;
    let second = turn_at(&server, "turn-2", Some(first.checkpoint())).await;
    assert_eq!(second.stop_reason(), StopReason::EndTurn);
    assert_eq!(course(&second), [("gpt-6-sol", "invalid", ""), ("gpt-6-sol", "", "")]);
    let third = turn_at(&server, "turn-3", Some(second.checkpoint())).await;
    assert_eq!(course(&third), [("gpt-6-sol", "", "")], "it is not asked for the same again");
}
