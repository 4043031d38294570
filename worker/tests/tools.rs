//! What a turn does with the model's tool calls.

#![expect(clippy::unwrap_used, reason = "a helper of tests may fail loudly")]

mod support;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use croft_proto::v1::content_block::Block;
use croft_proto::v1::execute_step_request::Message as ToWorker;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    AgentLimits, AgentSpec, ApprovalRequired, ApprovalResolved, ContentBlock, EventStored, Permission, ReplayClass,
    StepCancel, StopReason, ToolCall, ToolOutput, ToolResult, ToolSpec,
};
use serde_json::{Value, json};
use support::*;
use tokio::sync::Semaphore;
use tokio::time::Instant;

fn dig(depth: u32) -> Value {
    json!({"tool_call": {"name": "spade", "arguments": {"depth": depth}}})
}

fn calls(heard: &Heard) -> Vec<ToolCall> {
    let call = |kind: &Kind| match kind {
        Kind::ToolCall(call) => Some(call.clone()),
        _ => None,
    };
    heard.durables.iter().filter_map(call).collect()
}

fn results(heard: &Heard) -> Vec<ToolResult> {
    let result = |kind: &Kind| match kind {
        Kind::ToolResult(result) => Some(result.clone()),
        _ => None,
    };
    heard.durables.iter().filter_map(result).collect()
}

/// The results as the model sees them: in the order of its calls.
fn outputs(heard: &Heard) -> Vec<ToolOutput> {
    let output = |block: ContentBlock| match block.block {
        Some(Block::ToolOutput(output)) => Some(output),
        _ => None,
    };
    heard.checkpoint().messages.into_iter().flat_map(|message| message.content).filter_map(output).collect()
}

/// Of a turn whose calls are all over: what is told of each is what the model sees of it.
fn result_texts(heard: &Heard) -> Vec<String> {
    let outputs = outputs(heard);
    let told: HashMap<_, _> = results(heard).into_iter().map(|result| (result.tool_call_id.clone(), result)).collect();
    assert_eq!(told.len(), outputs.len());
    for output in &outputs {
        let told = &told[&output.tool_call_id];
        assert_eq!((&told.content, told.is_error), (&output.content, output.is_error));
    }
    outputs.iter().map(|output| texts(&output.content)).collect()
}

fn with_permission(agent: &AgentSpec, permission: Permission) -> AgentSpec {
    let tools = vec![ToolSpec { permission: permission.into(), ..builtin("spade") }, builtin("clock")];
    AgentSpec { tools, ..agent.clone() }
}

/// A step of a new session that has begun.
async fn begun(worker: &Worker, agent: &AgentSpec, steps: Value) -> Front {
    let session_id = session();
    init(&worker.client, &session_id, agent).await.unwrap();
    Front::open(&worker.client, start(&session_id, script(&steps))).await
}

async fn approval(front: &mut Front) -> ApprovalRequired {
    let Kind::ApprovalRequired(approval) = front.until_event(|kind| matches!(kind, Kind::ApprovalRequired(_))).await
    else {
        panic!()
    };
    approval
}

async fn resolve(front: &Front, approval: &ApprovalRequired, approved: bool, message: &str) {
    let approval_id = approval.approval_id.clone();
    let resolved = ApprovalResolved { approval_id, approved, message: message.into(), ..Default::default() };
    front.send(ToWorker::ApprovalResolved(resolved)).await;
}

/// Lets the worker do whatever it can do without us.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}

#[tokio::test(start_paused = true)]
async fn a_call_is_made_only_once_its_event_is_stored() {
    let spade = Spade::default();
    let (worker, agent) = worker_with_spade(&spade).await;
    let mut front = begun(&worker, &agent, json!([dig(1), dig(2), {"text": "done"}])).await;
    front.acknowledges = false;
    front.until_event(|kind| matches!(kind, Kind::ToolCall(_))).await;
    front.until_event(|kind| matches!(kind, Kind::ToolCall(_))).await;
    settle().await;
    assert_eq!(spade.digs(), 0);
    // started, attempt, message, call, call
    front.send(ToWorker::EventStored(EventStored { event_index: 3, seq: 3 })).await;
    settle().await;
    assert_eq!(spade.digs(), 0, "an older event is not the call's");
    front.send(ToWorker::EventStored(EventStored { event_index: 4, seq: 4 })).await;
    settle().await;
    assert_eq!(spade.digs(), 1, "only the first call is stored");
    front.send(ToWorker::EventStored(EventStored { event_index: 5, seq: 5 })).await;
    let heard = front.finish().await;
    assert_eq!(spade.digs(), 2);
    assert_eq!(result_texts(&heard), ["dug 1", "dug 2"]);
}

#[tokio::test(start_paused = true)]
async fn calls_run_at_a_time_and_the_model_sees_their_results_in_its_order() {
    let (worker, agent) = worker_with_spade(&Spade::default()).await;
    let nap = |sleep_ms: u32| json!({"tool_call": {"name": "clock", "arguments": {"sleep_ms": sleep_ms}}});
    let began = Instant::now();
    let steps = json!([nap(3_000), nap(1_000), nap(2_000), {"text": "done"}]);
    let heard = begun(&worker, &agent, steps).await.finish().await;
    assert!(began.elapsed() < Duration::from_millis(3_500), "not one after the other");
    let asked: Vec<_> = calls(&heard).into_iter().map(|call| call.tool_call_id).collect();
    let answered: Vec<_> = outputs(&heard).into_iter().map(|output| output.tool_call_id).collect();
    assert_eq!(asked, answered);
    let durations: Vec<_> = results(&heard).iter().map(|result| result.duration_ms / 1_000).collect();
    assert_eq!(durations, [1, 2, 3], "each is told when it is there");
}

/// What does not fit is quoted.
#[tokio::test(start_paused = true)]
async fn a_call_that_is_refused_for_large_arguments_is_told_of_within_the_bounds_of_a_result() {
    let (worker, agent) = worker_with_spade(&Spade::default()).await;
    let depth = "deep".repeat(100 * 1024);
    let large = json!({"tool_call": {"name": "spade", "arguments": {"depth": depth}}});
    let heard = begun(&worker, &agent, json!([large, {"text": "done"}])).await.finish().await;
    let [told] = &result_texts(&heard)[..] else { panic!() };
    assert!(told.contains("do not fit") && told.ends_with(" bytes in all]"), "{}", &told[..80]);
    assert!(told.len() < depth.len(), "{} bytes", told.len());
}

#[tokio::test(start_paused = true)]
async fn a_call_tells_its_class_of_replay_and_a_key_of_its_own() {
    let spade = Spade::default();
    let (worker, agent) = worker_with_spade(&spade).await;
    let safe = ToolSpec { replay: ReplayClass::Safe.into(), ..builtin("clock") };
    let agent = AgentSpec { tools: vec![builtin("spade"), safe], ..agent };
    let clock = json!({"tool_call": {"name": "clock"}});
    let heard = begun(&worker, &agent, json!([dig(1), dig(2), clock, {"text": "done"}])).await.finish().await;
    let calls = calls(&heard);
    let classes: Vec<_> = calls.iter().map(ToolCall::replay).collect();
    assert_eq!(classes, [ReplayClass::Unsafe, ReplayClass::Unsafe, ReplayClass::Safe]);
    assert_ne!(calls[0].idempotency_key, calls[1].idempotency_key);
    // Which of the two is begun first is open.
    let mut heard_by_tool: Vec<_> = spade.digs.lock().unwrap().iter().map(|dig| dig.idempotency_key.clone()).collect();
    let mut journalled = vec![calls[0].idempotency_key.clone(), calls[1].idempotency_key.clone()];
    heard_by_tool.sort();
    journalled.sort();
    assert_eq!(heard_by_tool, journalled, "the tool hears the journalled keys");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_called_is_told_to_the_model() {
    let spade = Spade::default();
    let (worker, agent) = worker_with_spade(&spade).await;
    let call = |name: &str, arguments: Value| json!({"tool_call": {"name": name, "arguments": arguments}});
    let steps = json!([
        call("shovel", json!({})),
        call("spade", json!("{\"depth\":")),
        call("spade", json!("[1]")),
        call("spade", json!({"depth": "deep"})),
        call("spade", json!({"width": 1})),
        {"text": "I see"},
    ]);
    let heard = begun(&worker, &agent, steps).await.finish().await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    assert_eq!(spade.digs(), 0);
    let results = results(&heard);
    assert!(results.iter().all(|result| result.is_error));
    let expected = ["no tool \"shovel\"", "not valid JSON", "do not fit", "do not fit", "do not fit"];
    assert_eq!(results.len(), expected.len());
    for (result, expected) in results.iter().zip(expected) {
        let told = texts(&result.content);
        assert!(told.contains(expected), "{told}");
    }
    let Some(Block::ToolOutput(output)) = &heard.checkpoint().messages[2].content[0].block else { panic!() };
    assert!(output.is_error, "the model is told that it is an error");
}

#[tokio::test(start_paused = true)]
async fn a_tool_that_fails_is_told_to_the_model() {
    let (worker, agent) = worker_with_spade(&Spade { breaks: true, ..Spade::default() }).await;
    let heard = begun(&worker, &agent, json!([dig(1), {"text": "oh"}])).await.finish().await;
    let [result] = &results(&heard)[..] else { panic!() };
    assert_eq!((texts(&result.content).as_str(), result.is_error), ("The spade broke.", true));
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
}

#[tokio::test(start_paused = true)]
async fn a_denied_tool_is_not_called() {
    let spade = Spade::default();
    let (worker, agent) = worker_with_spade(&spade).await;
    let agent = with_permission(&agent, Permission::Deny);
    let heard = begun(&worker, &agent, json!([dig(1), {"text": "I see"}])).await.finish().await;
    assert_eq!(spade.digs(), 0);
    assert_eq!(result_texts(&heard), ["The tool \"spade\" may not be called here."]);
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_needs_approval_is_journalled_and_made_only_after_it() {
    let spade = Spade::default();
    let (worker, agent) = worker_with_spade(&spade).await;
    let agent = with_permission(&agent, Permission::Ask);
    let mut front = begun(&worker, &agent, json!([dig(4), {"text": "done"}])).await;
    let approval = approval(&mut front).await;
    assert_eq!((approval.tool_name.as_str(), approval.arguments_json.as_str()), ("spade", r#"{"depth":4}"#));
    settle().await;
    assert_eq!(spade.digs(), 0);
    resolve(&front, &approval, true, "").await;
    let heard = front.finish().await;
    assert_eq!(result_texts(&heard), ["dug 4"]);
    assert_eq!(
        heard.story(),
        ["started", "attempt", "message", "approval", "call", "result", "attempt", "message", "completed"]
    );
}

#[tokio::test(start_paused = true)]
async fn each_of_several_approvals_stands_for_its_own_call() {
    let spade = Spade::default();
    let (worker, agent) = worker_with_spade(&spade).await;
    let agent = with_permission(&agent, Permission::Ask);
    let clock = json!({"tool_call": {"name": "clock"}});
    let mut front = begun(&worker, &agent, json!([dig(1), clock, dig(2), {"text": "done"}])).await;
    let first = approval(&mut front).await;
    let second = approval(&mut front).await;
    assert_ne!(first.approval_id, second.approval_id);
    resolve(&front, &second, true, "").await;
    resolve(&front, &first, false, "not the roses").await;
    let heard = front.finish().await;
    let told = result_texts(&heard);
    assert_eq!((told[0].as_str(), told[2].as_str()), ("A person denied this call: not the roses", "dug 2"));
    assert_eq!(spade.digs(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_interrupt_while_a_person_is_asked_ends_the_call() {
    let spade = Spade::default();
    let (worker, agent) = worker_with_spade(&spade).await;
    let agent = with_permission(&agent, Permission::Ask);
    let mut front = begun(&worker, &agent, json!([dig(1), {"text": "never"}])).await;
    approval(&mut front).await;
    front.send(ToWorker::Cancel(StepCancel { stop_reason: StopReason::Interrupted.into() })).await;
    let heard = front.finish().await;
    assert_eq!(heard.stop_reason(), StopReason::Interrupted);
    assert!(result_texts(&heard)[0].contains("not made"));
    assert_eq!(spade.digs(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_runs_out_of_time_while_a_person_is_asked_requires_action() {
    let spade = Spade::default();
    let (worker, agent) = worker_with_spade(&spade).await;
    let limits = Some(AgentLimits { turn_timeout_ms: 2_000, ..AgentLimits::default() });
    let agent = AgentSpec { limits, ..with_permission(&agent, Permission::Ask) };
    let clock = json!({"tool_call": {"name": "clock"}});
    let heard = begun(&worker, &agent, json!([dig(1), clock, {"text": "never"}])).await.finish().await;
    assert_eq!(heard.stop_reason(), StopReason::RequiresAction);
    assert_eq!(results(&heard).len(), 1, "what needed no approval was made");
    let state = heard.checkpoint();
    assert_eq!((state.messages.len(), state.messages[2].content.len()), (3, 1), "the call stays open");
    assert!(state.journal.is_empty(), "and was never begun");
}

/// Whoever goes on with a call is told of it with its arguments, beside the conversation that has them too.
#[tokio::test(start_paused = true)]
async fn large_arguments_leave_less_room_for_results() {
    const LARGE_BYTES: usize = 13 * 1024 * 1024;
    let spade = Spade { picture_bytes: LARGE_BYTES, ..Spade::default() };
    let (worker, agent) = worker_with_spade(&spade).await;
    for (padding, is_left_out) in [(0, false), (LARGE_BYTES, true)] {
        let arguments = format!("{{\"depth\": 1{}}}", " ".repeat(padding));
        let steps = json!([{"tool_call": {"name": "spade", "arguments": arguments}}, {"text": "done"}]);
        let heard = begun(&worker, &agent, steps).await.finish().await;
        assert_eq!(heard.stop_reason(), StopReason::EndTurn);
        let text = &result_texts(&heard)[0];
        assert_eq!(text.contains("its result is left out"), is_left_out, "{padding}: {text}");
    }
    assert_eq!(spade.digs(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_interrupt_in_mid_tool_keeps_what_is_done_and_ends_the_rest() {
    let spade = Spade { gate: Some(Arc::new(Semaphore::new(0))), ..Spade::default() };
    let (worker, agent) = worker_with_spade(&spade).await;
    let clock = json!({"tool_call": {"name": "clock"}});
    let mut front = begun(&worker, &agent, json!([clock, dig(1), clock, {"text": "never"}])).await;
    front.until_event(|kind| matches!(kind, Kind::ToolResult(_))).await;
    spade.digging().await;
    let began = Instant::now();
    front.send(ToWorker::Cancel(StepCancel { stop_reason: StopReason::Interrupted.into() })).await;
    let heard = front.finish().await;
    assert!(began.elapsed() < Duration::from_millis(500));
    assert_eq!(heard.stop_reason(), StopReason::Interrupted);
    let outcomes: Vec<_> = outputs(&heard).iter().map(|output| output.is_error).collect();
    assert_eq!(outcomes, [false, true, false]);
    assert!(result_texts(&heard)[1].contains("may have taken effect"));
    assert_eq!(heard.checkpoint().messages.last().unwrap().content.len(), 3, "no call stays open");
}
