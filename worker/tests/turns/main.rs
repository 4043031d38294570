//! What a turn does, told by what the front hears of it.

#![expect(clippy::unwrap_used, reason = "a helper of tests may fail loudly")]

mod grants;
mod interrupts;
mod limits;
#[path = "../support/mod.rs"]
mod support;

use std::time::Duration;

use croft_llm::Class;
use croft_proto::conversation;
use croft_proto::v1::execute_step_request::Message as ToWorker;
use croft_proto::v1::execute_step_response::Message as FromWorker;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    AgentLimits, AgentSpec, Grant, ModelAttempt, Role, SessionCheckpoint, SessionError, StepStart, StopReason,
};
use serde_json::json;
use support::*;
use tokio::time::Instant;

fn limits(limits: AgentLimits) -> AgentSpec {
    AgentSpec { limits: Some(limits), ..agent() }
}

fn attempts(heard: &Heard) -> Vec<ModelAttempt> {
    let attempt = |kind: &Kind| match kind {
        Kind::ModelAttempt(attempt) => Some(attempt.clone()),
        _ => None,
    };
    heard.durables.iter().filter_map(attempt).collect()
}

fn error(heard: &Heard) -> SessionError {
    let error = |kind: &Kind| match kind {
        Kind::Error(error) => Some(error.clone()),
        _ => None,
    };
    heard.durables.iter().find_map(error).expect("an error was told")
}

fn message(heard: &Heard) -> String {
    let message = |kind: &Kind| match kind {
        Kind::AgentMessage(message) => Some(texts(&message.content)),
        _ => None,
    };
    heard.durables.iter().filter_map(message).collect()
}

fn clock_call() -> serde_json::Value {
    json!({"tool_call": {"name": "clock", "arguments": {}}})
}

#[tokio::test(start_paused = true)]
async fn a_message_is_answered_in_one_model_call() {
    let heard = turn(&worker().await, &agent(), text("hello, garden")).await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    assert_eq!(heard.story(), ["started", "attempt", "message", "completed"]);
    assert_eq!(message(&heard), "You said: hello, garden");
    let Kind::StepStarted(started) = &heard.durables[0] else { panic!() };
    assert_eq!((started.worker.as_str(), started.namespace.as_str(), started.epoch), ("worker-0", "tenant-meadow", 1));
}

#[tokio::test(start_paused = true)]
async fn the_previews_add_up_to_the_durable_message() {
    let steps = json!([{"thinking": "let me see"}, {"text": "roses are red"}]);
    let heard = turn(&worker().await, &agent(), script(&steps)).await;
    let (mut said, mut thought) = (String::new(), String::new());
    for preview in &heard.previews {
        match preview {
            Kind::TextDelta(delta) => said.push_str(&delta.text),
            Kind::ThinkingDelta(delta) => thought.push_str(&delta.text),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((said.as_str(), thought.as_str()), ("roses are red", "let me see"));
    assert_eq!(message(&heard), said);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_tells_what_it_used_and_how_long_it_took() {
    let steps = json!([{"delay_ms": 250}, {"text": "one two", "token_delay_ms": 100}]);
    let heard = turn(&worker().await, &agent(), script(&steps)).await;
    let [attempt] = &attempts(&heard)[..] else { panic!() };
    assert_eq!((attempt.provider.as_str(), attempt.model.as_str()), ("scripted", "scripted-1"));
    assert_eq!((attempt.finish_reason.as_str(), attempt.error_class.as_str()), ("end_turn", ""));
    assert_eq!((attempt.first_token_ms, attempt.latency_ms), (Some(350), 450));
    assert_eq!((attempt.grant_id.as_str(), attempt.usage_estimated), ("grant-0", false));
    assert_eq!(attempt.usage.unwrap().output_tokens, 2);
    assert_eq!(attempt.cost_nano_usd, None, "prices are the front's");
}

/// The scripts of the page, each played whole.
#[tokio::test(start_paused = true)]
async fn what_the_page_shows_of_the_scripted_model_does_what_the_page_says() {
    let page = include_str!("../../../docs/providers.md");
    let (_, section) = page.split_once("\n## The scripted model\n").unwrap();
    let scripts: Vec<_> = section.split("```json\n").skip(1).map(|rest| rest.split_once("```").unwrap().0).collect();
    let worker = worker().await;
    let mut told = Vec::new();
    for script in &scripts {
        let heard = turn(&worker, &agent(), text(script)).await;
        told.push((heard.stop_reason(), heard.story().join(" "), attempts(&heard).len()));
    }
    let calls = "started attempt message call result attempt message completed";
    let both = "started attempt message call call result result attempt message completed";
    let fails = "started attempt attempt attempt error completed";
    assert_eq!(
        told,
        [
            (StopReason::EndTurn, calls.to_owned(), 2),
            (StopReason::EndTurn, both.to_owned(), 2),
            (StopReason::Error, fails.to_owned(), 3),
            (StopReason::MaxTokens, "started attempt message completed".to_owned(), 1),
        ]
    );
    // Each step that the table names is one that there is.
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | ")).map(|(step, _)| step);
    let steps: Vec<_> = rows.map(|step| step.replace("{…}", "{}")).collect();
    assert_eq!(steps.len(), 7, "{steps:?}");
    for step in steps {
        let heard = turn(&worker, &agent(), text(&format!("{{\"script\": [{step}]}}"))).await;
        let mistakes: Vec<_> = attempts(&heard).into_iter().map(|attempt| attempt.error_class).collect();
        assert!(!mistakes.contains(&"invalid".to_owned()), "{step}");
    }
}

#[tokio::test(start_paused = true)]
async fn tools_are_called_and_the_model_goes_on() {
    let steps = json!([
        {"text": "let me calculate"},
        {"tool_call": {"name": "calculator", "arguments": {"expression": "6*7"}}},
        {"text": "it is 42"},
    ]);
    let heard = turn(&worker().await, &agent(), script(&steps)).await;
    assert_eq!(heard.story(), ["started", "attempt", "message", "call", "result", "attempt", "message", "completed"]);
    let Kind::ToolResult(result) = &heard.durables[4] else { panic!() };
    assert_eq!((texts(&result.content).as_str(), result.is_error), ("42", false));
    let state = heard.checkpoint();
    let roles: Vec<_> = state.messages.iter().map(croft_proto::v1::Message::role).collect();
    assert_eq!(roles, [Role::User, Role::Assistant, Role::Tool, Role::Assistant]);
    assert_eq!((state.superstep, state.model_calls, state.tool_calls), (3, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_follows_each_superstep_and_the_last_is_the_final_state() {
    let steps = json!([clock_call(), {"text": "done"}]);
    let heard = turn(&worker().await, &agent(), script(&steps)).await;
    let supersteps: Vec<_> = heard.checkpoints.iter().map(|checkpoint| checkpoint.superstep).collect();
    assert_eq!(supersteps, [1, 2, 3]);
    assert_eq!(heard.checkpoints.last().unwrap().messages, heard.checkpoint().messages);
    assert!(heard.checkpoints.iter().all(|checkpoint| checkpoint.turn_id == "turn-1"));
}

#[tokio::test(start_paused = true)]
async fn a_second_turn_knows_the_first() {
    let worker = worker().await;
    let session_id = session();
    init(&worker.client, &session_id, &agent()).await.unwrap();
    let first = Front::open(&worker.client, start(&session_id, text("one"))).await.finish().await;
    let second =
        StepStart { turn_id: "turn-2".into(), checkpoint: Some(first.checkpoint()), ..start(&session_id, text("two")) };
    let heard = Front::open(&worker.client, second).await.finish().await;
    assert_eq!(message(&heard), "You said: two");
    let state = heard.checkpoint();
    assert_eq!(state.messages.len(), 4);
    assert_eq!((state.turn_id.as_str(), state.superstep, state.model_calls), ("turn-2", 2, 1), "counts are the turn's");
}

#[tokio::test(start_paused = true)]
async fn each_way_to_stop_has_its_reason() {
    let worker = worker().await;
    for (stop, expected) in [
        ("max_tokens", StopReason::MaxTokens),
        ("context_full", StopReason::ContextFull),
        ("refusal", StopReason::Refusal),
    ] {
        let heard = turn(&worker, &agent(), script(&json!([{"text": "and so"}, {"stop": stop}]))).await;
        assert_eq!(heard.stop_reason(), expected);
        assert_eq!(message(&heard), "and so");
        assert_eq!(attempts(&heard)[0].finish_reason, stop);
        let Some(Kind::StepCompleted(completed)) = heard.durables.last() else { panic!() };
        assert_eq!(completed.stop_reason(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_may_be_cut_at_the_token_limit_is_not_made() {
    let steps = json!([{"text": "I note"}, {"tool_call": {"name": "clock", "arguments": {}}, "stop": "max_tokens"}]);
    let heard = turn(&worker().await, &agent(), script(&steps)).await;
    assert_eq!(heard.stop_reason(), StopReason::MaxTokens);
    assert_eq!(heard.story(), ["started", "attempt", "message", "completed"]);
    assert_eq!(heard.checkpoint().messages[1].content.len(), 1, "no call stays open in the conversation");
}

/// A model that thinks may use all that it may say before it says anything.
#[tokio::test(start_paused = true)]
async fn an_answer_that_is_at_its_end_before_it_says_anything_is_told_with_the_reason() {
    let thinks = json!({"thinking": "Roses first, or the hedge?", "stop": "max_tokens"});
    let is_cut = json!({"tool_call": {"name": "clock", "arguments": {}}, "stop": "max_tokens"});
    for step in [thinks, is_cut] {
        let heard = turn(&worker().await, &agent(), script(&json!([step]))).await;
        assert_eq!(heard.stop_reason(), StopReason::MaxTokens);
        assert_eq!(heard.story(), ["started", "attempt", "error", "completed"], "{step}");
        assert_eq!((error(&heard).reason.as_str(), error(&heard).retryable), ("MODEL_OUTPUT_TOKENS_SPENT", false));
        let told = "the model used all 4096 output tokens, thinking included, before it wrote an answer";
        assert_eq!(error(&heard).message, told, "the agent has no limit of its own to raise");
        assert_eq!(heard.checkpoint().messages.len(), 1, "the question stays");
    }
    let limits = Some(AgentLimits { output_tokens_max: 500, ..AgentLimits::default() });
    for (granted, told) in [
        (
            500,
            "the model used all 500 output tokens, thinking included, before it wrote an answer; the agent's limit of output tokens may be raised",
        ),
        (77, "the model used all 77 output tokens, thinking included, before it wrote an answer"),
    ] {
        let (worker, session_id) = (worker().await, session());
        init(&worker.client, &session_id, &AgentSpec { limits, ..agent() }).await.unwrap();
        let steps = json!([{"thinking": "Roses first?", "stop": "max_tokens"}]);
        let mut front = Front::open(&worker.client, start(&session_id, script(&steps))).await;
        front.grants = false;
        front.until(|message| matches!(message, FromWorker::GrantRequest(_))).await;
        let grant = Grant { output_tokens_max: granted, ..front.grant(&front.heard.grants[0]) };
        front.send(ToWorker::Grant(grant)).await;
        assert_eq!(error(&front.finish().await).message, told);
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_says_nothing_is_told_of() {
    let heard = turn(&worker().await, &agent(), script(&json!([{"delay_ms": 1}]))).await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    assert_eq!(heard.story(), ["started", "attempt", "error", "completed"]);
    assert_eq!((error(&heard).reason.as_str(), error(&heard).retryable), ("MODEL_ANSWER_EMPTY", true));
    assert_eq!(heard.checkpoint().messages.len(), 1, "the question stays");
}

/// People were shown a turn that ended in order, and nothing in it.
#[tokio::test(start_paused = true)]
async fn an_answer_of_nothing_but_thoughts_is_told_of() {
    let heard = turn(&worker().await, &agent(), script(&json!([{"thinking": "hm"}]))).await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    assert_eq!(heard.story(), ["started", "attempt", "error", "message", "completed"]);
    assert_eq!((error(&heard).reason.as_str(), error(&heard).retryable), ("MODEL_ANSWER_EMPTY", true));
    let behind_a_result = turn(&worker().await, &agent(), script(&json!([clock_call(), {"thinking": "hm"}]))).await;
    assert!(!behind_a_result.story().contains(&"error"), "{:?}", behind_a_result.story());
}

/// It has done what it was asked for, and need not say so twice.
#[tokio::test(start_paused = true)]
async fn an_answer_that_adds_nothing_to_what_the_turn_came_to_is_no_failure() {
    let said = json!([{"text": "I have filed it."}, {"stop": "pause"}, {"delay_ms": 1}]);
    let called = json!([clock_call(), {"delay_ms": 1}]);
    for steps in [said, called] {
        let heard = turn(&worker().await, &agent(), script(&steps)).await;
        assert_eq!(heard.stop_reason(), StopReason::EndTurn);
        assert!(!heard.story().contains(&"error"), "{steps}: {:?}", heard.story());
        assert_eq!(attempts(&heard).len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_paused_answer_goes_on_in_another_call() {
    let steps = json!([{"text": "first half"}, {"stop": "pause"}, {"text": "second half"}]);
    let heard = turn(&worker().await, &agent(), script(&steps)).await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    assert_eq!(heard.story(), ["started", "attempt", "message", "attempt", "message", "completed"]);
}

async fn flaky_turn(flaky: Flaky) -> Heard {
    let worker = worker_with_flaky(flaky).await;
    let session_id = session();
    // A name of no family: the provider shows with the grant.
    let agent = AgentSpec { model: "weather".into(), ..agent() };
    init(&worker.client, &session_id, &agent).await.unwrap();
    let mut front = Front::open(&worker.client, start(&session_id, text("hello"))).await;
    front.provider = "flaky".into();
    front.finish().await
}

#[tokio::test(start_paused = true)]
async fn what_may_get_better_is_tried_again_each_try_under_a_grant_of_its_own() {
    let began = Instant::now();
    let heard = flaky_turn(Flaky { says: Some("I was"), ..Flaky::new(2, Class::Overload) }).await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    assert_eq!(heard.story(), ["started", "attempt", "attempt", "attempt", "message", "completed"]);
    let attempts = attempts(&heard);
    let classes: Vec<_> = attempts.iter().map(|attempt| attempt.error_class.as_str()).collect();
    assert_eq!(classes, ["overload", "overload", ""]);
    let grants: Vec<_> = attempts.iter().map(|attempt| attempt.grant_id.as_str()).collect();
    assert_eq!(grants, ["grant-0", "grant-1", "grant-2"]);
    assert!(attempts[0].usage_estimated && attempts[0].usage.unwrap().output_tokens == 2);
    assert_ne!(attempts[0].attempt_id, attempts[1].attempt_id);
    assert!(began.elapsed() >= Duration::from_millis(1_500), "0.5 s and 1 s of back-off");
    assert_eq!(heard.checkpoint().model_calls, 1, "a try again is no further call");
}

#[tokio::test(start_paused = true)]
async fn the_providers_wait_is_kept() {
    let began = Instant::now();
    let heard = flaky_turn(Flaky { retry_after: Some(Duration::from_secs(20)), ..Flaky::new(1, Class::Rate) }).await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    assert!(began.elapsed() >= Duration::from_secs(20));
}

#[tokio::test(start_paused = true)]
async fn each_class_of_error_ends_the_turn_in_its_way() {
    let cases = [
        (Class::Rate, 3, StopReason::Error, "MODEL_RATE_LIMITED"),
        (Class::Quota, 1, StopReason::Error, "MODEL_QUOTA_SPENT"),
        (Class::Overload, 3, StopReason::Error, "MODEL_OVERLOADED"),
        (Class::Auth, 1, StopReason::Error, "MODEL_KEY_REFUSED"),
        (Class::Invalid, 1, StopReason::Error, "MODEL_REQUEST_INVALID"),
        (Class::Context, 1, StopReason::ContextFull, "MODEL_CONTEXT_FULL"),
        (Class::Content, 1, StopReason::Refusal, "MODEL_CONTENT_REFUSED"),
        (Class::Timeout, 3, StopReason::Error, "MODEL_TIMEOUT"),
        (Class::Network, 3, StopReason::Error, "MODEL_UNREACHABLE"),
        (Class::Truncated, 3, StopReason::Error, "MODEL_ANSWER_TRUNCATED"),
    ];
    for (class, tries, stop_reason, reason) in cases {
        let heard = flaky_turn(Flaky::new(9, class)).await;
        assert_eq!(attempts(&heard).len(), tries, "{class:?}");
        assert_eq!(heard.stop_reason(), stop_reason, "{class:?}");
        assert_eq!((error(&heard).reason.as_str(), error(&heard).retryable), (reason, class.is_retryable()));
        assert_eq!(heard.checkpoint().messages.len(), 1, "the question stays, so that it can be asked again");
    }
}

#[tokio::test(start_paused = true)]
async fn the_model_hears_the_whole_conversation_and_the_agents_spec() {
    let flaky = Flaky::new(0, Class::Overload);
    let requests = std::sync::Arc::clone(&flaky.requests);
    let worker = worker_with_flaky(flaky).await;
    let session_id = session();
    let limits = Some(AgentLimits { output_tokens_max: 77, ..AgentLimits::default() });
    let agent = AgentSpec { model: "weather".into(), temperature: Some(0.25), limits, ..agent() };
    init(&worker.client, &session_id, &agent).await.unwrap();
    let mut front =
        Front::open(&worker.client, start(&session_id, script(&json!([clock_call(), {"text": "ok"}])))).await;
    front.provider = "flaky".into();
    front.finish().await;
    let requests = requests.lock().unwrap().clone();
    assert_eq!(requests.len(), 2);
    assert_eq!((requests[0].system.as_str(), requests[0].temperature), ("You tend the garden.", Some(0.25)));
    assert_eq!(requests[0].output_tokens_max, 77);
    let names: Vec<_> = requests[0].tools.iter().map(|tool| tool.name.as_str()).collect();
    assert_eq!(names, ["calculator", "clock"]);
    assert_eq!(requests[1].messages.len(), 3);
}

/// It must fit a message to whoever goes on with it.
#[tokio::test(start_paused = true)]
async fn a_conversation_that_grows_too_large_goes_no_further() {
    let worker = worker().await;
    let mut checkpoint = turn(&worker, &agent(), text("hello")).await.checkpoint();
    checkpoint.messages[0].content = text(&"x".repeat(conversation::BYTES_MAX - 10_000));
    let talk = |checkpoint: &SessionCheckpoint| {
        let (checkpoint, session_id) = (Some(checkpoint.clone()), session());
        let input = script(&json!([clock_call(), {"text": "done"}]));
        let client = worker.client.clone();
        async move {
            init(&client, &session_id, &agent()).await.unwrap();
            let start = StepStart { checkpoint, turn_id: "turn-2".into(), ..start(&session_id, input) };
            Front::open(&client, start).await.finish().await
        }
    };
    assert_eq!(message(&talk(&checkpoint).await), "done", "there is room");
    checkpoint.messages[0].content = text(&"x".repeat(conversation::BYTES_MAX));
    let heard = talk(&checkpoint).await;
    assert_eq!(heard.stop_reason(), StopReason::ContextFull);
    assert_eq!(
        heard.story(),
        ["started", "attempt", "message", "error", "result", "completed"],
        "the call was not made"
    );
    assert_eq!(error(&heard).reason, "CONVERSATION_TOO_LARGE");
    assert!(error(&heard).message.contains("has 33 MiB, of which 32"), "{}", error(&heard).message);
}
