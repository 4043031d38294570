//! What a worker does about tools that are agents: the front runs them.

mod support;

use croft_proto::v1::execute_step_request::Message as ToWorker;
use croft_proto::v1::execute_step_response::Message as FromWorker;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::tool_spec::Source;
use croft_proto::v1::{
    AgentSpec, ApprovalResolved, JournalledToolCall, ReplayClass, StepCancel, StepStart, StopReason, SubAgentCall,
    SubAgentResult, SubAgentTool, ToolResult, ToolSpec,
};
use serde_json::json;
use support::*;

fn delegating() -> AgentSpec {
    let source = Some(Source::SubAgent(SubAgentTool { agent: "reader".into() }));
    let ask = ToolSpec { name: "ask".into(), source, timeout_ms: 1, ..ToolSpec::default() };
    let reader = AgentSpec { name: "reader".into(), ..agent() };
    AgentSpec { tools: vec![ask, builtin("clock")], sub_agents: vec![reader], ..agent() }
}

fn steps() -> Vec<croft_proto::v1::ContentBlock> {
    script(&json!([{"tool_call": {"name": "ask", "arguments": {"message": "read"}}}, {"text": "thank you"}]))
}

fn answer(call: &SubAgentCall, words: &str, is_error: bool) -> ToWorker {
    let tool_call_id = call.tool_call_id.clone();
    ToWorker::SubAgentResult(SubAgentResult { tool_call_id, content: text(words), is_error })
}

fn result(heard: &Heard) -> &ToolResult {
    let result = heard.durables.iter().find_map(|kind| match kind {
        Kind::ToolResult(result) => Some(result),
        _ => None,
    });
    result.expect("a tool's result")
}

/// Hears on until the front is asked to run a sub-agent.
async fn asked(front: &mut Front) -> SubAgentCall {
    match front.until(|message| matches!(message, FromWorker::SubAgentCall(_))).await {
        FromWorker::SubAgentCall(call) => call,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn the_front_is_asked_once_the_call_is_stored_and_its_word_is_the_result() {
    let worker = worker().await;
    let session_id = session();
    init(&worker.client, &session_id, &delegating()).await.unwrap();
    let mut front = Front::open(&worker.client, start(&session_id, steps())).await;
    let call = asked(&mut front).await;
    assert_eq!((call.name.as_str(), call.arguments_json.as_str()), ("ask", r#"{"message":"read"}"#));
    let journalled = front.heard.durables.iter().find_map(|kind| match kind {
        Kind::ToolCall(call) => Some(call.replay()),
        _ => None,
    });
    assert_eq!(journalled, Some(ReplayClass::Idempotent), "before it is asked for, and to be asked for again");
    // The tool's own time is the sub-agent's, which the front keeps.
    tokio::time::sleep(std::time::Duration::from_mins(2)).await;
    front.send(answer(&call, "a good book", false)).await;
    let heard = front.finish().await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    assert_eq!((texts(&result(&heard).content).as_str(), result(&heard).is_error), ("a good book", false));
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_told_to_the_model_and_the_turn_goes_on() {
    let worker = worker().await;
    let session_id = session();
    init(&worker.client, &session_id, &delegating()).await.unwrap();
    let mut front = Front::open(&worker.client, start(&session_id, steps())).await;
    let call = asked(&mut front).await;
    front.send(answer(&call, "The sub-agent was interrupted.", true)).await;
    let heard = front.finish().await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    assert!(result(&heard).is_error);
}

#[tokio::test(start_paused = true)]
async fn another_worker_asks_for_the_same_call_and_nobody_else() {
    let (lost, other) = (worker().await, worker().await);
    let session_id = session();
    init(&lost.client, &session_id, &delegating()).await.unwrap();
    let mut front = Front::open(&lost.client, start(&session_id, steps())).await;
    let call = asked(&mut front).await;
    let begun = front.heard.durables.iter().find_map(|kind| match kind {
        Kind::ToolCall(call) => Some(call.clone()),
        _ => None,
    });
    let checkpoint = front.heard.checkpoints.last().cloned();
    drop(front);

    init(&other.client, &session_id, &delegating()).await.unwrap();
    let journal = vec![JournalledToolCall { call: begun, result: None, times_begun: 1 }];
    let resumed = StepStart { checkpoint, journal, epoch: 2, ..start(&session_id, Vec::new()) };
    let mut front = Front::open(&other.client, resumed).await;
    assert_eq!(asked(&mut front).await, call);
    front.send(answer(&call, "a good book", false)).await;
    let heard = front.finish().await;
    assert_eq!(heard.story(), ["started", "result", "attempt", "message", "completed"], "no second call is told");
}

/// Its turn ended with the question, and the front ends what a turn leaves running: the next turn was given an error for it.
#[tokio::test(start_paused = true)]
async fn a_sub_agent_beside_a_call_of_unknown_outcome_ends_before_people_are_asked() {
    let spade = Spade::default();
    let (lost, other) = (worker_with_spade(&spade).await.0, worker_with_spade(&spade).await.0);
    let mut agent = delegating();
    agent.tools.push(ToolSpec { replay: ReplayClass::Unsafe.into(), ..builtin("spade") });
    let session_id = session();
    init(&lost.client, &session_id, &agent).await.unwrap();
    let dig = json!({"tool_call": {"name": "spade", "arguments": {"depth": 1}}});
    let ask = json!({"tool_call": {"name": "ask", "arguments": {"message": "read"}}});
    let steps = script(&json!([dig, ask, {"text": "thank you"}]));
    let mut front = Front::open(&lost.client, start(&session_id, steps)).await;
    let call = asked(&mut front).await;
    let calls = front.heard.durables.iter().filter_map(|kind| match kind {
        Kind::ToolCall(call) => Some(JournalledToolCall { call: Some(call.clone()), result: None, times_begun: 1 }),
        _ => None,
    });
    // The worker was lost before it told what came of the spade.
    let (journal, checkpoint) = (calls.collect::<Vec<_>>(), front.heard.checkpoints.last().cloned());
    assert_eq!(journal.len(), 2);
    drop(front);

    init(&other.client, &session_id, &agent).await.unwrap();
    let resumed = StepStart { checkpoint, journal, epoch: 2, ..start(&session_id, Vec::new()) };
    let mut front = Front::open(&other.client, resumed).await;
    assert_eq!(asked(&mut front).await, call);
    front.send(answer(&call, "a good book", false)).await;
    let heard = front.finish().await;
    assert_eq!(heard.story(), ["started", "result", "approval", "completed"]);
    assert_eq!(heard.stop_reason(), StopReason::RequiresAction);
    let Kind::ApprovalRequired(question) = &heard.durables[2] else { panic!("{heard:?}") };
    assert_eq!((question.tool_name.as_str(), question.repeat), ("spade", true));

    let no = ApprovalResolved { approval_id: question.approval_id.clone(), ..ApprovalResolved::default() };
    let checkpoint = Some(heard.checkpoint());
    let next = StepStart {
        turn_id: "turn-2".into(),
        checkpoint,
        decisions: vec![no],
        epoch: 3,
        ..start(&session_id, Vec::new())
    };
    let heard = Front::open(&other.client, next).await.finish().await;
    assert_eq!((heard.stop_reason(), heard.sub_agents.len()), (StopReason::EndTurn, 0));
    let outputs = format!("{:?}", heard.checkpoint().messages[2]);
    assert!(outputs.contains("a good book") && outputs.contains("not to be repeated"), "{outputs}");
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_is_stopped_waits_for_no_sub_agent() {
    let worker = worker().await;
    let session_id = session();
    init(&worker.client, &session_id, &delegating()).await.unwrap();
    let mut front = Front::open(&worker.client, start(&session_id, steps())).await;
    let call = asked(&mut front).await;
    front.send(ToWorker::Cancel(StepCancel { stop_reason: StopReason::Interrupted.into() })).await;
    // What comes too late is for nobody.
    front.send(answer(&call, "a good book", false)).await;
    let heard = front.finish().await;
    assert_eq!(heard.stop_reason(), StopReason::Interrupted);
}

#[tokio::test(start_paused = true)]
async fn a_sub_agent_that_cannot_run_here_is_refused_with_its_caller() {
    let worker = worker().await;
    let mut agent = delegating();
    agent.sub_agents[0].tools = vec![builtin("spade")];
    let refused = init(&worker.client, &session(), &agent).await.unwrap_err();
    assert_eq!(refused.message(), "tool spade can't run here: it is not built in");
}
