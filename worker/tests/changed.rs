//! Other arguments in place of a yes: what is made of the call, and what the model hears of it.

#![expect(clippy::unwrap_used, reason = "a helper of tests may fail loudly")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use croft_proto::v1::content_block::Block;
use croft_proto::v1::execute_step_request::Message as ToWorker;
use croft_proto::v1::guardrail_spec::Check;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    AgentSpec, ApprovalResolved, ArgumentMatch, GuardrailSpec, GuardrailStage, HttpCheck, JournalledToolCall,
    PatternCheck, Permission, PermissionRule, ReplayClass, SessionCheckpoint, StepCancel, StepStart, StopReason,
    ToolCall, ToolSpec,
};
use croft_worker::RuntimeOptions;
use serde_json::{Value, json};
use support::*;
use tokio::sync::Semaphore;
use wiremock::matchers::path;
use wiremock::{Mock, MockServer, ResponseTemplate};

/// An agent with a spade that people are asked about.
fn cautious(replay: ReplayClass) -> AgentSpec {
    let tool = ToolSpec { permission: Permission::Ask.into(), replay: replay.into(), ..builtin("spade") };
    AgentSpec { tools: vec![tool], ..agent() }
}

fn dig(depth: u32) -> Value {
    json!({"tool_call": {"name": "spade", "arguments": {"depth": depth}}})
}

/// A turn whose only call waits for a person.
async fn asked(worker: &Worker, session_id: &str, agent: &AgentSpec) -> (Front, String) {
    init(&worker.client, session_id, agent).await.unwrap();
    let steps = script(&json!([dig(1), {"text": "done"}]));
    let mut front = Front::open(&worker.client, start(session_id, steps)).await;
    let Kind::ApprovalRequired(question) = front.until_event(|kind| matches!(kind, Kind::ApprovalRequired(_))).await
    else {
        panic!()
    };
    assert!(!question.repeat);
    (front, question.approval_id)
}

async fn give(front: &Front, approval_id: String, arguments_json: &str) {
    let arguments_json = arguments_json.to_owned();
    let given = ApprovalResolved { approval_id, arguments_json, ..ApprovalResolved::default() };
    front.send(ToWorker::ApprovalResolved(given)).await;
}

async fn with(spade: &Spade, agent: &AgentSpec, arguments_json: &str) -> Heard {
    let (worker, _) = worker_with_spade(spade).await;
    let (front, approval_id) = asked(&worker, &session(), agent).await;
    give(&front, approval_id, arguments_json).await;
    front.finish().await
}

fn calls(heard: &Heard) -> Vec<ToolCall> {
    let call = |kind: &Kind| match kind {
        Kind::ToolCall(call) => Some(call.clone()),
        _ => None,
    };
    heard.durables.iter().filter_map(call).collect()
}

/// The only result that the model was shown, and whether it is an error.
fn output(checkpoint: &SessionCheckpoint) -> (String, bool) {
    let Some(Block::ToolOutput(output)) = &checkpoint.messages[2].content[0].block else { panic!("{checkpoint:?}") };
    (texts(&output.content), output.is_error)
}

fn depths(spade: &Spade) -> Vec<Value> {
    spade.digs.lock().unwrap().iter().map(|dig| dig.arguments["depth"].clone()).collect()
}

#[tokio::test(start_paused = true)]
async fn the_call_is_made_with_them_and_the_model_is_told() {
    let spade = Spade::default();
    let heard = with(&spade, &cautious(ReplayClass::Unsafe), r#"{"depth":9}"#).await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    assert_eq!(depths(&spade), [json!(9)]);
    let [call] = &calls(&heard)[..] else { panic!("{:?}", heard.story()) };
    assert_eq!(call.arguments_json, r#"{"depth":9}"#);
    assert_eq!(call.idempotency_key, spade.digs.lock().unwrap()[0].idempotency_key);
    let (text, is_error) = output(&heard.checkpoint());
    assert!(!is_error && text.contains("dug 9"), "{text}");
    assert!(text.contains(r#"A person changed the arguments of this call. It was made with {"depth":9}"#), "{text}");
    let Some(Block::ToolUse(own)) = heard.checkpoint().messages[1].content.iter().find_map(|block| {
        let block = block.block.clone()?;
        matches!(block, Block::ToolUse(_)).then_some(block)
    }) else {
        panic!()
    };
    assert_eq!(own.arguments_json, r#"{"depth":1}"#, "what the model said stays what it said");
}

#[tokio::test(start_paused = true)]
async fn they_are_held_to_what_the_models_own_are() {
    let schema = json!({"type": "object", "properties": {"depth": {"type": "integer", "maximum": 5}}}).to_string();
    let mut strict = cautious(ReplayClass::Unsafe);
    strict.tools[0].input_schema_json = schema;
    let mut ruled = cautious(ReplayClass::Unsafe);
    ruled.permission_rules = vec![PermissionRule {
        tool: "spade".into(),
        arguments: vec![ArgumentMatch { path: "/depth".into(), pattern: "^9$".into() }],
        permission: Permission::Deny.into(),
        message: "Not below the roots.".into(),
    }];
    let mut guarded = cautious(ReplayClass::Unsafe);
    guarded.guardrails = vec![GuardrailSpec {
        name: "strict".into(),
        stages: vec![GuardrailStage::ToolArguments.into()],
        check: Some(Check::Pattern(PatternCheck { denied: vec!["9".into()] })),
        ..GuardrailSpec::default()
    }];
    for (agent, why) in [
        (&strict, "do not fit the tool's schema"),
        (&ruled, "Not below the roots."),
        (&guarded, "\"strict\" refused its arguments"),
    ] {
        let spade = Spade::default();
        let heard = with(&spade, agent, r#"{"depth":9}"#).await;
        assert_eq!((heard.stop_reason(), spade.digs()), (StopReason::EndTurn, 0), "{why}");
        assert_eq!(calls(&heard), [], "{why}");
        let (text, is_error) = output(&heard.checkpoint());
        let told = "A person changed the arguments of this call, and it was not made.";
        assert!(is_error && text.contains(told) && text.contains(why), "{text}");

        let spade = Spade::default();
        let heard = with(&spade, agent, r#"{"depth":2}"#).await;
        assert_eq!((heard.stop_reason(), depths(&spade)), (StopReason::EndTurn, vec![json!(2)]), "{why}");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_goes_on_after_a_lost_worker_makes_it_with_them_too() {
    let agent = cautious(ReplayClass::Idempotent);
    let (worker, _) = worker_with_spade(&Spade::default()).await;
    let session_id = session();
    let (mut front, approval_id) = asked(&worker, &session_id, &agent).await;
    front.acknowledges = false;
    give(&front, approval_id, r#"{"depth":9}"#).await;
    let Kind::ToolCall(call) = front.until_event(|kind| matches!(kind, Kind::ToolCall(_))).await else { panic!() };
    let checkpoint = front.heard.checkpoints.last().unwrap().clone();
    let journal = vec![JournalledToolCall { call: Some(call), result: None, times_begun: 1 }];
    goes_on(&agent, StepStart { journal, ..resumed(&session_id, checkpoint) }).await;
}

/// The checkpoint is behind the call's event, so it alone tells of it.
#[tokio::test(start_paused = true)]
async fn a_call_that_outlasts_the_drain_is_handed_back_with_them() {
    let agent = cautious(ReplayClass::Idempotent);
    let spade = Spade { gate: Some(Arc::new(Semaphore::new(0))), ..Spade::default() };
    let options = RuntimeOptions { drain: Duration::from_millis(500), ..options() };
    let builtins = croft_worker::tools::Builtins::default().with("spade", spade.clone());
    let providers = croft_llm::Providers::new().with(croft_llm::scripted::Scripted::new());
    let worker = worker_with(options, providers, builtins).await;
    let session_id = session();
    let (mut front, approval_id) = asked(&worker, &session_id, &agent).await;
    give(&front, approval_id, r#"{"depth":9}"#).await;
    front.until_event(|kind| matches!(kind, Kind::ToolCall(_))).await;
    spade.digging().await;
    worker.tasks.stopping().cancel();
    let heard = front.finish().await;
    assert_eq!(heard.stop_reason(), StopReason::HandedBack);
    goes_on(&agent, resumed(&session_id, heard.checkpoint())).await;
}

/// The drain is over while a guardrail's server looks at what the person gave: the call is not begun, and whoever goes on asks that server
/// anew. A turn whose time is up then has no call to doubt.
#[tokio::test]
async fn a_call_whose_arguments_are_being_checked_is_not_begun() {
    let server = MockServer::start().await;
    let looks = || Mock::given(path("/v1/check"));
    let allowed = || ResponseTemplate::new(200).set_body_json(json!({"allowed": true}));
    let mut agent = cautious(ReplayClass::Idempotent);
    let check = HttpCheck { url: format!("{}/v1/check", server.uri()), timeout_ms: 60_000, fail_open: false };
    agent.guardrails = vec![GuardrailSpec {
        name: "distant".into(),
        stages: vec![GuardrailStage::ToolArguments.into()],
        check: Some(Check::Http(check)),
        ..GuardrailSpec::default()
    }];
    for is_handed_back in [true, false] {
        server.reset().await;
        looks().respond_with(allowed()).mount(&server).await;
        let spade = Spade::default();
        let options = RuntimeOptions { drain: Duration::from_millis(100), ..options() };
        let builtins = croft_worker::tools::Builtins::default().with("spade", spade.clone());
        let providers = croft_llm::Providers::new().with(croft_llm::scripted::Scripted::new());
        let worker = worker_with(options, providers, builtins).await;
        let session_id = session();
        let (front, approval_id) = asked(&worker, &session_id, &agent).await;
        server.reset().await;
        looks().respond_with(allowed().set_delay(Duration::from_mins(1))).mount(&server).await;
        give(&front, approval_id.clone(), r#"{"depth":9}"#).await;
        while server.received_requests().await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if is_handed_back {
            worker.tasks.stopping().cancel();
        } else {
            front.send(ToWorker::Cancel(StepCancel { stop_reason: StopReason::Interrupted.into() })).await;
        }
        let heard = front.finish().await;
        assert_eq!((spade.digs(), calls(&heard)), (0, Vec::new()));
        if !is_handed_back {
            assert_eq!(heard.stop_reason(), StopReason::Interrupted);
            let (text, _) = output(&heard.checkpoint());
            assert!(text.contains("The call was not made"), "{text}");
            continue;
        }
        assert_eq!(heard.stop_reason(), StopReason::HandedBack);
        assert_eq!(heard.checkpoint().journal, []);
        server.reset().await;
        looks().respond_with(allowed()).mount(&server).await;
        let arguments_json = r#"{"depth":9}"#.to_owned();
        let given = ApprovalResolved { approval_id: approval_id.clone(), arguments_json, ..Default::default() };
        let start = StepStart {
            asked_approval_ids: vec![approval_id],
            decisions: vec![given],
            ..resumed(&session_id, heard.checkpoint())
        };
        goes_on(&agent, start).await;
    }
}

#[tokio::test(start_paused = true)]
async fn of_one_that_is_interrupted_the_model_hears_what_it_was_made_with() {
    let spade = Spade { gate: Some(Arc::new(Semaphore::new(0))), ..Spade::default() };
    let (worker, _) = worker_with_spade(&spade).await;
    let (mut front, approval_id) = asked(&worker, &session(), &cautious(ReplayClass::Unsafe)).await;
    give(&front, approval_id, r#"{"depth":9}"#).await;
    front.until_event(|kind| matches!(kind, Kind::ToolCall(_))).await;
    spade.digging().await;
    front.send(ToWorker::Cancel(StepCancel { stop_reason: StopReason::Interrupted.into() })).await;
    let heard = front.finish().await;
    assert_eq!(heard.stop_reason(), StopReason::Interrupted);
    let (text, _) = output(&heard.checkpoint());
    assert!(text.contains(r#"It was made with {"depth":9}"#) && text.contains("may have taken effect"), "{text}");
}

fn resumed(session_id: &str, checkpoint: SessionCheckpoint) -> StepStart {
    StepStart { checkpoint: Some(checkpoint), epoch: 2, ..start(session_id, Vec::new()) }
}

/// On another worker, to the end, where the call is made once with what the person gave.
async fn goes_on(agent: &AgentSpec, start: StepStart) {
    let spade = Spade::default();
    let (worker, _) = worker_with_spade(&spade).await;
    init(&worker.client, &start.session_id, agent).await.unwrap();
    let heard = Front::open(&worker.client, start).await.finish().await;
    assert_eq!((heard.stop_reason(), depths(&spade)), (StopReason::EndTurn, vec![json!(9)]));
    let (text, _) = output(&heard.checkpoint());
    assert!(text.contains(r#"It was made with {"depth":9}"#), "{text}");
}
