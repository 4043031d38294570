//! What a conversation must be by itself, with or without faults: each call is allowed, made and answered in this order and once,
//! nothing comes after a turn's last word, and the model remembers what the log says.

use std::collections::BTreeSet;

use croft_proto::v1::StopReason;

use crate::transcript::{Line, stretches};

/// Calls that may not be repeated.
const UNSAFE: [&str; 2] = ["launch", "fire"];

/// What is wrong with turns by themselves; empty when nothing is.
pub(crate) fn faults(turns: &[Vec<Line>]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut left_open = 0;
    for (number, turn) in turns.iter().enumerate() {
        let closed = turn.iter().filter(|line| closes(line)).count();
        if closed != left_open {
            wrong.push(format!("turn {number} closes {closed} calls of the {left_open} left open: {turn:#?}"));
        }
        wrong.extend(disorder(turn).map(|problem| format!("turn {number}: {problem} in {turn:#?}")));
        left_open = open_calls(turn);
    }
    wrong
}

/// Calls that the model asked for and that have no result, at the end of a turn.
fn open_calls(turn: &[Line]) -> usize {
    asked_for(turn) - turn.iter().filter(|line| matches!(line, Line::Result { place: Some(_), .. })).count()
}

/// Calls that the model asked for.
fn asked_for(turn: &[Line]) -> usize {
    turn.iter().map(|line| if let Line::Agent(said) = line { calls_in(said) } else { 0 }).sum()
}

/// As `transcript::content` writes them.
fn calls_in(said: &str) -> usize {
    said.matches('<').count()
}

/// The first thing in a turn that comes at the wrong moment, twice, or never.
fn disorder(turn: &[Line]) -> Option<String> {
    let (mut asked, mut decided, mut called, mut done) =
        (BTreeSet::new(), BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut ended = None;
    let mut unknown = BTreeSet::new();
    for line in turn {
        let is_in_order = match line {
            // A person's word may cross with an interrupt, which no one can keep apart: then it comes after the end and does nothing.
            // Where the turn ended for people to act, the question stands.
            Line::Decided { place: Some(place), .. }
                if matches!(ended, Some(StopReason::Interrupted | StopReason::RequiresAction)) =>
            {
                asked.contains(place) && decided.insert(*place)
            }
            _ if ended.is_some() => false,
            Line::Asked { place: Some(place), of_unknown: true, tool } => {
                UNSAFE.contains(&tool.as_str())
                    && called.contains(place)
                    && !done.contains(place)
                    && unknown.insert(*place)
            }
            Line::Asked { place: Some(place), .. } => !called.contains(place) && asked.insert(*place),
            Line::Decided { place: Some(place), .. } => asked.contains(place) && decided.insert(*place),
            Line::Call { place, name, .. } => {
                let needs_leave = matches!(name.as_str(), "ask" | "fire");
                needs_leave == asked.contains(place)
                    && needs_leave == decided.contains(place)
                    && !done.contains(place)
                    && called.insert(*place)
            }
            // Whichever is done first; one that was never made failed.
            Line::Result { place: Some(place), is_error, .. } => {
                (*is_error || called.contains(place)) && done.insert(*place)
            }
            Line::Result { place: None, is_error, .. } => *is_error,
            Line::Asked { place: None, .. } | Line::Decided { place: None, .. } => false,
            Line::User(_) | Line::Agent(_) | Line::Failed { .. } => true,
            Line::Idle(stop_reason) => {
                ended = Some(*stop_reason);
                true
            }
        };
        if !is_in_order {
            return Some(format!("{line:?} comes out of order"));
        }
    }
    let Some(ended) = ended else { return Some("no end".into()) };
    // Only a call that may not be repeated is left to people, and every such call is.
    let left: BTreeSet<_> = turn
        .iter()
        .filter_map(|line| match line {
            Line::Call { place, name, .. } if UNSAFE.contains(&name.as_str()) && !done.contains(place) => Some(*place),
            _ => None,
        })
        .collect();
    match ended {
        StopReason::RequiresAction if unknown.is_empty() || unknown != left => {
            Some(format!("people are asked about {unknown:?} while {left:?} are unknown"))
        }
        StopReason::RequiresAction => None,
        _ if open_calls(turn) > 0 => Some("calls left open".into()),
        _ if !unknown.is_empty() => Some("a question, and an end that does not tell of it".into()),
        _ => None,
    }
}

/// The result of a call that an earlier turn left open.
fn closes(line: &Line) -> bool {
    matches!(line, Line::Result { place: None, .. })
}

/// How what the model remembers differs from what the log says was said, if it does.
pub(crate) fn misremembered(turns: &[Vec<Line>], memory: &[String]) -> Option<String> {
    let mut said = Vec::new();
    for (number, turn) in turns.iter().enumerate() {
        let mut turn: Vec<_> = turn.iter().filter(|line| !closes(line)).cloned().collect();
        // What the next turn closes stands among the results of its own answer.
        let has_result = |place: &usize| {
            turn.iter().any(|line| matches!(line, Line::Result { place: Some(done), .. } if done == place))
        };
        let open: Vec<_> = (0..asked_for(&turn)).filter(|place| !has_result(place)).collect();
        let closing = turns.get(number + 1).into_iter().flatten().filter(|line| closes(line));
        for (place, line) in open.into_iter().zip(closing) {
            if let Line::Result { text, is_error, .. } = line.clone() {
                turn.push(Line::Result { place: Some(place), text, is_error });
            }
        }
        // The model sees the results of its calls in its own order.
        said.extend(stretches(&turn).concat().iter().filter_map(|line| match line {
            Line::User(text) => Some(format!("User: {text}")),
            Line::Agent(text) => Some(format!("Assistant: {text}")),
            Line::Result { text, .. } => Some(format!("Tool: <= {text}>")),
            _ => None,
        }));
    }
    let mut memory = memory.to_vec();
    // Results of a superstep that is not over are in the journal, and join the conversation with the next turn.
    if turns.last().is_some_and(|turn| open_calls(turn) > 0) {
        for lines in [&mut said, &mut memory] {
            while lines.last().is_some_and(|line| line.starts_with("Tool: ")) {
                lines.pop();
            }
        }
    }
    (said != memory).then(|| format!("the model remembers {memory:#?} of {said:#?}"))
}
