//! The questions of a session that people may still answer: what its log says behind the message that its last turn took up.

use croft_proto::Timestamp;
use croft_proto::id::TurnId;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{ApprovalRequired, ApprovalResolved, SessionEvent, SessionState, StopReason};

use crate::clock::since;
use crate::error::Error;
use crate::events::log::{EventLog, is_last_page};
use crate::session::Session;

/// Events that are read at a time while looking for questions.
pub(super) const PAGE: u32 = 500;

/// A question that is open, or was decided and came to nothing.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Question {
    pub(super) asked: ApprovalRequired,
    /// The number of the event that asked first.
    pub(super) seq: u64,
    pub(super) create_time: Option<Timestamp>,
    /// Of the turn that asked.
    pub(super) turn: TurnId,
    /// The turn waits for the answer; otherwise it is over.
    pub(super) is_waited_for: bool,
    /// On whose behalf the turn runs.
    pub(super) sender: String,
    /// How long the turn has run.
    pub(super) elapsed_ms: i64,
    /// Somebody has said yes, or no, and the turn has not made anything of it.
    pub(super) decided: Option<ApprovalResolved>,
}

/// See the module. They are found event by event, so that a long turn is never held as a whole.
#[derive(Default)]
pub(super) struct Questions {
    /// In the order in which they were asked. No more than calls of one answer that are not over.
    open: Vec<Question>,
    /// On whose behalf each turn runs, by the turn: the one at hand first, behind it those whose messages wait.
    senders: Vec<(String, String)>,
    /// When the newest turn began.
    begun: Option<Timestamp>,
    /// Events that were looked at.
    pub(super) looked_at: usize,
}

impl Questions {
    /// Of this session, as its log is now. None where it has ended.
    pub(super) async fn of(log: &dyn EventLog, session: &Session) -> Result<Self, Error> {
        let mut questions = Self::default();
        if session.state == SessionState::Terminated || session.input_seq == 0 {
            return Ok(questions);
        }
        let mut after = session.input_seq - 1;
        loop {
            let events = log.read(session.tenant, session.id, after, PAGE).await?;
            let is_last = is_last_page(&events, PAGE);
            after = events.last().map_or(after, |last| last.seq);
            questions.looked_at += events.len();
            for event in events {
                questions.take(event);
            }
            if is_last {
                break;
            }
        }
        let elapsed_ms = questions.begun.map_or(0, |begun| i64::try_from(since(begun).as_millis()).unwrap_or(i64::MAX));
        for question in &mut questions.open {
            question.elapsed_ms = question.elapsed_ms.max(elapsed_ms);
        }
        Ok(questions)
    }

    /// The one of this id.
    pub(super) fn about(self, approval_id: &str) -> Option<Question> {
        self.open.into_iter().find(|question| question.asked.approval_id == approval_id)
    }

    /// Those that nobody has decided, in the order in which they were asked.
    pub(super) fn undecided(self) -> impl Iterator<Item = Question> {
        self.open.into_iter().filter(|question| question.decided.is_none())
    }

    /// The next event.
    fn take(&mut self, event: SessionEvent) {
        let SessionEvent { seq, turn_id, kind, create_time, elapsed_ms, .. } = event;
        for question in &mut self.open {
            question.elapsed_ms = question.elapsed_ms.max(elapsed_ms);
        }
        match kind {
            Some(Kind::UserMessage(message)) => {
                self.close_left();
                self.senders.push((turn_id, message.sender));
            }
            Some(Kind::SessionRunning(_)) => {
                self.close_left();
                self.begun = create_time;
            }
            Some(Kind::ApprovalRequired(asked)) => {
                let Ok(turn) = turn_id.parse() else { return };
                let sender = self.sender(&turn_id);
                let place = self.open.iter().position(|open| open.asked.approval_id == asked.approval_id);
                // One that is asked again stays where it was, or who reads page by page would come by it twice.
                let seq = place.map_or(seq, |place| self.open[place].seq);
                let question =
                    Question { asked, seq, create_time, turn, is_waited_for: true, sender, elapsed_ms, decided: None };
                match place {
                    Some(place) => self.open[place] = question,
                    None => self.open.push(question),
                }
            }
            Some(Kind::ApprovalResolved(resolved)) => {
                if let Some(open) = self.open.iter_mut().find(|open| open.asked.approval_id == resolved.approval_id) {
                    open.decided = Some(resolved);
                }
            }
            // It was heard of.
            Some(Kind::ToolCall(called)) => {
                self.open.retain(|open| open.asked.tool_call_id != called.tool_call_id || open.decided.is_none());
            }
            // The call is over, with or without an answer: a turn that was interrupted waits for none.
            Some(Kind::ToolResult(result)) => self.open.retain(|open| open.asked.tool_call_id != result.tool_call_id),
            Some(Kind::SessionIdle(idle)) if idle.stop_reason() == StopReason::RequiresAction => {
                for open in &mut self.open {
                    open.is_waited_for = false;
                }
            }
            Some(Kind::SessionIdle(_) | Kind::SessionTerminated(_)) => self.open.clear(),
            _ => {}
        }
    }

    /// Whoever went on with another message closed what was open, also where it had waited since before the question: then the beginning of
    /// its turn does.
    fn close_left(&mut self) {
        self.open.retain(|open| open.is_waited_for);
    }

    fn sender(&self, turn_id: &str) -> String {
        let own = self.senders.iter().find(|(turn, _)| turn == turn_id);
        own.or(self.senders.first()).map(|(_, sender)| sender.clone()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use croft_proto::v1::{SessionIdle, SessionRunning, SessionTerminated, ToolCall, ToolResult, UserMessage};

    use super::*;

    const FIRST: TurnId = TurnId(uuid::Uuid::from_u128(1));
    const SECOND: TurnId = TurnId(uuid::Uuid::from_u128(2));

    /// A log, told event by event from number 1 on.
    #[derive(Default)]
    struct Log(Questions, u64);

    impl Log {
        fn says(mut self, turn: TurnId, kind: Kind) -> Self {
            self.1 += 1;
            let (turn_id, seq) = (turn.to_string(), self.1);
            self.0.take(SessionEvent { seq, turn_id, kind: Some(kind), ..SessionEvent::default() });
            self
        }

        /// The turn of somebody's message.
        fn begins(self, turn: TurnId, sender: &str) -> Self {
            self.says(turn, message(sender)).says(turn, Kind::SessionRunning(SessionRunning {}))
        }

        fn asks(self, turn: TurnId, approval_id: &str, tool_call_id: &str) -> Self {
            let (approval_id, tool_call_id) = (approval_id.to_owned(), tool_call_id.to_owned());
            self.says(
                turn,
                Kind::ApprovalRequired(ApprovalRequired { approval_id, tool_call_id, ..ApprovalRequired::default() }),
            )
        }

        fn idles(self, turn: TurnId, why: StopReason) -> Self {
            self.says(turn, Kind::SessionIdle(SessionIdle { stop_reason: why.into() }))
        }

        /// Of each undecided question its id, whether it is waited for, and on whose behalf.
        fn asked(self) -> Vec<(String, bool, String)> {
            let undecided = self.0.undecided();
            undecided.map(|open| (open.asked.approval_id, open.is_waited_for, open.sender)).collect()
        }
    }

    fn message(sender: &str) -> Kind {
        Kind::UserMessage(UserMessage { content: Vec::new(), sender: sender.into() })
    }

    fn decided(approval_id: &str, approved: bool) -> Kind {
        Kind::ApprovalResolved(ApprovalResolved {
            approval_id: approval_id.into(),
            approved,
            ..ApprovalResolved::default()
        })
    }

    fn called(tool_call_id: &str) -> Kind {
        Kind::ToolCall(ToolCall { tool_call_id: tool_call_id.into(), ..ToolCall::default() })
    }

    fn result(tool_call_id: &str) -> Kind {
        Kind::ToolResult(ToolResult { tool_call_id: tool_call_id.into(), ..ToolResult::default() })
    }

    fn two_asked() -> Log {
        Log::default().begins(FIRST, "ann").asks(FIRST, "a", "call-a").asks(FIRST, "b", "call-b")
    }

    fn open(id: &str, is_waited_for: bool, sender: &str) -> (String, bool, String) {
        (id.to_owned(), is_waited_for, sender.to_owned())
    }

    #[test]
    fn each_question_is_open_until_it_is_decided_or_its_call_is_over() {
        assert_eq!(two_asked().asked(), [open("a", true, "ann"), open("b", true, "ann")]);
        assert_eq!(two_asked().says(FIRST, decided("a", true)).asked(), [open("b", true, "ann")]);
        assert_eq!(two_asked().says(FIRST, result("call-b")).asked(), [open("a", true, "ann")]);
        assert_eq!(two_asked().says(FIRST, Kind::SessionTerminated(SessionTerminated::default())).asked(), []);
    }

    #[test]
    fn a_question_that_is_asked_again_stays_where_it_was() {
        let again = two_asked().asks(FIRST, "a", "call-a");
        let questions: Vec<_> = again.0.undecided().map(|open| (open.asked.approval_id, open.seq)).collect();
        assert_eq!(questions, [("a".to_owned(), 3), ("b".to_owned(), 4)]);
        let decided = two_asked().says(FIRST, decided("a", true)).asks(FIRST, "a", "call-a");
        assert_eq!(decided.asked(), [open("a", true, "ann"), open("b", true, "ann")], "and open");
    }

    /// It may come to nothing as the turn ends, and then whoever says the same again is told that it counts.
    #[test]
    fn what_is_decided_is_known_until_its_call_is_begun() {
        let log = two_asked().says(FIRST, called("call-b")).says(FIRST, decided("a", true));
        let decision = log.0.about("a").unwrap().decided.unwrap();
        assert!(decision.approved);
        let log = two_asked().says(FIRST, decided("a", true)).says(FIRST, called("call-a"));
        assert_eq!(log.0.about("a"), None);
        assert_eq!(two_asked().0.about("c"), None);
        assert_eq!(two_asked().0.about("b").map(|question| question.seq), Some(4));
    }

    #[test]
    fn a_turn_that_ends_leaves_its_questions_open_only_to_be_decided() {
        let left = || two_asked().idles(FIRST, StopReason::RequiresAction);
        assert_eq!(left().asked(), [open("a", false, "ann"), open("b", false, "ann")]);
        assert_eq!(two_asked().idles(FIRST, StopReason::Interrupted).asked(), []);
        assert_eq!(left().says(SECOND, message("bob")).asked(), [], "another message closes them");
        let waited = two_asked().says(SECOND, message("bob"));
        assert_eq!(waited.asked(), [open("a", true, "ann"), open("b", true, "ann")]);
        let waited = two_asked().says(SECOND, message("bob")).idles(FIRST, StopReason::RequiresAction);
        assert_eq!(waited.asked(), [open("a", false, "ann"), open("b", false, "ann")]);
        let waited = two_asked().says(SECOND, message("bob")).idles(FIRST, StopReason::RequiresAction);
        assert_eq!(waited.says(SECOND, Kind::SessionRunning(SessionRunning {})).asked(), []);
    }

    /// The next turn may have begun and asked since the session was looked at.
    #[test]
    fn a_question_is_asked_on_behalf_of_who_sent_the_message_of_its_turn() {
        let log = two_asked().says(SECOND, message("bob")).idles(FIRST, StopReason::EndTurn);
        let log = log.says(SECOND, Kind::SessionRunning(SessionRunning {})).asks(SECOND, "c", "call-c");
        assert_eq!(log.asked(), [open("c", true, "bob")]);
    }
}
