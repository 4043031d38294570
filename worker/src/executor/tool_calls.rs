//! The superstep that makes the model's tool calls, all at a time. Each result is told when it is there, so that it is stored while
//! other calls run or wait for people; the model sees them in its own order.

use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{StopReason, ToolCall, ToolResult};
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use prost::Message as _;

use super::changed::Changed;
use super::room::Room;
use super::state::error_result;
use super::tool_call::{self, Bench, Outcome, Plan, Question, Todo};
use super::{Executor, Superstep};
use crate::interrupt::Why;
use crate::link::Link;

const INTERRUPTED: &str = "The call was interrupted before it gave a result; it may have taken effect.";
const NOT_APPROVED: &str = "The call was not made: the turn ended before a person approved it.";
const NOT_CHECKED: &str =
    "The call was not made: the turn ended before the arguments that a person gave for it were checked.";
const REPEAT: &str = "The call was begun, its outcome is unknown, and to repeat it may do it twice.";

/// A call's place in the model's answer, and what came of it.
struct Slot {
    call: ToolCall,
    changed: Changed,
    /// How often it was begun, this time included.
    times_begun: u32,
    /// The question to a person, where one is asked before the call is made.
    approval_id: Option<String>,
    outcome: Option<Outcome>,
    /// Its result is in the journal, so its event is stored.
    told: bool,
}

impl Executor<'_> {
    pub(super) async fn tool_calls(&mut self) -> Superstep {
        loop {
            let (toolbox, calls) = (self.toolbox, self.state.open_calls());
            let (mut doubtful, mut plans) = (Vec::new(), Vec::new());
            let plan = |call| tool_call::plan(call, toolbox, &self.state, self.session, self.link);
            // What it holds to schemas is the model's, and may take its time.
            let planned = match self.interrupt.or_unready(join_all(calls.iter().map(plan))).await {
                Ok(planned) => planned,
                Err(why) => return Superstep::Interrupted(why),
            };
            for plan in planned {
                if matches!(plan.todo, Todo::AskWhetherToRepeat) { doubtful.push(plan) } else { plans.push(plan) }
            }
            // Results that are known take their room although they come into the conversation later.
            let all = plans.iter().chain(&doubtful);
            let room = Room::beside(all.map(|plan| (&plan.call, plan.known())));
            if !doubtful.is_empty() {
                // Whoever decided meant this turn: what they said holds in no later one. And a sub-agent that was begun ends with the
                // turn that called it.
                plans.retain(|plan| (plan.is_decided || plan.is_sub_agent_begun()) && plan.known().is_none());
            }
            let (slots, interrupted) = self.carry_out(plans, room).await;
            if let Some(superstep) = self.conclude(slots, interrupted, &doubtful).await {
                return superstep;
            }
        }
    }

    async fn carry_out(&self, plans: Vec<Plan<'_>>, room: Room) -> (Vec<Slot>, Option<Why>) {
        let bench = Bench {
            link: self.link,
            metrics: self.metrics,
            toolbox: self.toolbox,
            guardrails: self.guardrails,
            draining: &self.draining,
            session: self.session,
        };
        let running = FuturesUnordered::new();
        let mut slots = Vec::with_capacity(plans.len());
        for (place, plan) in plans.into_iter().enumerate() {
            let is_told_at_once = plan.is_told_at_once();
            slots.push(Slot {
                call: plan.call.clone(),
                changed: plan.changed.clone(),
                times_begun: plan.times_begun + u32::from(is_told_at_once || plan.asks()),
                approval_id: plan.asks().then(|| Question::Make.id(self.session, &plan.call.tool_call_id)),
                outcome: None,
                told: plan.known().is_some(),
            });
            // Journalled in the model's order before anything is made; one that needs a person's yes only after it.
            let mut index = None;
            if is_told_at_once {
                index = Some(self.link.event(Kind::ToolCall(plan.call.clone())).await);
            }
            let bench = &bench;
            running.push(async move { (place, bench.carry_out(plan, index).await) });
        }
        let interrupted = self.gather(&mut slots, running, room).await;
        (slots, interrupted)
    }

    /// Fills the slots until all calls are over, or the step is ended from outside. A result is told at once: whoever is lost
    /// later, nobody need ask whether the call was made.
    async fn gather(
        &self,
        slots: &mut [Slot],
        mut running: FuturesUnordered<impl Future<Output = (usize, Outcome)>>,
        mut room: Room,
    ) -> Option<Why> {
        loop {
            match self.interrupt.or(running.next()).await {
                Ok(None) => return None,
                Ok(Some((place, outcome))) => {
                    slots[place].came(outcome, &mut room);
                    slots[place].tell(self.link).await;
                }
                Err(why) => {
                    // What is done is done.
                    while let Some(Some((place, outcome))) = running.next().now_or_never() {
                        slots[place].came(outcome, &mut room);
                    }
                    return Some(why);
                }
            }
        }
    }

    /// Takes the results into the state, with an error for each call that was cut off. Of doubtful calls people are asked, which ends
    /// the turn; `None` when they have decided meanwhile.
    async fn conclude(
        &mut self,
        mut slots: Vec<Slot>,
        interrupted: Option<Why>,
        doubtful: &[Plan<'_>],
    ) -> Option<Superstep> {
        if interrupted == Some(Why::HungUp) {
            return Some(Superstep::Interrupted(Why::HungUp));
        }
        for slot in &mut slots {
            if slot.outcome.is_none() {
                let error = |text: &str| Outcome::Done(error_result(&slot.call.tool_call_id, text));
                let stop_reason = match interrupted {
                    Some(Why::Stop(stop_reason)) => stop_reason,
                    Some(Why::HungUp) | None => StopReason::Unspecified,
                };
                slot.outcome = Some(match (slot.progress(self.link), stop_reason) {
                    // People may take longer than a turn; their answer opens the next one. Where they have given it, it is in the log,
                    // and checked by whoever goes on.
                    (Progress::Asked, StopReason::TimeLimit)
                    | (Progress::Asked | Progress::Checked, StopReason::HandedBack) => Outcome::Held,
                    (Progress::Asked, _) => error(NOT_APPROVED),
                    (Progress::Checked, _) => error(NOT_CHECKED),
                    (Progress::Begun, StopReason::HandedBack) => {
                        self.state.begun(slot.made().clone(), slot.times_begun);
                        Outcome::Held
                    }
                    (Progress::Begun, _) => error(&(slot.changed.note() + INTERRUPTED)),
                });
            }
            slot.tell(self.link).await;
        }
        if !doubtful.is_empty() {
            return self.leave_to_people(slots, interrupted, doubtful).await;
        }
        let held = slots.iter().any(|slot| matches!(slot.outcome, Some(Outcome::Held)));
        let results: Vec<ToolResult> = slots
            .into_iter()
            .filter_map(|slot| match slot.outcome {
                Some(Outcome::Done(result)) => Some(result),
                Some(Outcome::Held) | None => None,
            })
            .collect();
        self.state.tool_calls = self.state.tool_calls.saturating_add(u32::try_from(results.len()).unwrap_or(u32::MAX));
        self.state.took(&results);
        Some(match interrupted {
            Some(Why::Stop(StopReason::TimeLimit)) if held => Superstep::Ended(StopReason::RequiresAction),
            Some(why) => Superstep::Interrupted(why),
            None if held => Superstep::Ended(StopReason::HandedBack),
            None => Superstep::ToolsRun,
        })
    }

    /// Asks people about calls that a lost worker began and that may not be repeated by themselves.
    async fn leave_to_people(
        &mut self,
        slots: Vec<Slot>,
        interrupted: Option<Why>,
        doubtful: &[Plan<'_>],
    ) -> Option<Superstep> {
        for slot in slots {
            // Until all calls have results it is journalled: the model sees them together, in its own order.
            let call = slot.made().clone();
            if let Some(Outcome::Done(result)) = slot.outcome {
                self.state.came(call, result);
            }
        }
        let (decided, open): (Vec<_>, Vec<_>) = doubtful.iter().partition(|plan| {
            let approval_id = plan.repeat().id(self.session, &plan.call.tool_call_id);
            self.link.decided(&approval_id).is_some()
        });
        match interrupted {
            None if decided.is_empty() => {}
            None => return None,
            Some(Why::Stop(StopReason::TimeLimit)) => {
                // What they said came too late to be done, and can't be said again.
                for plan in decided {
                    let result = error_result(&plan.call.tool_call_id, &(plan.changed.note() + INTERRUPTED));
                    self.link.event(Kind::ToolResult(result.clone())).await;
                    self.state.came(plan.call.clone(), result);
                }
                if open.is_empty() {
                    return interrupted.map(Superstep::Interrupted);
                }
            }
            Some(why) => return Some(Superstep::Interrupted(why)),
        }
        for plan in open {
            self.link.ask(plan.repeat().about(self.session, &plan.call, REPEAT)).await;
        }
        Some(Superstep::Ended(StopReason::RequiresAction))
    }
}

/// How far a call without an outcome is.
enum Progress {
    /// A person is asked, and has not answered.
    Asked,
    /// A person gave other arguments, which are being checked.
    Checked,
    /// It may have taken effect.
    Begun,
}

impl Slot {
    fn progress(&self, link: &Link) -> Progress {
        let Some(approval_id) = &self.approval_id else { return Progress::Begun };
        match link.decided(approval_id) {
            None => Progress::Asked,
            Some(decision) if !decision.arguments_json.is_empty() && self.changed.get().is_none() => Progress::Checked,
            Some(_) => Progress::Begun,
        }
    }

    /// The call with the arguments that the tool has.
    fn made(&self) -> &ToolCall {
        self.changed.get().unwrap_or(&self.call)
    }

    fn came(&mut self, outcome: Outcome, room: &mut Room) {
        room.give(self.made().encoded_len().saturating_sub(self.call.encoded_len()));
        self.outcome = Some(match outcome {
            Outcome::Done(result) if !self.told => Outcome::Done(room.take(result)),
            known_or_held => known_or_held,
        });
    }

    async fn tell(&mut self, link: &Link) {
        if let Some(Outcome::Done(result)) = &self.outcome
            && !self.told
        {
            self.told = true;
            link.event(Kind::ToolResult(result.clone())).await;
        }
    }
}
