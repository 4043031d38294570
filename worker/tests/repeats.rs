//! What people decide about calls that a lost worker began and that may not be repeated: each yes is good for one more time.

#![expect(clippy::unwrap_used, reason = "a helper of tests may fail loudly")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use croft_proto::v1::content_block::Block;
use croft_proto::v1::execute_step_request::Message as ToWorker;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    AgentSpec, ApprovalResolved, ContentBlock, JournalledToolCall, Permission, ReplayClass, SessionCheckpoint,
    StepStart, StopReason, ToolCall, ToolResult, ToolSpec,
};
use croft_worker::RuntimeOptions;
use prost::Message as _;
use serde_json::{Value, json};
use support::*;
use tokio::sync::Semaphore;

fn dig(depth: u32) -> Value {
    json!({"tool_call": {"name": "spade", "arguments": {"depth": depth}}})
}

fn clock() -> Value {
    json!({"tool_call": {"name": "clock", "arguments": {}}})
}

/// A session with a spade that may not be used twice, and a clock that needs a yes.
struct Garden {
    session_id: String,
    agent: AgentSpec,
    spade: Spade,
}

impl Garden {
    async fn new() -> Self {
        let spade = Spade::default();
        let (_, agent) = worker_with_spade(&spade).await;
        let once = ToolSpec { replay: ReplayClass::Unsafe.into(), ..builtin("spade") };
        let asks = ToolSpec { permission: Permission::Ask.into(), ..builtin("clock") };
        Self { session_id: session(), agent: AgentSpec { tools: vec![once, asks], ..agent }, spade }
    }

    /// One whose worker was lost with all calls of the spade begun, and whose turn ended with questions about them.
    async fn in_doubt(steps: &Value) -> (Self, Heard) {
        let garden = Self::new().await;
        let calls = steps.as_array().unwrap().iter().filter(|step| step["tool_call"]["name"] == "spade").count();
        let worker = garden.worker(&garden.spade).await;
        let mut front = Front::open(&worker.client, start(&garden.session_id, script(steps))).await;
        front.acknowledges = false;
        for _ in 0..calls {
            front.until_event(|kind| matches!(kind, Kind::ToolCall(_))).await;
        }
        let journal = begun(&front.heard, 1);
        let checkpoint = front.heard.checkpoints.last().unwrap().clone();
        drop(front);
        let heard =
            garden.goes_on(StepStart { journal, checkpoint: Some(checkpoint), ..garden.turn("turn-1", &[]) }).await;
        assert_eq!((heard.stop_reason(), garden.spade.digs()), (StopReason::RequiresAction, 0));
        (garden, heard)
    }

    /// A worker that was not there before, and knows the session.
    async fn worker(&self, spade: &Spade) -> Worker {
        let (worker, _) = worker_with_spade(spade).await;
        init(&worker.client, &self.session_id, &self.agent).await.unwrap();
        worker
    }

    /// The start of a turn that begins with what people decided, or goes on.
    fn turn(&self, turn_id: &str, decisions: &[ApprovalResolved]) -> StepStart {
        StepStart { turn_id: turn_id.into(), decisions: decisions.to_vec(), ..start(&self.session_id, Vec::new()) }
    }

    async fn goes_on(&self, start: StepStart) -> Heard {
        let worker = self.worker(&self.spade).await;
        Front::open(&worker.client, start).await.finish().await
    }

    /// The next turn, which these answers begin.
    async fn answered(&self, before: &Heard, turn_id: &str, decisions: &[ApprovalResolved]) -> Heard {
        let start = StepStart { checkpoint: Some(before.checkpoint()), ..self.turn(turn_id, decisions) };
        self.goes_on(start).await
    }

    /// That turn with a yes, until the spade is at work for the first time.
    async fn repeats(&self, worker: &Worker, before: &Heard) -> Front {
        let yes = [says(&asked(before)[0], true)];
        let start = StepStart { checkpoint: Some(before.checkpoint()), ..self.turn("turn-2", &yes) };
        let mut front = Front::open(&worker.client, start).await;
        front.until_event(|kind| matches!(kind, Kind::ToolCall(_))).await;
        self.spade.digging().await;
        front
    }

    /// That turn with the yes to the second call while the first is made.
    async fn repeats_both(&mut self, before: &Heard) -> Heard {
        let gate = Arc::new(Semaphore::new(0));
        self.spade.gate = Some(Arc::clone(&gate));
        let worker = self.worker(&self.spade).await;
        let front = self.repeats(&worker, before).await;
        front.send(ToWorker::ApprovalResolved(says(&asked(before)[1], true))).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        gate.add_permits(2);
        front.finish().await
    }

    fn depths(&self) -> Vec<Value> {
        self.spade.digs.lock().unwrap().iter().map(|dig| dig.arguments["depth"].clone()).collect()
    }
}

fn told(heard: &Heard) -> Vec<ToolCall> {
    let call = |kind: &Kind| match kind {
        Kind::ToolCall(call) => Some(call.clone()),
        _ => None,
    };
    heard.durables.iter().filter_map(call).collect()
}

/// What a front stores of calls that were told and have no result.
fn begun(heard: &Heard, times_begun: u32) -> Vec<JournalledToolCall> {
    let entry = |call| JournalledToolCall { call: Some(call), result: None, times_begun };
    told(heard).into_iter().map(entry).collect()
}

/// The ids of the questions.
fn asked(heard: &Heard) -> Vec<String> {
    let question = |kind: &Kind| match kind {
        Kind::ApprovalRequired(question) => Some(question.approval_id.clone()),
        _ => None,
    };
    heard.durables.iter().filter_map(question).collect()
}

fn says(approval_id: &str, approved: bool) -> ApprovalResolved {
    ApprovalResolved { approval_id: approval_id.into(), approved, message: "I looked".into(), ..Default::default() }
}

/// The last results that the model was shown.
fn outputs(checkpoint: &SessionCheckpoint) -> Vec<String> {
    checkpoint.messages[2].content.iter().map(|block| format!("{block:?}")).collect()
}

/// The answer was taken, and the worker asked the same question again.
#[tokio::test(start_paused = true)]
async fn a_yes_has_the_call_made_once_more_under_its_key() {
    let (garden, doubt) = Garden::in_doubt(&json!([dig(1), {"text": "done"}])).await;
    let heard = garden.answered(&doubt, "turn-2", &[says(&asked(&doubt)[0], true)]).await;
    assert_eq!(heard.story(), ["started", "call", "result", "attempt", "message", "completed"]);
    assert_eq!((heard.stop_reason(), garden.spade.digs()), (StopReason::EndTurn, 1));
    let key = garden.spade.digs.lock().unwrap()[0].idempotency_key.clone();
    assert_eq!(key, told(&heard)[0].idempotency_key);
    let before = doubt.checkpoint().journal[0].call.clone().unwrap();
    assert_eq!(told(&heard), [before], "it is the same call");
}

#[tokio::test(start_paused = true)]
async fn a_no_is_told_to_the_model_with_the_persons_words() {
    let (garden, doubt) = Garden::in_doubt(&json!([dig(1), {"text": "done"}])).await;
    let heard = garden.answered(&doubt, "turn-2", &[says(&asked(&doubt)[0], false)]).await;
    assert_eq!(heard.story(), ["started", "result", "attempt", "message", "completed"]);
    assert_eq!((heard.stop_reason(), garden.spade.digs()), (StopReason::EndTurn, 0));
    let Kind::ToolResult(result) = &heard.durables[1] else { panic!() };
    let said = texts(&result.content);
    assert!(
        result.is_error && said.contains("A person decided that the call is not to be repeated: I looked"),
        "{said}"
    );
}

/// The tool may have taken effect with the first ones, under the same key.
#[tokio::test(start_paused = true)]
async fn other_arguments_make_it_another_call_and_none_is_made() {
    let (garden, doubt) = Garden::in_doubt(&json!([dig(1), {"text": "done"}])).await;
    let given = ApprovalResolved { arguments_json: r#"{"depth":2}"#.into(), ..says(&asked(&doubt)[0], false) };
    let heard = garden.answered(&doubt, "turn-2", &[given]).await;
    assert_eq!((heard.stop_reason(), garden.spade.digs()), (StopReason::EndTurn, 0));
    let outputs = outputs(&heard.checkpoint());
    assert!(outputs[0].contains("so it is not repeated"), "{outputs:?}");
    let is_repeat = |kind: &Kind| matches!(kind, Kind::ApprovalRequired(question) if question.repeat);
    assert!(doubt.durables.iter().any(is_repeat), "people can tell that it is such a question");
}

#[tokio::test(start_paused = true)]
async fn a_yes_is_for_one_more_time_also_when_that_worker_is_lost_too() {
    for times_told in [2, 0] {
        let (mut garden, doubt) = Garden::in_doubt(&json!([dig(1), {"text": "done"}])).await;
        garden.spade.gate = Some(Arc::new(Semaphore::new(0)));
        let worker = garden.worker(&garden.spade).await;
        let front = garden.repeats(&worker, &doubt).await;
        let lost = front.heard.clone();
        drop(front);

        // In the same turn, so with the same yes; also by a front that does not count.
        let yes = says(&asked(&doubt)[0], true);
        let start = StepStart {
            checkpoint: Some(doubt.checkpoint()),
            journal: begun(&lost, times_told),
            ..garden.turn("turn-2", std::slice::from_ref(&yes))
        };
        let again = garden.goes_on(start).await;
        assert_eq!(again.story(), ["started", "approval", "completed"]);
        assert_eq!((again.stop_reason(), garden.spade.digs()), (StopReason::RequiresAction, 1));
        assert_ne!(asked(&again), asked(&doubt), "the answer to the first question is taken already");

        let same_yes = garden.answered(&again, "turn-3", &[yes]).await;
        assert_eq!((asked(&same_yes), garden.spade.digs()), (asked(&again), 1));
        garden.spade.gate = None;
        let heard = garden.answered(&same_yes, "turn-4", &[says(&asked(&again)[0], true)]).await;
        assert_eq!((heard.stop_reason(), garden.spade.digs()), (StopReason::EndTurn, 2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_repeated_call_that_is_handed_back_without_a_result_is_asked_about_anew() {
    let (mut garden, doubt) = Garden::in_doubt(&json!([dig(1), {"text": "done"}])).await;
    garden.spade.gate = Some(Arc::new(Semaphore::new(0)));
    let options = RuntimeOptions { drain: Duration::from_millis(500), ..options() };
    let builtins = croft_worker::tools::Builtins::default().with("spade", garden.spade.clone());
    let providers = croft_llm::Providers::new().with(croft_llm::scripted::Scripted::new());
    let worker = worker_with(options, providers, builtins).await;
    init(&worker.client, &garden.session_id, &garden.agent).await.unwrap();
    let front = garden.repeats(&worker, &doubt).await;
    worker.tasks.stopping().cancel();
    let back = front.finish().await;
    assert_eq!(back.stop_reason(), StopReason::HandedBack);
    let again = garden.answered(&back, "turn-2", &[says(&asked(&doubt)[0], true)]).await;
    assert_eq!((again.stop_reason(), garden.spade.digs()), (StopReason::RequiresAction, 1));
    assert_ne!(asked(&again), asked(&doubt));
}

#[tokio::test(start_paused = true)]
async fn of_several_calls_those_that_are_decided_go_on_and_the_rest_is_asked_again() {
    let (garden, doubt) = Garden::in_doubt(&json!([dig(1), dig(2), dig(3), {"text": "done"}])).await;
    let questions = asked(&doubt);
    assert_eq!(questions.len(), 3);
    let part = garden.answered(&doubt, "turn-2", &[says(&questions[2], true)]).await;
    assert_eq!(part.story(), ["started", "call", "result", "approval", "approval", "completed"]);
    assert_eq!((part.stop_reason(), asked(&part)), (StopReason::RequiresAction, questions[..2].to_vec()));
    let more = garden.answered(&part, "turn-3", &[says(&questions[0], false)]).await;
    assert_eq!(more.story(), ["started", "result", "approval", "completed"]);
    let heard = garden.answered(&more, "turn-4", &[says(&questions[1], true)]).await;
    assert_eq!(heard.story(), ["started", "call", "result", "attempt", "message", "completed"]);
    assert_eq!((heard.stop_reason(), garden.depths()), (StopReason::EndTurn, vec![json!(3), json!(2)]));
    let outputs = outputs(&heard.checkpoint());
    let shows = |place: usize, text: &str| outputs[place].contains(text);
    assert!(shows(0, "not to be repeated") && shows(1, "dug 2") && shows(2, "dug 3"), "in its order: {outputs:?}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_while_another_call_is_repeated_counts_in_the_same_turn() {
    let (mut garden, doubt) = Garden::in_doubt(&json!([dig(1), dig(2), {"text": "done"}])).await;
    let heard = garden.repeats_both(&doubt).await;
    assert_eq!((heard.stop_reason(), garden.depths()), (StopReason::EndTurn, vec![json!(1), json!(2)]));
    assert_eq!(asked(&heard), Vec::<String>::new());
}

/// More than half of what the results of one superstep may take.
const LARGE_BYTES: usize = 13 * 1024 * 1024;

/// Whether the picture came, in the order of the last results that the model was shown.
fn pictures(checkpoint: &SessionCheckpoint) -> Vec<bool> {
    let has_picture =
        |block: &ContentBlock| matches!(&block.block, Some(Block::ToolOutput(output)) if output.content.len() == 2);
    checkpoint.messages[2].content.iter().map(has_picture).collect()
}

/// What stands in the journal is in the checkpoint beside the conversation, and must fit a message with it.
#[tokio::test(start_paused = true)]
async fn results_of_a_lost_worker_take_their_room_while_people_are_asked_about_other_calls() {
    let (mut garden, doubt) = Garden::in_doubt(&json!([dig(1), dig(2), dig(3), {"text": "done"}])).await;
    garden.spade.picture_bytes = LARGE_BYTES;
    // One call had its result told before the worker was lost.
    let mut checkpoint = doubt.checkpoint();
    let call = checkpoint.journal[0].call.clone().unwrap();
    let content = [text("dug 1"), vec![picture(LARGE_BYTES)]].concat();
    let result = ToolResult { tool_call_id: call.tool_call_id.clone(), content, ..ToolResult::default() };
    let journal = vec![JournalledToolCall { call: Some(call), result: Some(result), times_begun: 1 }];
    checkpoint.journal.remove(0);
    let questions = asked(&doubt);
    let start =
        StepStart { checkpoint: Some(checkpoint), journal, ..garden.turn("turn-2", &[says(&questions[1], true)]) };
    let part = garden.goes_on(start).await;
    assert_eq!((part.stop_reason(), garden.depths()), (StopReason::RequiresAction, vec![json!(2)]));
    let bytes = part.checkpoint().encoded_len();
    assert!(bytes < 2 * LARGE_BYTES, "{bytes} bytes");

    let heard = garden.answered(&part, "turn-3", &[says(&questions[2], true)]).await;
    assert_eq!((heard.stop_reason(), garden.depths()), (StopReason::EndTurn, vec![json!(2), json!(3)]));
    assert_eq!(pictures(&heard.checkpoint()), [true, false, false], "what was told stays");
    let outputs = outputs(&heard.checkpoints[0]);
    assert!(outputs[1..].iter().all(|output| output.contains("its result is left out")), "{:?}", &outputs[1..]);
}

#[tokio::test(start_paused = true)]
async fn results_of_calls_that_are_repeated_one_after_another_share_the_room_of_one_superstep() {
    let (mut garden, doubt) = Garden::in_doubt(&json!([dig(1), dig(2), {"text": "done"}])).await;
    garden.spade.picture_bytes = LARGE_BYTES;
    let heard = garden.repeats_both(&doubt).await;
    assert_eq!((heard.stop_reason(), garden.spade.digs()), (StopReason::EndTurn, 2));
    assert_eq!(pictures(&heard.checkpoint()), [true, false]);
}

/// The yes holds in one turn: left for the next, it could never be given again.
#[tokio::test(start_paused = true)]
async fn a_call_that_people_allowed_is_made_although_they_are_asked_about_another() {
    let garden = Garden::new().await;
    let worker = garden.worker(&garden.spade).await;
    let steps = script(&json!([clock(), dig(1), {"text": "done"}]));
    let mut front = Front::open(&worker.client, start(&garden.session_id, steps)).await;
    front.acknowledges = false;
    front.until_event(|kind| matches!(kind, Kind::ApprovalRequired(_))).await;
    let lost = front.heard.clone();
    drop(front);
    let start = StepStart {
        checkpoint: lost.checkpoints.last().cloned(),
        journal: begun(&lost, 1),
        asked_approval_ids: asked(&lost),
        ..garden.turn("turn-1", &[says(&asked(&lost)[0], true)])
    };
    let doubt = garden.goes_on(start).await;
    assert_eq!(doubt.story(), ["started", "call", "result", "approval", "completed"]);
    assert_eq!((told(&doubt)[0].name.as_str(), doubt.stop_reason()), ("clock", StopReason::RequiresAction));
    let heard = garden.answered(&doubt, "turn-2", &[says(&asked(&doubt)[0], true)]).await;
    assert_eq!(heard.story(), ["started", "call", "result", "attempt", "message", "completed"]);
    assert_eq!((heard.stop_reason(), garden.spade.digs()), (StopReason::EndTurn, 1));
}

#[tokio::test(start_paused = true)]
async fn a_question_that_an_older_turn_asked_and_that_is_decided_is_not_asked_again() {
    let garden = Garden::new().await;
    let worker = garden.worker(&garden.spade).await;
    let steps = script(&json!([clock(), {"text": "done"}]));
    let mut front = Front::open(&worker.client, start(&garden.session_id, steps)).await;
    front.until_event(|kind| matches!(kind, Kind::ApprovalRequired(_))).await;
    let lost = front.heard.clone();
    drop(front);
    let yes = says(&asked(&lost)[0], true);
    let start = StepStart { checkpoint: lost.checkpoints.last().cloned(), ..garden.turn("turn-2", &[yes]) };
    let heard = garden.goes_on(start).await;
    assert_eq!(heard.story(), ["started", "call", "result", "attempt", "message", "completed"]);
}
