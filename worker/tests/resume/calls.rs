//! Calls that were begun, and what people decided about them.

use std::time::Duration;

use croft_proto::v1::execute_step_request::Message as ToWorker;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    AgentSpec, ApprovalResolved, JournalledToolCall, Permission, ReplayClass, Role, SessionCheckpoint, StepStart,
    StopReason, ToolCall, ToolResult, ToolSpec,
};
use serde_json::json;

use crate::support::*;
use crate::{dig, elsewhere, resumed, with_replay};

/// A turn whose only call of the spade was journalled; then the worker was lost.
pub(crate) struct Broken {
    pub(crate) session_id: String,
    pub(crate) agent: AgentSpec,
    /// Before the call.
    pub(crate) checkpoint: SessionCheckpoint,
    call: ToolCall,
}

impl Broken {
    pub(crate) async fn new(replay: ReplayClass) -> Self {
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

    pub(crate) fn journal(&self, result: Option<ToolResult>) -> Vec<JournalledToolCall> {
        vec![JournalledToolCall { call: Some(self.call.clone()), result, times_begun: 1 }]
    }

    async fn go_on(&self, spade: &Spade, result: Option<ToolResult>) -> Heard {
        let start = resumed(&self.session_id, self.checkpoint.clone(), self.journal(result));
        elsewhere(spade, &self.agent, start).await
    }
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

/// A spade that a person must allow, and that may be used twice.
fn asks_and_may_repeat() -> ToolSpec {
    let (permission, replay) = (Permission::Ask.into(), ReplayClass::Idempotent.into());
    ToolSpec { permission, replay, ..builtin("spade") }
}

/// A turn that called the spade with these arguments, told so, and lost its worker.
async fn lost(tool: ToolSpec, arguments: &str) -> Broken {
    let (worker, agent) = worker_with_spade(&Spade::default()).await;
    let agent = AgentSpec { tools: vec![tool], ..agent };
    let session_id = session();
    init(&worker.client, &session_id, &agent).await.unwrap();
    let steps = json!([{"tool_call": {"name": "spade", "arguments": arguments}}, {"text": "planted"}]);
    let mut front = Front::open(&worker.client, start(&session_id, script(&steps))).await;
    front.acknowledges = false;
    let Kind::ToolCall(call) = front.until_event(|kind| matches!(kind, Kind::ToolCall(_))).await else { panic!() };
    let checkpoint = front.heard.checkpoints.last().unwrap().clone();
    Broken { session_id, agent, checkpoint, call }
}

/// It was refused, which is told like a call that is made, and its result was not stored yet.
#[tokio::test(start_paused = true)]
async fn a_call_that_was_refused_is_not_taken_for_one_that_was_allowed() {
    let broken = lost(asks_and_may_repeat(), r#"{"depth":12345678901234567890123}"#).await;
    let spade = Spade::default();
    let heard = broken.go_on(&spade, None).await;
    assert_eq!(heard.story(), ["started", "approval", "completed"]);
    assert_eq!((heard.stop_reason(), spade.digs()), (StopReason::RequiresAction, 0));
    // The tool would get another number than the one that the person saw.
    let yes = ApprovalResolved { approval_id: approval_id(&heard), approved: true, ..Default::default() };
    let next = StepStart {
        turn_id: "turn-2".into(),
        decisions: vec![yes],
        ..resumed(&broken.session_id, heard.checkpoint(), Vec::new())
    };
    let heard = elsewhere(&spade, &broken.agent, next).await;
    assert_eq!(heard.story(), ["started", "result", "attempt", "message", "completed"]);
    let Kind::ToolResult(result) = &heard.durables[1] else { panic!() };
    let told = texts(&result.content);
    assert!(told.contains("It is not repeated: A whole number in the arguments is beyond 64 bits"), "{told}");
    assert_eq!((result.is_error, spade.digs()), (true, 0));
}

/// As above, and of a call with good arguments people are asked as of any other, if a worker of an earlier release began it.
#[tokio::test(start_paused = true)]
async fn a_call_that_nobody_allowed_or_that_fits_nobody_knows_is_not_repeated_by_itself() {
    let many: Vec<_> = (0..2_000).map(|least| json!({"minLength": least % 3})).collect();
    let input_schema_json = json!({"properties": {"depth": {"items": {"allOf": many}}}}).to_string();
    let slow = ToolSpec { input_schema_json, replay: ReplayClass::Idempotent.into(), ..builtin("spade") };
    let unheld = lost(slow, &json!({"depth": vec!["abc"; 50_000]}).to_string()).await;
    let mut nobody_allowed = Broken::new(ReplayClass::Idempotent).await;
    nobody_allowed.agent.tools = vec![asks_and_may_repeat()];
    for broken in [unheld, nobody_allowed] {
        let spade = Spade::default();
        let heard = broken.go_on(&spade, None).await;
        assert_eq!(heard.story(), ["started", "approval", "completed"]);
        assert_eq!((heard.stop_reason(), spade.digs()), (StopReason::RequiresAction, 0));
        let yes = ApprovalResolved { approval_id: approval_id(&heard), approved: true, ..Default::default() };
        let next = StepStart {
            turn_id: "turn-2".into(),
            decisions: vec![yes],
            ..resumed(&broken.session_id, heard.checkpoint(), Vec::new())
        };
        let heard = elsewhere(&spade, &broken.agent, next).await;
        assert_eq!(heard.story(), ["started", "call", "result", "attempt", "message", "completed"]);
        assert_eq!(spade.digs(), 1, "a yes is good for it");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_people_allowed_is_repeated_by_itself_where_it_may_be() {
    let mut broken = Broken::new(ReplayClass::Idempotent).await;
    broken.agent.tools = vec![asks_and_may_repeat()];
    let (worker, spade) = (worker_with_spade(&Spade::default()).await.0, Spade::default());
    init(&worker.client, &broken.session_id, &broken.agent).await.unwrap();
    let resume = || resumed(&broken.session_id, broken.checkpoint.clone(), Vec::new());
    let mut front = Front::open(&worker.client, resume()).await;
    let asked = front.until_event(|kind| matches!(kind, Kind::ApprovalRequired(_))).await;
    let Kind::ApprovalRequired(asked) = asked else { panic!() };
    let yes = ApprovalResolved { approval_id: asked.approval_id.clone(), approved: true, ..Default::default() };
    let start = StepStart {
        asked_approval_ids: vec![asked.approval_id],
        decisions: vec![yes],
        journal: broken.journal(None),
        ..resume()
    };
    let heard = elsewhere(&spade, &broken.agent, start).await;
    assert_eq!(heard.story(), ["started", "result", "attempt", "message", "completed"]);
    assert_eq!((heard.stop_reason(), spade.digs()), (StopReason::EndTurn, 1));
}

pub(crate) fn approval_id(heard: &Heard) -> String {
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
