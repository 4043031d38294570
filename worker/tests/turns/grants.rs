//! A grant for a model call, and none.

use croft_llm::Class;
use croft_proto::v1::execute_step_request::Message as ToWorker;
use croft_proto::v1::execute_step_response::Message as FromWorker;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{AgentLimits, AgentSpec, Grant, GrantRefused, StopReason};

use crate::support::*;
use crate::{attempts, error};

/// For a model that gives less, or by a budget that has room for less.
#[tokio::test(start_paused = true)]
async fn a_model_is_asked_for_no_more_output_than_was_granted() {
    let flaky = Flaky::new(0, Class::Overload);
    let requests = std::sync::Arc::clone(&flaky.requests);
    let worker = worker_with_flaky(flaky).await;
    for (wanted, granted, expected) in
        [(0, 8_192, 8_192), (0, 99_999, 99_999), (0, 0, 4_096), (500, 99_999, 500), (500, 77, 77), (500, 0, 500)]
    {
        let session_id = session();
        let limits = Some(AgentLimits { output_tokens_max: wanted, ..AgentLimits::default() });
        init(&worker.client, &session_id, &AgentSpec { model: "weather".into(), limits, ..agent() }).await.unwrap();
        let mut front = Front::open(&worker.client, start(&session_id, text("hello"))).await;
        front.grants = false;
        front.provider = "flaky".into();
        front.until(|message| matches!(message, FromWorker::GrantRequest(_))).await;
        assert_eq!(front.heard.grants[0].output_tokens_max, wanted, "without a word of the agent's the front chooses");
        let grant = Grant { output_tokens_max: granted, ..front.grant(&front.heard.grants[0]) };
        front.send(ToWorker::Grant(grant)).await;
        assert_eq!(front.finish().await.stop_reason(), StopReason::EndTurn);
        assert_eq!(requests.lock().unwrap().last().unwrap().output_tokens_max, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn the_grant_says_which_model_is_called() {
    let worker = worker().await;
    let session_id = session();
    let agent = AgentSpec { model: "the-best-one".into(), ..agent() };
    init(&worker.client, &session_id, &agent).await.unwrap();
    let mut front = Front::open(&worker.client, start(&session_id, text("hello"))).await;
    front.model = "a-cheaper-one".into();
    let heard = front.finish().await;
    assert_eq!(heard.grants[0].model, "the-best-one");
    assert!(heard.grants[0].input_tokens_estimated > 5, "the system prompt, the tools and the message");
    assert_eq!(attempts(&heard)[0].model, "a-cheaper-one");
    let Kind::AgentMessage(message) = &heard.durables[2] else { panic!() };
    assert_eq!(message.model, "a-cheaper-one");
}

#[tokio::test(start_paused = true)]
async fn a_refused_grant_ends_the_turn_with_its_reason() {
    let worker = worker().await;
    for (reason, stop_reason, told) in [
        ("BUDGET", StopReason::Budget, None),
        ("RATE_LIMIT", StopReason::Error, Some(true)),
        ("MODEL_UNKNOWN", StopReason::Error, Some(false)),
    ] {
        let session_id = session();
        init(&worker.client, &session_id, &agent()).await.unwrap();
        let mut front = Front::open(&worker.client, start(&session_id, text("hello"))).await;
        front.grants = false;
        front.until(|message| matches!(message, FromWorker::GrantRequest(_))).await;
        let request_id = front.heard.grants[0].request_id.clone();
        let message = "no more today".into();
        front.send(ToWorker::GrantRefused(GrantRefused { request_id, reason: reason.into(), message })).await;
        let heard = front.finish().await;
        assert_eq!(heard.stop_reason(), stop_reason);
        assert!(attempts(&heard).is_empty(), "no attempt was made");
        if let Some(retryable) = told {
            assert_eq!((error(&heard).reason.as_str(), error(&heard).retryable), (reason, retryable));
        } else {
            assert_eq!(heard.story(), ["started", "completed"]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_front_that_never_answers_a_grant_ends_the_turn() {
    let worker = worker().await;
    let session_id = session();
    init(&worker.client, &session_id, &agent()).await.unwrap();
    let mut front = Front::open(&worker.client, start(&session_id, text("hello"))).await;
    front.grants = false;
    let heard = front.finish().await;
    assert_eq!((heard.stop_reason(), error(&heard).reason.as_str()), (StopReason::Error, "GRANT_TIMEOUT"));
}

#[tokio::test(start_paused = true)]
async fn a_grant_for_a_provider_that_is_not_there_ends_the_turn() {
    let worker = worker().await;
    let session_id = session();
    init(&worker.client, &session_id, &agent()).await.unwrap();
    let mut front = Front::open(&worker.client, start(&session_id, text("hello"))).await;
    front.provider = "gemini".into();
    let heard = front.finish().await;
    assert_eq!((heard.stop_reason(), error(&heard).reason.as_str()), (StopReason::Error, "PROVIDER_MISSING"));
}
