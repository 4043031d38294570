//! What happens when a worker or a front is lost in mid turn, or hands it back: nothing is lost, nothing is done twice.

#![expect(clippy::unwrap_used, reason = "a helper of tests may fail loudly")]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use croft_proto::v1::execute_step_request::Message as ToWorker;
use croft_proto::v1::execute_step_response::Message as FromWorker;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    AgentSpec, ApprovalResolved, JournalledToolCall, Message, Permission, ReplayClass, Role,
    RuntimeServiceTerminateSessionRequest, SessionCheckpoint, StepStart, StopReason, ToolCall, ToolResult, ToolSpec,
};
use serde_json::{Value, json};
use support::*;
use tokio::sync::Semaphore;
use tonic::Code;

fn dig(depth: u32) -> Value {
    json!({"tool_call": {"name": "spade", "arguments": {"depth": depth}}})
}

fn with_replay(agent: &AgentSpec, replay: ReplayClass) -> AgentSpec {
    AgentSpec { tools: vec![ToolSpec { replay: replay.into(), ..builtin("spade") }], ..agent.clone() }
}

/// Runs a step on a new worker, and tells what it heard.
async fn elsewhere(spade: &Spade, agent: &AgentSpec, start: StepStart) -> Heard {
    let (worker, _) = worker_with_spade(spade).await;
    init(&worker.client, &start.session_id, agent).await.unwrap();
    Front::open(&worker.client, start).await.finish().await
}

/// The start by which another worker goes on from a checkpoint.
fn resumed(session_id: &str, checkpoint: SessionCheckpoint, journal: Vec<JournalledToolCall>) -> StepStart {
    StepStart { checkpoint: Some(checkpoint), journal, epoch: 2, ..start(session_id, Vec::new()) }
}

/// A turn whose only call of the spade was journalled; then the worker was lost.
struct Broken {
    session_id: String,
    agent: AgentSpec,
    /// Before the call.
    checkpoint: SessionCheckpoint,
    call: ToolCall,
}

impl Broken {
    async fn new(replay: ReplayClass) -> Self {
        let (worker, agent) = worker_with_spade(&Spade::default()).await;
        let agent = with_replay(&agent, replay);
        let session_id = session();
        init(&worker.client, &session_id, &agent).await.unwrap();
        let mut front =
            Front::open(&worker.client, start(&session_id, script(&json!([dig(3), {"text": "planted"}])))).await;
        front.acknowledges = false;
        let Kind::ToolCall(call) = front.until_event(|kind| matches!(kind, Kind::ToolCall(_))).await else { panic!() };
        let checkpoint = front.heard.checkpoints.last().unwrap().clone();
        Self { session_id, agent, checkpoint, call }
    }

    fn journal(&self, result: Option<ToolResult>) -> Vec<JournalledToolCall> {
        vec![JournalledToolCall { call: Some(self.call.clone()), result, times_begun: 1 }]
    }

    async fn go_on(&self, spade: &Spade, result: Option<ToolResult>) -> Heard {
        let start = resumed(&self.session_id, self.checkpoint.clone(), self.journal(result));
        elsewhere(spade, &self.agent, start).await
    }
}

#[tokio::test(start_paused = true)]
async fn from_every_checkpoint_another_worker_comes_to_the_same_end() {
    let spade = Spade::default();
    let (worker, agent) = worker_with_spade(&spade).await;
    let session_id = session();
    let steps = json!([{"text": "first"}, dig(1), dig(2), {"text": "then"}, dig(3), {"text": "done"}]);
    init(&worker.client, &session_id, &agent).await.unwrap();
    let whole = Front::open(&worker.client, start(&session_id, script(&steps))).await.finish().await;
    assert_eq!(whole.checkpoints.len(), 5);
    for checkpoint in whole.checkpoints.clone() {
        let superstep = checkpoint.superstep;
        let heard = elsewhere(&Spade::default(), &agent, resumed(&session_id, checkpoint, Vec::new())).await;
        let (ours, theirs) = (heard.checkpoint(), whole.checkpoint());
        assert_eq!(ours.messages, theirs.messages, "from superstep {superstep}");
        assert_eq!(
            (ours.superstep, ours.model_calls, ours.tool_calls),
            (theirs.superstep, theirs.model_calls, theirs.tool_calls),
            "from superstep {superstep}"
        );
        assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    }
}

/// See the README.md there.
fn stored<M: prost::Message + Default>(file: &str) -> M {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/tests/stored").join(file);
    let bytes = STANDARD.decode(std::fs::read_to_string(path).unwrap().trim()).unwrap();
    let message = M::decode(bytes.as_slice()).unwrap();
    // What isn't read isn't written either.
    assert_eq!(message.encode_to_vec(), bytes, "{file} is read in part");
    message
}

#[tokio::test(start_paused = true)]
async fn a_turn_of_an_earlier_release_goes_on_from_its_checkpoint() {
    let agent: AgentSpec = stored("digger.base64");
    let checkpoint: SessionCheckpoint = stored("checkpoint.base64");
    assert_eq!((checkpoint.superstep, checkpoint.model_calls, checkpoint.tool_calls), (3, 2, 2));
    let spade = Spade::default();
    let heard = elsewhere(&spade, &agent, resumed(&session(), checkpoint.clone(), Vec::new())).await;
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    let depths: Vec<_> = spade.digs.lock().unwrap().iter().map(|dig| dig.arguments["depth"].clone()).collect();
    assert_eq!(depths, [3], "what it had done is not done again, and what follows is");
    let end = heard.checkpoint();
    assert_eq!(end.messages[..checkpoint.messages.len()], checkpoint.messages);
    assert_eq!((end.superstep, end.model_calls, end.tool_calls), (5, 3, 3));
    assert_eq!(end.messages.last().unwrap().content, text("done"));
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_result_is_journalled_is_not_made_again() {
    let broken = Broken::new(ReplayClass::Unsafe).await;
    let spade = Spade::default();
    let tool_call_id = broken.call.tool_call_id.clone();
    let result = ToolResult { tool_call_id, content: text("dug 3 before"), ..ToolResult::default() };
    let heard = broken.go_on(&spade, Some(result)).await;
    assert_eq!(spade.digs(), 0);
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    assert_eq!(heard.story(), ["started", "attempt", "message", "completed"], "its events are stored already");
    let outputs = format!("{:?}", heard.checkpoint().messages[2]);
    assert!(outputs.contains("dug 3 before"), "{outputs}");
}

#[tokio::test(start_paused = true)]
async fn a_safe_or_idempotent_call_is_repeated_under_its_key() {
    for replay in [ReplayClass::Safe, ReplayClass::Idempotent] {
        let broken = Broken::new(replay).await;
        let spade = Spade::default();
        let heard = broken.go_on(&spade, None).await;
        let digs = spade.digs.lock().unwrap().clone();
        assert_eq!(digs.len(), 1, "{replay:?}");
        assert_eq!(digs[0].idempotency_key, broken.call.idempotency_key);
        assert_eq!(heard.story(), ["started", "result", "attempt", "message", "completed"], "journalled only once");
    }
}

#[tokio::test(start_paused = true)]
async fn an_unsafe_call_whose_outcome_is_unknown_is_never_repeated() {
    for replay in [ReplayClass::Unsafe, ReplayClass::Unspecified] {
        let broken = Broken::new(replay).await;
        let spade = Spade::default();
        let heard = broken.go_on(&spade, None).await;
        assert_eq!(heard.stop_reason(), StopReason::RequiresAction);
        assert_eq!(heard.story(), ["started", "approval", "completed"]);

        // Its checkpoint alone tells the next worker the same.
        let start = resumed(&broken.session_id, heard.checkpoint(), Vec::new());
        let again = elsewhere(&spade, &broken.agent, start).await;
        assert_eq!(again.stop_reason(), StopReason::RequiresAction);
        assert_eq!(approval_id(&again), approval_id(&heard), "people are not asked two questions");
        assert_eq!(spade.digs(), 0);
    }
}

/// The yes to the call was a yes to making it once.
#[tokio::test(start_paused = true)]
async fn a_call_that_people_allowed_is_asked_about_anew_when_its_outcome_is_unknown() {
    let spade = Spade::default();
    let (worker, agent) = worker_with_spade(&spade).await;
    let tool = ToolSpec { permission: Permission::Ask.into(), replay: ReplayClass::Unsafe.into(), ..builtin("spade") };
    let agent = AgentSpec { tools: vec![tool], ..agent };
    let session_id = session();
    init(&worker.client, &session_id, &agent).await.unwrap();
    let steps = script(&json!([dig(1), {"text": "done"}]));
    let mut front = Front::open(&worker.client, start(&session_id, steps)).await;
    front.acknowledges = false;
    let Kind::ApprovalRequired(asked) = front.until_event(|kind| matches!(kind, Kind::ApprovalRequired(_))).await
    else {
        panic!()
    };
    let yes = ApprovalResolved { approval_id: asked.approval_id.clone(), approved: true, ..Default::default() };
    front.send(ToWorker::ApprovalResolved(yes.clone())).await;
    let Kind::ToolCall(call) = front.until_event(|kind| matches!(kind, Kind::ToolCall(_))).await else { panic!() };
    let checkpoint = front.heard.checkpoints.last().unwrap().clone();
    let start = StepStart {
        asked_approval_ids: vec![asked.approval_id.clone()],
        decisions: vec![yes],
        ..resumed(&session_id, checkpoint, vec![JournalledToolCall { call: Some(call), result: None, times_begun: 1 }])
    };
    let heard = elsewhere(&spade, &agent, start).await;
    assert_eq!(heard.story(), ["started", "approval", "completed"]);
    assert_eq!((heard.stop_reason(), spade.digs()), (StopReason::RequiresAction, 0));
    assert_ne!(approval_id(&heard), asked.approval_id);
}

fn approval_id(heard: &Heard) -> String {
    let approval = |kind: &Kind| match kind {
        Kind::ApprovalRequired(approval) => Some(approval.approval_id.clone()),
        _ => None,
    };
    heard.durables.iter().find_map(approval).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_new_message_closes_the_calls_that_an_older_turn_left_open() {
    let broken = Broken::new(ReplayClass::Unsafe).await;
    let spade = Spade::default();
    let open = broken.go_on(&spade, None).await;
    let next = StepStart {
        turn_id: "turn-2".into(),
        checkpoint: Some(open.checkpoint()),
        ..start(&broken.session_id, text("never mind"))
    };
    let heard = elsewhere(&spade, &broken.agent, next).await;
    assert_eq!(spade.digs(), 0);
    assert_eq!(heard.story(), ["started", "result", "attempt", "message", "completed"]);
    let Kind::ToolResult(result) = &heard.durables[1] else { panic!() };
    assert!(result.is_error && texts(&result.content).contains("outcome of the call is unknown"));
    let roles: Vec<_> = heard.checkpoint().messages.iter().map(croft_proto::v1::Message::role).collect();
    assert_eq!(roles, [Role::User, Role::Assistant, Role::Tool, Role::User, Role::Assistant]);
}

/// A checkpoint of this turn whose last word is an answer that ended so.
fn answered(finish_reason: &str) -> SessionCheckpoint {
    let message = |role: Role, content| Message { role: role.into(), content, ..Message::default() };
    let asked = script(&json!([{"text": "first", "stop": "pause"}, {"text": "second"}]));
    SessionCheckpoint {
        messages: vec![message(Role::User, asked), message(Role::Assistant, text("first"))],
        superstep: 1,
        model_calls: 1,
        turn_id: "turn-1".into(),
        finish_reason: finish_reason.into(),
        ..SessionCheckpoint::default()
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_stored_is_neither_asked_for_again_nor_ends_otherwise() {
    for (finish_reason, stop_reason) in [
        ("end_turn", StopReason::EndTurn),
        ("max_tokens", StopReason::MaxTokens),
        ("context_full", StopReason::ContextFull),
        ("refusal", StopReason::Refusal),
        ("cancelled", StopReason::Interrupted),
    ] {
        let session_id = session();
        let start = resumed(&session_id, answered(finish_reason), Vec::new());
        let heard = elsewhere(&Spade::default(), &agent(), start).await;
        assert_eq!(heard.story(), ["started", "completed"], "{finish_reason}");
        assert_eq!(heard.stop_reason(), stop_reason);
        assert_eq!(heard.checkpoint().messages, answered(finish_reason).messages);
    }
}

/// Whoever had the turn was lost before it told of the end.
#[tokio::test(start_paused = true)]
async fn an_answer_without_a_word_is_told_once_and_not_asked_for_again_after_a_loss() {
    let (worker, agent) = worker_with_spade(&Spade::default()).await;
    let session_id = session();
    init(&worker.client, &session_id, &agent).await.unwrap();
    let steps = json!([{"thinking": "Roses first, or the hedge?", "stop": "max_tokens"}]);
    let mut front = Front::open(&worker.client, start(&session_id, script(&steps))).await;
    let checkpoint = front.until(|message| matches!(message, FromWorker::Checkpoint(_))).await;
    assert_eq!(front.heard.story(), ["started", "attempt", "error"], "whoever has the checkpoint has the error");
    let FromWorker::Checkpoint(checkpoint) = checkpoint else { panic!() };
    let heard = elsewhere(&Spade::default(), &agent, resumed(&session_id, checkpoint, Vec::new())).await;
    assert_eq!(heard.story(), ["started", "completed"]);
    assert_eq!(heard.stop_reason(), StopReason::MaxTokens);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_paused_goes_on_after_a_loss() {
    let session_id = session();
    let start = resumed(&session_id, answered("pause"), Vec::new());
    let heard = elsewhere(&Spade::default(), &agent(), start).await;
    assert_eq!(heard.story(), ["started", "attempt", "message", "completed"]);
    assert_eq!(heard.stop_reason(), StopReason::EndTurn);
    assert_eq!((heard.checkpoint().messages.len(), heard.checkpoint().finish_reason.as_str()), (3, "end_turn"));
}

#[tokio::test(start_paused = true)]
async fn what_people_were_asked_and_have_decided_before_a_loss_holds_after_it() {
    let spade = Spade::default();
    let (worker, agent) = worker_with_spade(&spade).await;
    let agent = AgentSpec { tools: vec![ToolSpec { permission: Permission::Ask.into(), ..builtin("spade") }], ..agent };
    let session_id = session();
    init(&worker.client, &session_id, &agent).await.unwrap();
    let steps = script(&json!([dig(1), {"text": "done"}]));
    let mut front = Front::open(&worker.client, start(&session_id, steps)).await;
    let Kind::ApprovalRequired(asked) = front.until_event(|kind| matches!(kind, Kind::ApprovalRequired(_))).await
    else {
        panic!()
    };
    let checkpoint = front.heard.checkpoints.last().unwrap().clone();
    let decision = ApprovalResolved { approval_id: asked.approval_id.clone(), approved: true, ..Default::default() };
    let start = StepStart {
        asked_approval_ids: vec![asked.approval_id],
        decisions: vec![decision],
        ..resumed(&session_id, checkpoint, Vec::new())
    };
    let heard = elsewhere(&spade, &agent, start).await;
    assert_eq!(heard.story(), ["started", "call", "result", "attempt", "message", "completed"]);
    assert_eq!((heard.stop_reason(), spade.digs()), (StopReason::EndTurn, 1));
}

/// It was held until the calls before it were over, and with it the only word that it had been made.
#[tokio::test(start_paused = true)]
async fn a_call_that_is_done_while_another_waits_for_a_person_is_not_in_doubt_after_a_loss() {
    let spade = Spade::default();
    let (worker, agent) = worker_with_spade(&spade).await;
    let asks = ToolSpec { permission: Permission::Ask.into(), ..builtin("clock") };
    let once = ToolSpec { replay: ReplayClass::Unsafe.into(), ..builtin("spade") };
    let agent = AgentSpec { tools: vec![asks, once], ..agent };
    let session_id = session();
    init(&worker.client, &session_id, &agent).await.unwrap();
    let steps = json!([{"tool_call": {"name": "clock", "arguments": {}}}, dig(1), {"text": "done"}]);
    let mut front = Front::open(&worker.client, start(&session_id, script(&steps))).await;
    let began = tokio::time::Instant::now();
    let told = front.until_event(|kind| matches!(kind, Kind::ToolResult(_))).await;
    let Kind::ToolResult(result) = told else { panic!() };
    assert!(began.elapsed() < Duration::from_secs(1), "the turn's end would tell it, too");
    assert_eq!((texts(&result.content).as_str(), spade.digs()), ("dug 1", 1));
    let call = |kind: &Kind| match kind {
        Kind::ToolCall(call) => Some(call.clone()),
        _ => None,
    };
    let heard = front.heard.clone();
    drop(front);
    let approval_id = approval_id(&heard);
    let journal = vec![JournalledToolCall {
        call: heard.durables.iter().find_map(call),
        result: Some(result.clone()),
        times_begun: 1,
    }];
    let yes = ApprovalResolved { approval_id: approval_id.clone(), approved: true, ..Default::default() };
    let start = StepStart {
        asked_approval_ids: vec![approval_id],
        decisions: vec![yes],
        ..resumed(&session_id, heard.checkpoints.last().unwrap().clone(), journal)
    };
    let heard = elsewhere(&spade, &agent, start).await;
    assert_eq!(heard.story(), ["started", "call", "result", "attempt", "message", "completed"]);
    assert_eq!((heard.stop_reason(), spade.digs()), (StopReason::EndTurn, 1));
    let outputs = heard.checkpoint().messages[2].content.iter().map(|block| format!("{block:?}")).collect::<Vec<_>>();
    assert!(outputs.len() == 2 && outputs[1].contains("dug 1"), "in the order of the calls: {outputs:?}");
}

#[tokio::test(start_paused = true)]
async fn input_that_the_checkpoint_already_holds_is_not_added_again() {
    let broken = Broken::new(ReplayClass::Safe).await;
    let spade = Spade::default();
    let again = resumed(&broken.session_id, broken.checkpoint.clone(), broken.journal(None));
    let heard = elsewhere(&spade, &broken.agent, StepStart { input: text("twice?"), ..again }).await;
    let users = heard.checkpoint().messages.iter().filter(|message| message.role() == Role::User).count();
    assert_eq!(users, 1);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_shuts_down_ends_its_superstep_and_hands_the_turn_back() {
    let spade = Spade { gate: Some(Arc::new(Semaphore::new(0))), ..Spade::default() };
    let (worker, agent) = worker_with_spade(&spade).await;
    let session_id = session();
    init(&worker.client, &session_id, &agent).await.unwrap();
    let mut front = Front::open(&worker.client, start(&session_id, script(&json!([dig(1), {"text": "done"}])))).await;
    front.until_event(|kind| matches!(kind, Kind::ToolCall(_))).await;
    while spade.digs() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    worker.tasks.stopping().cancel();
    spade.gate.as_ref().unwrap().add_permits(1);
    let heard = front.finish().await;
    assert_eq!(heard.stop_reason(), StopReason::HandedBack);
    assert_eq!(heard.story(), ["started", "attempt", "message", "call", "result", "completed"]);

    let rest = elsewhere(&Spade::default(), &agent, resumed(&session_id, heard.checkpoint(), Vec::new())).await;
    assert_eq!(rest.stop_reason(), StopReason::EndTurn);
    assert_eq!(rest.story(), ["started", "attempt", "message", "completed"], "the call is not made again");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_shuts_down_while_a_person_is_asked_hands_the_question_back() {
    let spade = Spade::default();
    let (worker, agent) = worker_with_spade(&spade).await;
    let asks = ToolSpec { permission: Permission::Ask.into(), ..builtin("spade") };
    let agent = AgentSpec { tools: vec![asks, builtin("calculator")], ..agent };
    let session_id = session();
    init(&worker.client, &session_id, &agent).await.unwrap();
    let sum = json!({"tool_call": {"name": "calculator", "arguments": {"expression": "1+1"}}});
    let steps = script(&json!([dig(1), sum, {"text": "done"}]));
    let mut front = Front::open(&worker.client, start(&session_id, steps)).await;
    front.until_event(|kind| matches!(kind, Kind::ApprovalRequired(_))).await;
    worker.tasks.stopping().cancel();
    let heard = front.finish().await;
    assert_eq!(heard.stop_reason(), StopReason::HandedBack);
    assert_eq!(spade.digs(), 0);

    let (other, _) = worker_with_spade(&spade).await;
    init(&other.client, &session_id, &agent).await.unwrap();
    let mut front = Front::open(&other.client, resumed(&session_id, heard.checkpoint(), Vec::new())).await;
    let asked = front.until_event(|kind| matches!(kind, Kind::ApprovalRequired(_))).await;
    let Kind::ApprovalRequired(asked) = asked else { panic!() };
    assert_eq!(asked.approval_id, approval_id(&heard), "it is the same question");
    let resolved = croft_proto::v1::ApprovalResolved {
        approval_id: asked.approval_id,
        approved: true,
        ..croft_proto::v1::ApprovalResolved::default()
    };
    front.send(croft_proto::v1::execute_step_request::Message::ApprovalResolved(resolved)).await;
    let rest = front.finish().await;
    assert_eq!(rest.stop_reason(), StopReason::EndTurn);
    assert_eq!(spade.digs(), 1);
    let calls = rest.story().iter().filter(|name| **name == "call").count();
    assert_eq!(calls, 1, "the calculator is not asked again");
}

/// A worker that gives a superstep half a second when it shuts down, with a spade.
async fn impatient(spade: &Spade) -> Worker {
    let options = croft_worker::RuntimeOptions { drain: Duration::from_millis(500), ..options() };
    let builtins = croft_worker::tools::Builtins::default().with("spade", spade.clone());
    worker_with(options, croft_llm::Providers::new().with(croft_llm::scripted::Scripted::new()), builtins).await
}

#[tokio::test(start_paused = true)]
async fn a_model_call_that_outlasts_the_drain_is_given_up_told_and_made_again_elsewhere() {
    let worker = impatient(&Spade::default()).await;
    let session_id = session();
    init(&worker.client, &session_id, &agent()).await.unwrap();
    let slow = script(&json!([{"text": "very slow words", "token_delay_ms": 400}]));
    let mut front = Front::open(&worker.client, start(&session_id, slow)).await;
    front.until_event(|kind| matches!(kind, Kind::TextDelta(_))).await;
    worker.tasks.stopping().cancel();
    let heard = front.finish().await;
    assert_eq!(heard.stop_reason(), StopReason::HandedBack);
    assert_eq!(heard.story(), ["started", "attempt", "completed"], "its usage is told, its text is not");
    let state = heard.checkpoint();
    assert_eq!((state.messages.len(), state.model_calls), (1, 0));

    let rest = elsewhere(&Spade::default(), &agent(), resumed(&session_id, state, Vec::new())).await;
    assert_eq!(rest.stop_reason(), StopReason::EndTurn);
    assert_eq!(rest.checkpoint().messages.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_outlasts_the_drain_is_handed_back_as_begun() {
    for (replay, digs_elsewhere, stop_reason) in
        [(ReplayClass::Idempotent, 1, StopReason::EndTurn), (ReplayClass::Unsafe, 0, StopReason::RequiresAction)]
    {
        let spade = Spade { gate: Some(Arc::new(Semaphore::new(0))), ..Spade::default() };
        let worker = impatient(&spade).await;
        let agent = with_replay(&agent(), replay);
        let session_id = session();
        init(&worker.client, &session_id, &agent).await.unwrap();
        let steps = script(&json!([dig(1), {"text": "done"}]));
        let mut front = Front::open(&worker.client, start(&session_id, steps)).await;
        front.until_event(|kind| matches!(kind, Kind::ToolCall(_))).await;
        worker.tasks.stopping().cancel();
        let heard = front.finish().await;
        assert_eq!((heard.stop_reason(), spade.digs()), (StopReason::HandedBack, 1));
        assert_eq!(heard.story(), ["started", "attempt", "message", "call", "completed"], "no result is made up");

        let other = Spade::default();
        let rest = elsewhere(&other, &agent, resumed(&session_id, heard.checkpoint(), Vec::new())).await;
        assert_eq!((rest.stop_reason(), other.digs()), (stop_reason, digs_elsewhere), "{replay:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_shuts_down_begins_nothing_new() {
    let worker = worker().await;
    let session_id = session();
    init(&worker.client, &session_id, &agent()).await.unwrap();
    worker.tasks.stopping().cancel();
    assert_eq!(init(&worker.client, &session(), &agent()).await.unwrap_err().code(), Code::Unavailable);
    let (_requests, receiver) = tokio::sync::mpsc::channel(1);
    let requests = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let refused = worker.client.clone().execute_step(requests).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
}

/// Breaks a step off in mid answer, and tells the grant of the attempt that nobody heard of.
async fn broken_off_in_mid_answer(worker: &Worker, session_id: &str) -> String {
    init(&worker.client, session_id, &agent()).await.unwrap();
    let slow = script(&json!([{"text": "slow words to say", "token_delay_ms": 400}]));
    let mut front = Front::open(&worker.client, start(session_id, slow)).await;
    front.until_event(|kind| matches!(kind, Kind::TextDelta(_))).await;
    format!("grant-{}", front.heard.grants.len() - 1)
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_nobody_heard_of_is_told_by_the_next_step_of_the_turn() {
    for (settled, story) in [
        (false, &["started", "attempt", "attempt", "message", "completed"][..]),
        (true, &["started", "attempt", "message", "completed"]),
    ] {
        let (worker, session_id) = (worker().await, session());
        let grant_id = broken_off_in_mid_answer(&worker, &session_id).await;
        let settled_grant_ids = if settled { vec![grant_id] } else { Vec::new() };
        let again =
            StepStart { epoch: 2, settled_grant_ids, ..start(&session_id, script(&json!([{"text": "quick"}]))) };
        let heard = Front::open(&worker.client, again).await.finish().await;
        assert_eq!(heard.story(), story);
        let Kind::ModelAttempt(first) = &heard.durables[1] else { panic!() };
        assert_eq!(first.finish_reason == "cancelled", !settled);
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_nobody_heard_of_outlasts_steps_that_are_refused() {
    let (worker, session_id) = (worker().await, session());
    let grant_id = broken_off_in_mid_answer(&worker, &session_id).await;
    let again = StepStart { epoch: 2, ..start(&session_id, script(&json!([{"text": "quick"}]))) };
    let unusable = AgentSpec { model: String::new(), ..agent() };
    for refused in
        [StepStart { agent: Some(unusable), ..again.clone() }, StepStart { input: Vec::new(), ..again.clone() }]
    {
        let status = Front::open(&worker.client, refused).await.failure().await;
        assert_eq!(reason(&status), "MALFORMED");
    }
    let heard = Front::open(&worker.client, again).await.finish().await;
    let Kind::ModelAttempt(first) = &heard.durables[1] else { panic!("{:?}", heard.story()) };
    assert_eq!((&first.grant_id, first.finish_reason.as_str()), (&grant_id, "cancelled"));
}

#[tokio::test(start_paused = true)]
async fn an_attempt_of_a_turn_that_went_on_elsewhere_is_not_told_in_another() {
    let (worker, session_id) = (worker().await, session());
    broken_off_in_mid_answer(&worker, &session_id).await;
    let quick = script(&json!([{"text": "quick"}]));
    let next = StepStart { epoch: 2, turn_id: "turn-2".into(), ..start(&session_id, quick) };
    let heard = Front::open(&worker.client, next).await.finish().await;
    assert_eq!(heard.story(), ["started", "attempt", "message", "completed"]);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_nobody_heard_of_is_told_to_whoever_ends_the_session() {
    let (worker, session_id) = (worker().await, session());
    init(&worker.client, &session_id, &agent()).await.unwrap();
    // The first is stored before its tool is called.
    let steps = json!([
        {"tool_call": {"name": "clock", "arguments": {}}}, {"text": "slow words to say", "token_delay_ms": 400}
    ]);
    let mut front = Front::open(&worker.client, start(&session_id, script(&steps))).await;
    front.until_event(|kind| matches!(kind, Kind::TextDelta(_))).await;
    assert_eq!(front.heard.grants.len(), 2);
    drop(front);
    let request = RuntimeServiceTerminateSessionRequest { session_id, reason: "enough".into() };
    let mut told = Vec::new();
    for _ in 0..2 {
        let ended = worker.client.clone().terminate_session(request.clone()).await.unwrap().into_inner();
        told.push((ended.found, ended.untold_attempts));
    }
    let [(true, attempts), (false, none)] = &told[..] else { panic!("{told:?}") };
    let [attempt] = &attempts[..] else { panic!("{told:?}") };
    assert_eq!((&*attempt.attempt_id, &*attempt.finish_reason), ("grant-1", "cancelled"));
    assert!(attempt.usage.unwrap().output_tokens > 0);
    assert!(none.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_front_that_goes_away_ends_its_step() {
    let spade = Spade { gate: Some(Arc::new(Semaphore::new(0))), ..Spade::default() };
    let (worker, agent) = worker_with_spade(&spade).await;
    let session_id = session();
    init(&worker.client, &session_id, &agent).await.unwrap();
    let mut front = Front::open(&worker.client, start(&session_id, script(&json!([dig(1), {"text": "done"}])))).await;
    front.until_event(|kind| matches!(kind, Kind::ToolCall(_))).await;
    while spade.digs() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(front);
    // Time stands still while anything has work to do.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let gate = spade.gate.as_ref().unwrap();
    gate.add_permits(1);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(gate.available_permits(), 1, "nobody waits at the gate any more");
}

#[tokio::test(start_paused = true)]
async fn a_front_with_a_newer_lease_takes_over_and_an_older_one_is_refused() {
    let worker = worker().await;
    let session_id = session();
    init(&worker.client, &session_id, &agent()).await.unwrap();
    let slow = script(&json!([{"delay_ms": 60_000}, {"text": "late"}]));
    let at_epoch = |epoch| StepStart { epoch, ..start(&session_id, slow.clone()) };
    let mut old = Front::open(&worker.client, at_epoch(5)).await;
    old.until_event(|kind| matches!(kind, Kind::StepStarted(_))).await;

    let mut new = Front::open(&worker.client, at_epoch(6)).await;
    new.until_event(|kind| matches!(kind, Kind::StepStarted(_))).await;
    assert_eq!(old.failure().await.code(), Code::Cancelled);

    let stale = Front::open(&worker.client, at_epoch(5)).await;
    let refused = stale.failure().await;
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Aborted, "EPOCH_STALE"));
    assert_eq!(new.finish().await.stop_reason(), StopReason::EndTurn, "the newer one is left alone");
}
