//! What a conversation comes to, and how it differs from one that nothing disturbed.

use std::collections::BTreeMap;

use croft_proto::v1::content_block::Block;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{ContentBlock, SessionEvent, StopReason, UsageEvent};

use crate::story;

/// What people and models have of a turn: that which must not depend on faults. A place is a call's among all of its turn, in the
/// model's order; a call that an earlier turn left open has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Line {
    User(String),
    Agent(String),
    Asked {
        place: Option<usize>,
        tool: String,
        /// The call was begun, and nobody knows what came of it.
        of_unknown: bool,
    },
    Decided {
        place: Option<usize>,
        approved: bool,
    },
    Call {
        place: usize,
        name: String,
        arguments: String,
    },
    Result {
        place: Option<usize>,
        text: String,
        is_error: bool,
    },
    Failed {
        reason: String,
    },
    Idle(StopReason),
}

/// All of a conversation after its end.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) events: Vec<SessionEvent>,
    pub(crate) turns: Vec<Vec<Line>>,
    pub(crate) usage: Vec<UsageEvent>,
    /// What the next turn would begin with: who said what, each result by itself. `None` when nobody could look.
    pub(crate) memory: Option<Vec<String>>,
}

impl Record {
    pub(crate) fn new(events: Vec<SessionEvent>, usage: Vec<UsageEvent>, memory: Option<Vec<String>>) -> Self {
        Self { turns: turns(&events), events, usage, memory }
    }

    /// What is wrong with it by itself; empty when nothing is.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let numbers: Vec<u64> = self.events.iter().map(|event| event.seq).collect();
        if numbers != (1..=numbers.len() as u64).collect::<Vec<_>>() {
            wrong.push(format!("the log has a hole or a double: {numbers:?}"));
        }
        for event in &self.events {
            if matches!(&event.kind, Some(Kind::ApprovalResolved(decided)) if decided.resolver.is_empty()) {
                wrong.push(format!("nobody is named for the decision of event {}", event.seq));
            }
        }
        let mut elapsed = BTreeMap::new();
        // When people decided is told by another clock.
        let is_of_the_turn =
            |event: &&SessionEvent| !event.turn_id.is_empty() && !matches!(event.kind, Some(Kind::ApprovalResolved(_)));
        for event in self.events.iter().filter(is_of_the_turn) {
            let before = elapsed.insert(&event.turn_id, event.elapsed_ms).unwrap_or_default();
            if event.elapsed_ms < before {
                wrong.push(format!("event {} is of {} ms behind one of {before} ms", event.seq, event.elapsed_ms));
            }
        }
        let mut attempts = BTreeMap::new();
        for event in &self.events {
            if let Some(Kind::ModelAttempt(attempt)) = &event.kind
                && attempts.insert(attempt.attempt_id.clone(), attempt.usage.unwrap_or_default()).is_some()
            {
                wrong.push(format!("attempt {} is told twice", attempt.attempt_id));
            }
        }
        let billed: BTreeMap<_, _> =
            self.usage.iter().map(|row| (row.attempt_id.clone(), row.tokens.unwrap_or_default())).collect();
        // What a log that was over or away did not take is paid for without a word in it: of how many, the deeds tell.
        let told: BTreeMap<_, _> = billed
            .iter()
            .filter(|(id, _)| attempts.contains_key(*id))
            .map(|(id, usage)| (id.clone(), *usage))
            .collect();
        if billed.len() != self.usage.len() || told != attempts {
            wrong.push(format!("usage is not once for each attempt: {billed:?} for {attempts:?}"));
        }
        wrong.extend(story::faults(&self.turns));
        if let Some(memory) = &self.memory
            && let Some(difference) = story::misremembered(&self.turns, memory)
        {
            wrong.push(difference);
        }
        wrong
    }

    /// What is wrong with what a reader was told of it, over all connections, in the order in which it came.
    pub(crate) fn misreadings(&self, seen: &[SessionEvent]) -> Vec<String> {
        let mut wrong = Vec::new();
        let numbers: Vec<u64> = seen.iter().map(|event| event.seq).collect();
        if numbers != (1..=numbers.len() as u64).collect::<Vec<_>>() {
            wrong.push(format!("the reader saw a hole or a double: {numbers:?}"));
        }
        if seen.iter().zip(&self.events).any(|(seen, stored)| seen != stored) {
            wrong.push("the reader saw another event than is stored, or a foreign one".into());
        }
        wrong
    }
}

/// What may differ after what went wrong, as long as the conversation says so.
#[derive(Debug, Clone, Default)]
pub(crate) struct Excuses {
    /// How often a turn may have lost its worker.
    pub(crate) worker_losses: usize,
    /// The turns that a user's message may interrupt. When it comes is nobody's promise.
    pub(crate) interrupted: Vec<usize>,
}

/// How a conversation differs from the one without faults, beyond what it says itself that is unknown.
pub(crate) fn differences(calm: &Record, stormy: &Record, excuses: &Excuses) -> Vec<String> {
    if calm.turns.len() != stormy.turns.len() {
        return vec![format!("{} turns in place of {}", stormy.turns.len(), calm.turns.len())];
    }
    let mut wrong = Vec::new();
    let was_interrupted = |turn: &[Line]| turn.contains(&Line::Idle(StopReason::Interrupted));
    for (place, (calm_turn, stormy_turn)) in calm.turns.iter().zip(&stormy.turns).enumerate() {
        if was_interrupted(calm_turn) || was_interrupted(stormy_turn) {
            if !excuses.interrupted.contains(&place) {
                wrong.push(format!("turn {place} was interrupted by nobody: {stormy_turn:#?}"));
            }
            continue;
        }
        // What an earlier turn left open is closed first; `story::faults` has looked whether it is what was open.
        let closes = |line: &&Line| matches!(line, Line::Result { place: None, .. });
        let stormy_turn: Vec<_> = stormy_turn.iter().filter(|line| !closes(line)).cloned().collect();
        let calm_turn: Vec<_> = calm_turn.iter().filter(|line| !closes(line)).cloned().collect();
        if stretches(&calm_turn) == stretches(&stormy_turn) {
            continue;
        }
        match unknown(&calm_turn, &stormy_turn) {
            Some(StopReason::RequiresAction) => {}
            Some(StopReason::WorkerLost) if excuses.worker_losses >= 3 => {}
            _ if excuses.worker_losses >= 3 && stormy_turn.iter().any(lost_its_sub_agent) => {}
            _ => wrong.push(format!("turn {place} is {stormy_turn:#?} in place of {calm_turn:#?}")),
        }
    }
    wrong
}

/// A sub-agent may lose as many workers as any turn; its caller is told so, and goes on.
fn lost_its_sub_agent(line: &Line) -> bool {
    matches!(line, Line::Result { text, is_error: true, .. } if text.starts_with("The sub-agent was lost with its worker"))
}

/// What no conversation says that nothing disturbed.
pub(crate) fn troubles(record: &Record, interrupted: &[usize]) -> Vec<String> {
    let is_trouble = |turn: usize, line: &Line| match line {
        Line::Idle(StopReason::EndTurn | StopReason::MaxTokens | StopReason::Error) => false,
        Line::Idle(StopReason::Interrupted) => !interrupted.contains(&turn),
        Line::Idle(_) => true,
        // As the script says.
        Line::Failed { reason } => reason != "MODEL_REQUEST_INVALID",
        Line::Asked { of_unknown, .. } => *of_unknown,
        _ => false,
    };
    let turns = record.turns.iter().enumerate();
    turns
        .flat_map(|(turn, lines)| lines.iter().filter(move |line| is_trouble(turn, line)))
        .map(|line| format!("undisturbed, it says {line:?}"))
        .collect()
}

/// The reason with which a turn ended early, if it was as without faults until then and says what is unknown: a call that may not
/// be repeated, about which people are asked, or that its workers were lost.
fn unknown(calm: &[Line], stormy: &[Line]) -> Option<StopReason> {
    let stop_reason =
        stormy.iter().find_map(|line| if let Line::Idle(stop_reason) = line { Some(stop_reason) } else { None })?;
    let says_so = |line: &Line| match stop_reason {
        StopReason::RequiresAction => matches!(line, Line::Asked { of_unknown: true, .. }),
        // And each of its calls that came to nothing says so, too.
        StopReason::WorkerLost => matches!(line, Line::Failed { .. } | Line::Result { is_error: true, .. }),
        _ => false,
    };
    if !stormy.iter().any(says_so) {
        return None;
    }
    let kept: Vec<_> = stormy.iter().filter(|line| !says_so(line) && !matches!(line, Line::Idle(_))).cloned().collect();
    let (calm, kept) = (stretches(calm), stretches(&kept));
    let (last, before) = kept.split_last()?;
    let whole = calm.get(before.len())?;
    (calm.starts_with(before) && last.iter().all(|line| whole.contains(line))).then_some(*stop_reason)
}

/// A turn from one word of the user or the model to the next. In between, what happens to one call comes in an order that
/// `story::faults` looks after; when a person decides, and which of several tools is done first, is theirs.
pub(crate) fn stretches(lines: &[Line]) -> Vec<Vec<Line>> {
    let mut stretches: Vec<Vec<Line>> = Vec::new();
    for line in lines {
        match stretches.last_mut() {
            Some(stretch) if !matches!(line, Line::User(_) | Line::Agent(_)) => stretch.push(line.clone()),
            _ => stretches.push(vec![line.clone()]),
        }
    }
    let rank = |line: &Line| match line {
        Line::User(_) | Line::Agent(_) => (0, None),
        Line::Asked { place, .. } => (1, *place),
        Line::Decided { place, .. } => (2, *place),
        Line::Call { place, .. } => (3, Some(*place)),
        Line::Result { place, .. } => (4, *place),
        Line::Failed { .. } => (5, None),
        Line::Idle(_) => (6, None),
    };
    for stretch in &mut stretches {
        stretch.sort_by_key(rank);
    }
    stretches
}

/// The message of a turn that begins with a person's answer: to a question of the turn before, which ended meanwhile.
pub(crate) fn is_answer(event: &SessionEvent) -> bool {
    matches!(&event.kind, Some(Kind::UserMessage(message)) if message.content.is_empty())
}

fn turns(events: &[SessionEvent]) -> Vec<Vec<Line>> {
    let mut order: Vec<&str> = Vec::new();
    let mut turns: BTreeMap<&str, (Vec<Line>, Vec<&str>)> = BTreeMap::new();
    let mut questions: BTreeMap<&str, Option<usize>> = BTreeMap::new();
    // Turns that go on with another one.
    let mut sequels: BTreeMap<&str, &str> = BTreeMap::new();
    for event in events.iter().filter(|event| !event.turn_id.is_empty()) {
        let own = event.turn_id.as_str();
        if let Some(before) = order.last().filter(|_| is_answer(event)) {
            sequels.insert(own, before);
            if let Some((lines, _)) = turns.get_mut(before) {
                lines.retain(|line| *line != Line::Idle(StopReason::RequiresAction));
            }
            continue;
        }
        let turn = *sequels.get(own).unwrap_or(&own);
        if !turns.contains_key(turn) {
            order.push(turn);
        }
        let (lines, calls) = turns.entry(turn).or_default();
        if let Some(Kind::AgentMessage(message)) = &event.kind {
            calls.extend(message.content.iter().filter_map(|block| match &block.block {
                Some(Block::ToolUse(call)) => Some(call.tool_call_id.as_str()),
                _ => None,
            }));
        }
        let place = |id: &str| calls.iter().position(|call| *call == id);
        lines.extend(match event.kind.as_ref().expect("an event has a kind") {
            Kind::UserMessage(message) => Some(Line::User(content(&message.content))),
            Kind::AgentMessage(message) => Some(Line::Agent(content(&message.content))),
            Kind::ToolCall(call) => Some(Line::Call {
                place: place(&call.tool_call_id).expect("the model asked for it"),
                name: call.name.clone(),
                arguments: call.arguments_json.clone(),
            }),
            Kind::ToolResult(result) => Some(Line::Result {
                place: place(&result.tool_call_id),
                text: content(&result.content),
                is_error: result.is_error,
            }),
            Kind::ApprovalRequired(asked) => {
                questions.insert(&asked.approval_id, place(&asked.tool_call_id));
                let line = Line::Asked {
                    place: place(&asked.tool_call_id),
                    tool: asked.tool_name.clone(),
                    of_unknown: asked.reason.contains("its outcome is unknown"),
                };
                // What nobody has decided stands, and a turn that goes on says so.
                let is_repeated = own != turn && lines.contains(&line);
                (!is_repeated).then_some(line)
            }
            Kind::ApprovalResolved(decided) => {
                let line = Line::Decided {
                    place: *questions.get(decided.approval_id.as_str()).expect("somebody asked"),
                    approved: decided.approved,
                };
                // The turn before had not heard of it when it came to its end.
                let is_repeated = own != turn && lines.contains(&line);
                (!is_repeated).then_some(line)
            }
            Kind::Error(error) => Some(Line::Failed { reason: error.reason.clone() }),
            Kind::SessionIdle(idle) => Some(Line::Idle(idle.stop_reason())),
            _ => None,
        });
    }
    order.into_iter().map(|turn| turns.remove(turn).expect("it is in the order").0).collect()
}

/// Without ids, which depend on how long the conversation was.
pub(crate) fn content(blocks: &[ContentBlock]) -> String {
    let said = blocks.iter().map(|block| match block.block.as_ref() {
        Some(Block::Text(text)) => text.text.clone(),
        Some(Block::ToolUse(call)) => format!("<{} {}>", call.name, call.arguments_json),
        Some(Block::ToolOutput(output)) => format!("<= {}>", content(&output.content)),
        _ => "<?>".into(),
    });
    said.collect::<Vec<_>>().join(" ")
}
