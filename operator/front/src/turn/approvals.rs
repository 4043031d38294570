//! The approvals that a step waits for.

use std::collections::HashSet;
use std::time::Duration;

use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{ApprovalResolved, SessionEvent, StepStart};
use tokio::time::Instant;

use crate::events::log::is_last_page;

/// While people are asked, this often the log is looked at for their answer: word of it may have been lost on its way.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Events that are read at a time on that look.
pub(super) const PAGE: u32 = 500;

/// See the module.
pub(super) struct Approvals {
    open: HashSet<String>,
    /// The log has been looked at up to here.
    pub(super) seen: u64,
    next_look: Instant,
}

impl Approvals {
    /// Those that the step begins with; `seen` is the number of the user's message, before which nobody was asked.
    pub(super) fn of(start: &StepStart, seen: u64) -> Self {
        let decided: HashSet<_> = start.decisions.iter().map(|decision| &decision.approval_id).collect();
        let open = start.asked_approval_ids.iter().filter(|id| !decided.contains(id)).cloned().collect();
        Self { open, seen, next_look: Instant::now() }
    }

    /// Takes note of the questions among what the worker told.
    pub(super) fn note(&mut self, kinds: &[Kind]) {
        self.open.extend(kinds.iter().filter_map(|kind| match kind {
            Kind::ApprovalRequired(asked) => Some(asked.approval_id.clone()),
            _ => None,
        }));
    }

    /// When to look at the log for answers; `None` while nobody is asked.
    pub(super) fn next_look(&self) -> Option<Instant> {
        (!self.open.is_empty()).then_some(self.next_look)
    }

    /// The log could not be looked at.
    pub(super) fn look_later(&mut self) {
        self.next_look = Instant::now() + LOOK_EVERY;
    }

    /// The answers among a page of the log, of those that were waited for.
    pub(super) fn found(&mut self, page: Vec<SessionEvent>) -> Vec<ApprovalResolved> {
        // Another page has more behind it.
        let pause = if is_last_page(&page, PAGE) { LOOK_EVERY } else { Duration::ZERO };
        self.next_look = Instant::now() + pause;
        self.seen = page.last().map_or(self.seen, |event| event.seq);
        page.into_iter().filter_map(|event| self.decided(event)).collect()
    }

    /// The answer that this event is, if it was waited for.
    pub(super) fn decided(&mut self, event: SessionEvent) -> Option<ApprovalResolved> {
        match event.kind {
            Some(Kind::ApprovalResolved(resolved)) if self.open.remove(&resolved.approval_id) => Some(resolved),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use croft_proto::v1::content_block::Block;
    use croft_proto::v1::{ContentBlock, Text, ToolResult};

    use super::*;
    use crate::events::log::PAGE_BYTES;

    fn event(seq: u64, kind: Kind) -> SessionEvent {
        SessionEvent { seq, kind: Some(kind), ..SessionEvent::default() }
    }

    fn result(bytes: usize) -> Kind {
        let text = Text { text: "x".repeat(bytes) };
        let content = vec![ContentBlock { block: Some(Block::Text(text)) }];
        Kind::ToolResult(ToolResult { content, ..ToolResult::default() })
    }

    /// Once, a page that its bytes had ended was taken for the last, and an answer behind megabytes of results came a second late for each
    /// of them.
    #[tokio::test(start_paused = true)]
    async fn an_answer_behind_large_results_is_looked_for_at_once() {
        let start = StepStart { asked_approval_ids: vec!["a".into()], ..StepStart::default() };
        let mut approvals = Approvals::of(&start, 1);
        let now = Instant::now();
        for seq in 2..10 {
            assert_eq!(approvals.found(vec![event(seq, result(PAGE_BYTES as usize))]), []);
            assert_eq!((approvals.next_look(), approvals.seen), (Some(now), seq));
        }
        assert_eq!(approvals.found(vec![event(10, result(10))]), []);
        assert_eq!(approvals.next_look(), Some(now + LOOK_EVERY), "nothing is behind it");
        let yes = ApprovalResolved {
            approval_id: "a".into(),
            approved: true,
            resolver: "somebody".into(),
            ..ApprovalResolved::default()
        };
        assert_eq!(approvals.found(vec![event(11, Kind::ApprovalResolved(yes.clone()))]), [yes]);
        assert_eq!(approvals.next_look(), None, "nobody is asked any more");
    }
}
