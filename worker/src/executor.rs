//! Runs one turn as a small graph: the guards of the input, a model call, then its tool calls, then the model again, until a
//! branch says stop.
//! After each of these supersteps a checkpoint goes to the front; from it any worker goes on with equal state.

mod attempt;
mod branch;
mod call_ids;
mod chain;
mod changed;
mod compaction;
mod failure;
mod guarding;
mod hedge;
mod model_call;
mod room;
mod state;
mod tool_call;
mod tool_calls;

use std::time::Duration;

use croft_llm::{Providers, Stop, retry};
use croft_proto::conversation;
use croft_proto::id::SessionId;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    AgentLimits, AgentSpec, ModelAttempt, StepCompleted, StepFinished, StepStarted, StopReason, ToolResult,
};
use prost::Message as _;
use tokio_util::sync::CancellationToken;

use crate::guardrails::Guardrails;
use crate::interrupt::{Interrupt, Why};
use crate::link::Link;
use crate::metrics::Metrics;
use crate::sessions::Begun;
use crate::tools::Toolbox;
pub(crate) use attempt::unused;
use branch::Next;
pub(crate) use chain::Chain;
pub(crate) use state::State;

/// Bounds that hold where the agent's own spec says nothing.
const MODEL_CALLS_MAX: u32 = 25;
const TOOL_CALLS_MAX: u32 = 100;
/// Where neither the agent nor the front names a bound.
const OUTPUT_TOKENS_MAX: u32 = 4_096;
const TURN_TIMEOUT: Duration = Duration::from_mins(10);

/// The bounds of one turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) model_calls_max: u32,
    pub(crate) tool_calls_max: u32,
    /// Of one answer, with what was thought. 0 leaves it to the front, which knows the model.
    pub(crate) output_tokens_max: u32,
    /// Of the conversation that a model is sent.
    pub(crate) context_tokens_max: u32,
    pub(crate) turn_timeout: Duration,
    /// After which an answer that has not begun is asked for a second time.
    pub(crate) hedge_after: Option<Duration>,
}

impl Bounds {
    /// What an answer may have under a grant of so much; a grant of 0 names no bound.
    fn output_tokens(&self, granted: u32) -> u32 {
        let named = [granted, self.output_tokens_max].into_iter().filter(|tokens| *tokens > 0).min();
        named.unwrap_or(OUTPUT_TOKENS_MAX)
    }

    pub(crate) fn of(agent: &AgentSpec) -> Self {
        let limits: AgentLimits = agent.limits.unwrap_or_default();
        let or = |given: u32, default: u32| if given == 0 { default } else { given };
        let turn_timeout = u64::try_from(limits.turn_timeout_ms).ok().filter(|milliseconds| *milliseconds > 0);
        Self {
            model_calls_max: or(limits.model_calls_max, MODEL_CALLS_MAX),
            tool_calls_max: or(limits.tool_calls_max, TOOL_CALLS_MAX),
            output_tokens_max: limits.output_tokens_max,
            context_tokens_max: or(limits.context_tokens_max, u32::MAX),
            turn_timeout: turn_timeout.map_or(TURN_TIMEOUT, Duration::from_millis),
            hedge_after: u64::try_from(agent.hedge_after_ms).ok().filter(|after| *after > 0).map(Duration::from_millis),
        }
    }
}

/// One turn, ready to run.
pub(crate) struct Executor<'step> {
    pub(crate) link: &'step Link,
    pub(crate) interrupt: &'step Interrupt,
    /// Cancelled when the worker shuts down: the superstep at hand is the last.
    pub(crate) draining: CancellationToken,
    pub(crate) begun: &'step Begun,
    pub(crate) providers: &'step Providers,
    pub(crate) retry: retry::Policy,
    pub(crate) metrics: &'step Metrics,
    pub(crate) toolbox: &'step Toolbox,
    pub(crate) guardrails: &'step Guardrails,
    pub(crate) agent: &'step AgentSpec,
    pub(crate) bounds: Bounds,
    pub(crate) session: SessionId,
    /// The agent's model, and those that may take over.
    pub(crate) chain: Chain,
    pub(crate) state: State,
    /// Results that the turn begins with: calls that an earlier one left open.
    pub(crate) closed: Vec<ToolResult>,
    /// Attempts at models in this turn of which the front before may not have heard.
    pub(crate) untold: Vec<ModelAttempt>,
}

/// How a superstep left the turn.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Superstep {
    /// The model answered, and stopped for this reason.
    Answered(Stop),
    /// All of its tool calls have results.
    ToolsRun,
    /// The turn ends here.
    Ended(StopReason),
    /// Someone ended it from outside.
    Interrupted(Why),
}

/// How a turn that is over was left.
enum End {
    Told(StopReason),
    /// Nobody is there to be told.
    HungUp,
}

impl Executor<'_> {
    /// Runs to the end of the turn, and tells the front how it ended.
    pub(crate) async fn run(mut self, started: StepStarted) {
        self.link.event(Kind::StepStarted(started)).await;
        for attempt in std::mem::take(&mut self.untold) {
            self.link.attempted(attempt).await;
        }
        for result in std::mem::take(&mut self.closed) {
            self.link.event(Kind::ToolResult(result)).await;
        }
        let stop_reason = match self.turn().await {
            End::HungUp => return,
            End::Told(stop_reason) => stop_reason,
        };
        let stays_open = matches!(stop_reason, StopReason::HandedBack | StopReason::RequiresAction);
        if !stays_open {
            self.close_open_calls("The call was not made: the turn ended before.").await;
        }
        while let Some(grant) = self.link.take_unused() {
            self.link.attempted(unused(&grant)).await;
        }
        self.metrics.step_ended(stop_reason);
        self.link.event(Kind::StepCompleted(StepCompleted { stop_reason: stop_reason.into() })).await;
        let checkpoint = self.state.checkpoint();
        self.begun.keep(&checkpoint);
        let finished = StepFinished { stop_reason: stop_reason.into(), checkpoint: Some(checkpoint) };
        self.link.finished(finished).await;
    }

    async fn turn(&mut self) -> End {
        match self.guard_input().await {
            Ok(None) => {}
            Ok(Some(stop_reason)) => return End::Told(stop_reason),
            Err(why) => return end_of(why),
        }
        let mut next = branch::resume(&self.state, &self.bounds);
        loop {
            if let Some(why) = self.interrupt.raised() {
                return end_of(why);
            }
            if let Next::End(stop_reason) = next {
                return End::Told(stop_reason);
            }
            if self.draining.is_cancelled() {
                return End::Told(StopReason::HandedBack);
            }
            let superstep = match next {
                Next::Model => self.model_call().await,
                Next::Tools => self.tool_calls().await,
                Next::End(stop_reason) => Superstep::Ended(stop_reason),
            };
            let after = match superstep {
                Superstep::Answered(stop) => branch::after_answer(&self.state, &self.bounds, stop),
                Superstep::ToolsRun => branch::resume(&self.state, &self.bounds),
                Superstep::Ended(stop_reason) => return End::Told(stop_reason),
                Superstep::Interrupted(why) => return end_of(why),
            };
            let too_large = conversation::too_large(self.superstep_done().await);
            next = match (after, too_large) {
                (Next::Model | Next::Tools, Some(error)) => {
                    self.link.event(Kind::Error(error)).await;
                    Next::End(StopReason::ContextFull)
                }
                (after, _) => after,
            };
        }
    }

    /// The size of what was kept, in bytes.
    async fn superstep_done(&mut self) -> usize {
        self.state.superstep += 1;
        let checkpoint = self.state.checkpoint();
        self.begun.keep(&checkpoint);
        let bytes = checkpoint.encoded_len();
        self.link.checkpoint(checkpoint).await;
        bytes
    }

    /// Gives every call that has no result an error for one, since providers refuse a conversation with open calls.
    async fn close_open_calls(&mut self, why: &str) {
        for result in self.state.close_open_calls(why) {
            self.link.event(Kind::ToolResult(result)).await;
        }
    }
}

fn end_of(why: Why) -> End {
    match why {
        Why::Stop(stop_reason) => End::Told(stop_reason),
        Why::HungUp => End::HungUp,
    }
}
