//! Where a turn stands: the last checkpoint, and what whoever had the turn before stored since. A worker goes on from there
//! as if it had done all of that itself, so that nothing is said, asked or done a second time.

use croft_proto::conversation::{changed, open_calls};
use croft_proto::id::TurnId;
use croft_proto::v1::content_block::Block;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    AgentMessage, ApprovalResolved, ContentBlock, JournalledToolCall, Message, ModelAttempt, Role, SessionCheckpoint,
    SessionEvent, StopReason, Text, ToolCall, ToolOutput, ToolResult, ToolUse,
};
use uuid::Uuid;

use crate::events::log::StoredCheckpoint;

/// The neutral name of an answer that was broken off from outside.
const CANCELLED: &str = "cancelled";
/// The finish reason of an attempt that another try of the same call was quicker than: no answer is from it.
pub(super) const HEDGED: &str = "hedged";
/// What the model is told of a call whose result never came, when the user has gone on.
const OUTCOME_UNKNOWN: &str = "The outcome of the call is unknown.";

/// What it is told of one that was begun when the turn was ended.
const INTERRUPTED: &str = "The call was interrupted before it gave a result; it may have taken effect.";
/// What it is told of one that was not.
const NOT_MADE: &str = "The call was not made: the turn ended before.";

/// See the module.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Standing {
    turn: String,
    /// Holds every answer that is stored. Absent before the session's first.
    pub(super) checkpoint: Option<SessionCheckpoint>,
    /// The user's message, while the checkpoint does not hold it.
    pub(super) input: Vec<ContentBlock>,
    /// Calls of the last answer that were begun after the checkpoint was taken, with their results if they came.
    pub(super) journal: Vec<JournalledToolCall>,
    /// Approvals that people were asked for in this turn.
    pub(super) asked: Vec<String>,
    /// What they decided.
    pub(super) decisions: Vec<ApprovalResolved>,
    /// Grants whose attempt is stored.
    pub(super) settled: Vec<String>,
    /// Calls of sub-agents that have a session.
    pub(super) sub_agents: Vec<String>,
    /// The turn is over, but for the word that says so.
    pub(super) over: Option<StopReason>,
    /// How long the turn had run, as the newest of its events says.
    pub(super) elapsed_ms: i64,
}

/// A standing that is made event by event, so that a long turn is never held as a whole.
pub(super) struct Folding {
    standing: Standing,
    /// The checkpoint stands for events up to this number.
    since: u64,
    /// The last that went well, and whose answer is yet to come.
    attempt: ModelAttempt,
}

impl Folding {
    pub(super) fn new(stored: Option<StoredCheckpoint>, turn: TurnId, input: &[ContentBlock]) -> Self {
        let turn = turn.to_string();
        let (since, checkpoint) = stored.map_or((0, None), |stored| (stored.seq, Some(stored.checkpoint)));
        let holds_input = checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.turn_id == turn);
        let input = if holds_input { Vec::new() } else { input.to_vec() };
        let standing = Standing { turn, checkpoint, input, ..Standing::default() };
        Self { standing, since, attempt: ModelAttempt::default() }
    }

    /// The next event of the session after the user's message. Of other turns' nothing is taken.
    pub(super) fn take(&mut self, event: SessionEvent) {
        let Self { standing, since, attempt } = self;
        if event.turn_id != standing.turn {
            return;
        }
        standing.elapsed_ms = standing.elapsed_ms.max(event.elapsed_ms);
        let Some(kind) = event.kind else { return };
        match kind {
            Kind::ApprovalRequired(asked) => standing.asked.push(asked.approval_id),
            Kind::ApprovalResolved(decision) => standing.decisions.push(decision),
            Kind::SubAgentStarted(started) => standing.sub_agents.push(started.tool_call_id),
            Kind::StepStarted(_) => standing.over = None,
            Kind::StepCompleted(step) => {
                standing.over = Some(step.stop_reason()).filter(|why| *why != StopReason::HandedBack);
            }
            Kind::ModelAttempt(made) => {
                standing.settled.push(made.grant_id.clone());
                // Of several, an answer is from the last that went well.
                if made.error_class.is_empty() && made.finish_reason != HEDGED {
                    *attempt = made;
                }
            }
            // The checkpoint stands for it.
            _ if event.seq <= *since => {}
            Kind::AgentMessage(message) => standing.answered(message, std::mem::take(attempt)),
            Kind::ToolCall(call) => standing.begun(call),
            Kind::ToolResult(result) => standing.came(result),
            _ => {}
        }
    }

    pub(super) fn done(self) -> Standing {
        self.standing
    }
}

impl Standing {
    /// `events` are those of the session after the user's message, in order; of other turns' events nothing is taken.
    pub(super) fn of(
        stored: Option<StoredCheckpoint>,
        turn: TurnId,
        input: &[ContentBlock],
        events: impl IntoIterator<Item = SessionEvent>,
    ) -> Self {
        let mut folding = Folding::new(stored, turn, input);
        events.into_iter().for_each(|event| folding.take(event));
        folding.done()
    }

    /// The state that the turn leaves when no worker is there to tell: the next one goes on from it. With `closes`, calls that have
    /// no result get one, as a worker would have given them; they are told with the turn's end.
    pub(super) fn left(mut self, closes: bool) -> (Vec<ToolResult>, Option<SessionCheckpoint>) {
        self.take_input();
        let results = if closes { self.close() } else { Vec::new() };
        let Some(mut checkpoint) = self.checkpoint else { return (results, None) };
        checkpoint.journal.append(&mut self.journal);
        checkpoint.checkpoint_id = Uuid::now_v7().to_string();
        (results, Some(checkpoint))
    }

    fn close(&mut self) -> Vec<ToolResult> {
        let Some(checkpoint) = &self.checkpoint else { return Vec::new() };
        let mut closed = Vec::new();
        for call in open_calls(&checkpoint.messages) {
            let entry = checkpoint.journal.iter().chain(&self.journal).rfind(|entry| is_of(entry, &call.tool_call_id));
            let why = match entry {
                Some(JournalledToolCall { result: Some(_), .. }) => continue,
                Some(begun) => made(&call, begun) + INTERRUPTED,
                None => NOT_MADE.to_owned(),
            };
            let tool_call_id = call.tool_call_id;
            closed.push(ToolResult { tool_call_id, content: text(&why), is_error: true, ..ToolResult::default() });
        }
        for result in &closed {
            self.came(result.clone());
        }
        self.settle(false);
        closed
    }

    fn answered(&mut self, answer: AgentMessage, attempt: ModelAttempt) {
        self.take_input();
        self.settle(false);
        let checkpoint = self.checkpoint.get_or_insert_default();
        checkpoint.checkpoint_id = Uuid::now_v7().to_string();
        checkpoint.model_calls += 1;
        // An answer that was broken off ends no superstep.
        checkpoint.superstep += u32::from(attempt.finish_reason != CANCELLED);
        checkpoint.finish_reason = attempt.finish_reason;
        checkpoint.messages.push(Message {
            role: Role::Assistant.into(),
            content: answer.content,
            provider: attempt.provider,
            model: answer.model,
        });
    }

    /// The user's word comes after the results of what an older turn had left open.
    fn take_input(&mut self) {
        if self.input.is_empty() {
            // A turn without words of the user's, which a person's answer began.
            if let Some(checkpoint) = self.checkpoint.as_mut().filter(|checkpoint| checkpoint.turn_id != self.turn) {
                checkpoint.turn_id.clone_from(&self.turn);
                (checkpoint.model_calls, checkpoint.tool_calls) = (0, 0);
                checkpoint.finish_reason.clear();
            }
            return;
        }
        self.settle(true);
        let content = std::mem::take(&mut self.input);
        let checkpoint = self.checkpoint.get_or_insert_default();
        checkpoint.turn_id.clone_from(&self.turn);
        (checkpoint.model_calls, checkpoint.tool_calls) = (0, 0);
        checkpoint.finish_reason.clear();
        checkpoint.messages.push(Message { role: Role::User.into(), content, ..Message::default() });
    }

    /// Takes the results that came into the conversation; with `all`, an error for each that did not.
    fn settle(&mut self, all: bool) {
        let Some(checkpoint) = &mut self.checkpoint else { return };
        let journal: Vec<_> = checkpoint.journal.drain(..).chain(self.journal.drain(..)).collect();
        let result =
            |id: &str| journal.iter().filter_map(|entry| entry.result.as_ref()).rfind(|r| r.tool_call_id == id);
        let unknown = |call: &ToolUse| {
            let begun = journal.iter().rfind(|entry| is_of(entry, &call.tool_call_id));
            begun.map_or_else(String::new, |begun| made(call, begun)) + OUTCOME_UNKNOWN
        };
        let mut content = Vec::new();
        for call in open_calls(&checkpoint.messages) {
            let output = match result(&call.tool_call_id) {
                Some(ToolResult { content, is_error, .. }) => (content.clone(), *is_error),
                None if all => (text(&unknown(&call)), true),
                None => continue,
            };
            let output = ToolOutput { tool_call_id: call.tool_call_id, content: output.0, is_error: output.1 };
            content.push(ContentBlock { block: Some(Block::ToolOutput(output)) });
        }
        if content.is_empty() {
            return;
        }
        if checkpoint.turn_id == self.turn {
            checkpoint.tool_calls += u32::try_from(content.len()).unwrap_or(u32::MAX);
            checkpoint.superstep += 1;
        }
        checkpoint.messages.push(Message { role: Role::Tool.into(), content, ..Message::default() });
    }

    /// Told again, it was begun again: a person's yes to that is a yes to no further time.
    fn begun(&mut self, call: ToolCall) {
        let before = |entry: &JournalledToolCall| entry.times_begun.max(1);
        if let Some(entry) = self.journal.iter_mut().find(|entry| is_of(entry, &call.tool_call_id)) {
            entry.times_begun = before(entry) + 1;
            return;
        }
        let older = self.checkpoint.as_ref().map_or(&[][..], |checkpoint| &checkpoint.journal);
        let older = older.iter().rfind(|entry| is_of(entry, &call.tool_call_id));
        let times_begun = older.map_or(0, before) + 1;
        self.journal.push(JournalledToolCall { call: Some(call), result: None, times_begun });
    }

    /// Also of calls that were never begun: denied, refused, or closed since the user went on.
    fn came(&mut self, result: ToolResult) {
        if let Some(entry) = self.journal.iter_mut().find(|entry| is_of(entry, &result.tool_call_id)) {
            entry.result = Some(result);
            return;
        }
        let messages = self.checkpoint.as_ref().map_or(&[][..], |checkpoint| &checkpoint.messages);
        let asked = open_calls(messages).into_iter().find(|call| call.tool_call_id == result.tool_call_id);
        if let Some(asked) = asked {
            let call = ToolCall {
                tool_call_id: asked.tool_call_id,
                name: asked.name,
                arguments_json: asked.arguments_json,
                ..ToolCall::default()
            };
            self.journal.push(JournalledToolCall { call: Some(call), result: Some(result), times_begun: 0 });
        }
    }
}

/// What the model is told of a call that a person changed before it was begun.
fn made(call: &ToolUse, begun: &JournalledToolCall) -> String {
    let made = begun.call.as_ref().map_or(&call.arguments_json, |made| &made.arguments_json);
    changed(&call.arguments_json, made)
}

fn is_of(entry: &JournalledToolCall, tool_call_id: &str) -> bool {
    entry.call.as_ref().is_some_and(|call| call.tool_call_id == tool_call_id)
}

fn text(text: &str) -> Vec<ContentBlock> {
    vec![ContentBlock { block: Some(Block::Text(Text { text: text.to_owned() })) }]
}

#[cfg(test)]
mod tests {
    use croft_proto::v1::{ApprovalRequired, StepCompleted, StepStarted, UserMessage};

    use super::*;

    struct Scene {
        turn: TurnId,
        stored: Option<StoredCheckpoint>,
        events: Vec<SessionEvent>,
    }

    impl Scene {
        /// A turn that has begun and has no checkpoint; the session's last one, of another turn, is older.
        fn new(before: Option<SessionCheckpoint>) -> Self {
            let stored = before.map(|checkpoint| StoredCheckpoint { checkpoint, seq: 10 });
            Self { turn: TurnId::generate(), stored, events: Vec::new() }
        }

        fn then(mut self, kind: Kind) -> Self {
            let seq = 12 + self.events.len() as u64;
            let event = SessionEvent { seq, turn_id: self.turn.to_string(), kind: Some(kind), ..Default::default() };
            self.events.push(event);
            self
        }

        fn answer(self, finish_reason: &str, content: Vec<ContentBlock>) -> Self {
            let attempt = ModelAttempt { finish_reason: finish_reason.into(), ..ModelAttempt::default() };
            let message = AgentMessage { content, model: "m".into() };
            self.then(Kind::ModelAttempt(attempt)).then(Kind::AgentMessage(message))
        }

        fn standing(self) -> Standing {
            Standing::of(self.stored, self.turn, &text("asked"), self.events)
        }
    }

    fn call(id: &str) -> ContentBlock {
        let call = ToolUse { tool_call_id: id.into(), name: "spade".into(), arguments_json: "{}".into() };
        ContentBlock { block: Some(Block::ToolUse(call)) }
    }

    fn result(id: &str) -> Kind {
        Kind::ToolResult(ToolResult { tool_call_id: id.into(), content: text("dug"), ..ToolResult::default() })
    }

    fn begun(id: &str) -> Kind {
        Kind::ToolCall(ToolCall {
            tool_call_id: id.into(),
            idempotency_key: format!("key of {id}"),
            arguments_json: "{}".into(),
            ..Default::default()
        })
    }

    fn roles(checkpoint: &SessionCheckpoint) -> Vec<Role> {
        checkpoint.messages.iter().map(Message::role).collect()
    }

    /// Of an older turn, with a call that has no result.
    fn left_open() -> SessionCheckpoint {
        let asked = Message { role: Role::User.into(), content: text("dig"), ..Message::default() };
        let answer = Message { role: Role::Assistant.into(), content: vec![call("old")], ..Message::default() };
        SessionCheckpoint { messages: vec![asked, answer], turn_id: "older".into(), ..SessionCheckpoint::default() }
    }

    #[test]
    fn a_turn_that_has_only_begun_begins_again() {
        let standing = Scene::new(None).then(Kind::StepStarted(StepStarted::default())).standing();
        assert_eq!((standing.checkpoint, standing.input), (None, text("asked")));
    }

    #[test]
    fn an_answer_after_the_checkpoint_is_taken_with_its_calls_and_their_results() {
        let answer = [text("I dig"), vec![call("a"), call("b")]].concat();
        let scene = Scene::new(None).answer("tool_use", answer).then(begun("a")).then(begun("b")).then(result("a"));
        let standing = scene.standing();
        let checkpoint = standing.checkpoint.clone().unwrap();
        assert_eq!(roles(&checkpoint), [Role::User, Role::Assistant]);
        assert_eq!((checkpoint.model_calls, checkpoint.superstep), (1, 1));
        assert_eq!(checkpoint.finish_reason, "tool_use");
        assert!(standing.input.is_empty());
        let known: Vec<_> =
            standing.journal.iter().map(|entry| (entry.call.is_some(), entry.result.is_some())).collect();
        assert_eq!(known, [(true, true), (true, false)]);
    }

    #[test]
    fn what_the_checkpoint_stands_for_is_not_taken_twice() {
        let mut scene = Scene::new(None).answer("end_turn", text("once"));
        let checkpoint = SessionCheckpoint { turn_id: scene.turn.to_string(), ..left_open() };
        scene.stored = Some(StoredCheckpoint { checkpoint: checkpoint.clone(), seq: 14 });
        let standing = scene.standing();
        assert_eq!((standing.checkpoint, standing.input), (Some(checkpoint), Vec::new()));
    }

    #[test]
    fn a_call_of_an_older_turn_that_was_closed_is_not_closed_again() {
        let closed = Scene::new(Some(left_open())).then(result("old"));
        let standing = Scene { events: closed.events.clone(), ..closed }.standing();
        assert_eq!(standing.input, text("asked"), "the worker takes it in, after the result that is known");
        assert!(standing.journal[0].result.is_some());

        let answered = Scene::new(Some(left_open())).then(result("old")).answer("end_turn", text("yes")).standing();
        let checkpoint = answered.checkpoint.unwrap();
        assert_eq!(roles(&checkpoint), [Role::User, Role::Assistant, Role::Tool, Role::User, Role::Assistant]);
        assert_eq!((checkpoint.model_calls, checkpoint.tool_calls), (1, 0), "what an older turn did counts for it");
    }

    /// A person's yes to the second time was a yes to the third, should that worker be lost too.
    #[test]
    fn a_call_that_is_told_again_is_counted_also_where_an_older_turn_began_it() {
        let times = |scene: Scene| scene.standing().journal.remove(0).times_begun;
        let in_this_turn = || Scene::new(None).answer("tool_use", vec![call("a")]).then(begun("a"));
        assert_eq!((times(in_this_turn()), times(in_this_turn().then(begun("a")))), (1, 2));
        for (before, after) in [(0, 2), (1, 2), (2, 3)] {
            let Some(Kind::ToolCall(call)) = Some(begun("old")) else { panic!() };
            let entry = JournalledToolCall { call: Some(call), result: None, times_begun: before };
            let older = SessionCheckpoint { journal: vec![entry], ..left_open() };
            let standing = Scene::new(Some(older)).then(begun("old")).standing();
            assert_eq!(standing.journal[0].times_begun, after);
        }
    }

    #[test]
    fn the_result_of_a_call_that_was_denied_is_known() {
        let scene = Scene::new(None).answer("tool_use", vec![call("a")]).then(result("a"));
        let entry = scene.standing().journal.remove(0);
        assert_eq!((entry.call.unwrap().name, entry.result.unwrap().content), ("spade".to_owned(), text("dug")));
    }

    #[test]
    fn a_turn_whose_step_has_ended_is_over_unless_it_was_handed_back() {
        let ended = |stop_reason: StopReason| {
            let completed = Kind::StepCompleted(StepCompleted { stop_reason: stop_reason.into() });
            Scene::new(None).then(Kind::StepStarted(StepStarted::default())).then(completed)
        };
        assert_eq!(ended(StopReason::LoopLimit).standing().over, Some(StopReason::LoopLimit));
        assert_eq!(ended(StopReason::HandedBack).standing().over, None);
        let again = ended(StopReason::Error).then(Kind::StepStarted(StepStarted::default()));
        assert_eq!(again.standing().over, None);
    }

    #[test]
    fn people_who_were_asked_are_known_and_so_is_their_answer() {
        let asked = ApprovalRequired { approval_id: "q".into(), ..ApprovalRequired::default() };
        let decision = ApprovalResolved {
            approval_id: "q".into(),
            approved: true,
            resolver: "somebody".into(),
            ..ApprovalResolved::default()
        };
        let scene = Scene::new(None).then(Kind::ApprovalRequired(asked));
        let standing = scene.then(Kind::ApprovalResolved(decision.clone())).standing();
        assert_eq!((standing.asked, standing.decisions), (vec!["q".to_owned()], vec![decision]));
    }

    #[test]
    fn what_is_taken_page_by_page_is_what_is_taken_at_once() {
        let asked = ApprovalRequired { approval_id: "q".into(), ..ApprovalRequired::default() };
        let mut scene = Scene::new(Some(left_open()))
            .then(Kind::StepStarted(StepStarted::default()))
            .then(result("old"))
            .answer("tool_use", vec![call("a"), call("b")])
            .then(begun("a"))
            .then(Kind::ApprovalRequired(asked))
            .then(result("a"))
            .answer("end_turn", text("done"));
        scene.events.iter_mut().zip(1..).for_each(|(event, elapsed_ms)| event.elapsed_ms = elapsed_ms);
        for since in [10, 15, 20] {
            scene.stored.as_mut().unwrap().seq = since;
            let whole = Standing::of(scene.stored.clone(), scene.turn, &text("asked"), scene.events.clone());
            for page in 1..scene.events.len() {
                let mut folding = Folding::new(scene.stored.clone(), scene.turn, &text("asked"));
                for events in scene.events.chunks(page) {
                    for event in events {
                        folding.take(event.clone());
                    }
                }
                let mut paged = folding.done();
                // Each is given a name of its own.
                if let (Some(paged), Some(whole)) = (&mut paged.checkpoint, &whole.checkpoint) {
                    paged.checkpoint_id.clone_from(&whole.checkpoint_id);
                }
                assert_eq!(paged, whole);
            }
            assert_eq!(whole.elapsed_ms, 9);
        }
    }

    #[test]
    fn another_turns_events_are_nothing_to_this_one() {
        let mut scene =
            Scene::new(None).answer("end_turn", text("not ours")).then(Kind::UserMessage(UserMessage::default()));
        scene.turn = TurnId::generate();
        assert_eq!(scene.standing().checkpoint, None);
    }

    #[test]
    fn a_turn_that_ends_without_a_worker_leaves_what_was_said() {
        let left = |scene: Scene, closes| {
            let (closed, checkpoint) = scene.standing().left(closes);
            (closed.len(), checkpoint.unwrap())
        };
        let (closed, nothing) = left(Scene::new(None), true);
        assert_eq!((closed, roles(&nothing)), (0, vec![Role::User]));

        let (closed, over_open_calls) = left(Scene::new(Some(left_open())), true);
        assert_eq!(roles(&over_open_calls), [Role::User, Role::Assistant, Role::Tool, Role::User]);
        assert_eq!(closed, 0, "those of an older turn are not this one's");

        let in_mid_call = || Scene::new(None).answer("tool_use", vec![call("a")]).then(begun("a"));
        let (closed, asks) = left(in_mid_call(), false);
        assert_eq!((closed, roles(&asks)), (0, vec![Role::User, Role::Assistant]));
        assert!(asks.journal[0].result.is_none(), "the next turn says that its outcome is unknown");
    }

    /// They stayed open, so that a person's yes was still taken, and the next turn told the model that nobody knows.
    #[test]
    fn calls_of_a_turn_that_is_interrupted_between_two_workers_are_closed() {
        let answer = vec![call("a"), call("b"), call("c")];
        let scene = Scene::new(None).answer("tool_use", answer).then(begun("a")).then(begun("b")).then(result("a"));
        let (closed, checkpoint) = scene.standing().left(true);
        let checkpoint = checkpoint.unwrap();
        assert_eq!(roles(&checkpoint), [Role::User, Role::Assistant, Role::Tool]);
        assert!(open_calls(&checkpoint.messages).is_empty() && checkpoint.journal.is_empty());
        let told: Vec<_> = closed.iter().map(|result| (&*result.tool_call_id, result.content.clone())).collect();
        assert_eq!(told, [("b", text(INTERRUPTED)), ("c", text(NOT_MADE))]);
    }

    /// The conversation has the arguments that the model asked for.
    #[test]
    fn of_a_call_that_a_person_changed_the_model_hears_with_what_it_was_made() {
        let given = r#"{"depth":2}"#;
        let changed = |id: &str| {
            let Kind::ToolCall(call) = begun(id) else { panic!() };
            Kind::ToolCall(ToolCall { arguments_json: given.into(), ..call })
        };
        let in_mid_call = |id: &str| Scene::new(None).answer("tool_use", vec![call(id)]).then(changed(id));
        let (closed, _) = in_mid_call("a").standing().left(true);
        let told = format!("{:?}", closed[0].content);
        assert!(told.contains("A person changed") && told.contains("depth") && told.contains(INTERRUPTED), "{told}");

        let (_, open) = in_mid_call("a").standing().left(false);
        let (_, next) = Scene::new(open).standing().left(false);
        let next = next.unwrap();
        let told = format!("{:?}", next.messages[2].content);
        assert!(told.contains("A person changed") && told.contains(OUTCOME_UNKNOWN), "{told}");
    }
}
