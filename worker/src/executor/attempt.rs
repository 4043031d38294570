//! One attempt at a model: streams its previews, and tells what it came to, however it ended.

use std::time::Duration;

use croft_llm::{Assembly, Class, Delta, Error, Provider, Request, Stop, breaker, estimate};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{Grant, ModelAttempt, ProviderMode, TextDelta, ThinkingDelta, TokenUsage, ToolArgumentDelta};
use futures::StreamExt as _;
use tokio::time::Instant;
use uuid::Uuid;

use crate::interrupt::{Interrupt, Why};
use crate::link::Link;

/// The fixed word for an answer that was broken off from outside.
pub(super) const CANCELLED: &str = "cancelled";

/// An attempt that is over.
pub(super) struct Attempt {
    pub(super) assembly: Assembly,
    pub(super) end: End,
    latency: Duration,
    first_token: Option<Duration>,
    input_tokens_estimated: u32,
}

pub(super) enum End {
    Stopped(Stop),
    Failed(Error),
    Interrupted(Why),
}

/// Makes one attempt.
pub(super) async fn make(provider: &dyn Provider, request: Request, link: &Link, interrupt: &Interrupt) -> Attempt {
    let input_tokens_estimated = estimate::input_tokens(&request);
    let began = Instant::now();
    let mut first_token = None;
    let mut assembly = Assembly::default();
    let mut deltas = provider.stream(request);
    let end = loop {
        let delta = match interrupt.or(deltas.next()).await {
            Err(why) => break End::Interrupted(why),
            Ok(Some(Ok(delta))) => delta,
            Ok(Some(Err(error))) => break End::Failed(error),
            Ok(None) => break End::Failed(Error::new(provider.name(), Class::Truncated, "ended its answer early")),
        };
        if delta.is_output() && first_token.is_none() {
            first_token = Some(began.elapsed());
        }
        assembly.push(&delta);
        preview(&delta, &assembly, link);
        if let Delta::Stop(stop) = delta {
            break End::Stopped(stop);
        }
    };
    Attempt { assembly, end, latency: began.elapsed(), first_token, input_tokens_estimated }
}

fn preview(delta: &Delta, assembly: &Assembly, link: &Link) {
    match delta {
        Delta::Text { text, .. } => link.preview(Kind::TextDelta(TextDelta { text: text.clone() })),
        Delta::Thinking { text, .. } => link.preview(Kind::ThinkingDelta(ThinkingDelta { text: text.clone() })),
        Delta::ToolArguments { block, partial_json } => {
            let tool_call_id = assembly.tool_call_id(*block).unwrap_or_default().to_owned();
            let partial_json = partial_json.clone();
            link.preview(Kind::ToolArgumentDelta(ToolArgumentDelta { tool_call_id, partial_json }));
        }
        Delta::Opened { .. }
        | Delta::Signature { .. }
        | Delta::RedactedThinking { .. }
        | Delta::ToolCallStarted { .. }
        | Delta::ToolCallStopped { .. }
        | Delta::Native { .. }
        | Delta::Usage(_)
        | Delta::Stop(_) => {}
    }
}

impl Attempt {
    /// One that a breaker prevented.
    pub(super) fn not_made(error: Error) -> Self {
        Self {
            assembly: Assembly::default(),
            end: End::Failed(error),
            latency: Duration::ZERO,
            first_token: None,
            input_tokens_estimated: 0,
        }
    }

    /// What it says of the model's health, in mid stream as well as at the door.
    pub(super) fn health(&self) -> breaker::Outcome {
        match &self.end {
            End::Stopped(_) => breaker::Outcome::Answered,
            End::Failed(error) => breaker::Outcome::of(error.class, error.retry_after),
            End::Interrupted(_) => breaker::Outcome::Unknown,
        }
    }

    pub(super) fn first_token(&self) -> Option<Duration> {
        self.first_token
    }

    /// The fixed word for how it ended: the neutral reason to stop, `error`, or `cancelled`.
    pub(super) fn finish_reason(&self) -> &'static str {
        match &self.end {
            End::Stopped(stop) => stop.as_str(),
            End::Failed(_) => "error",
            End::Interrupted(_) => CANCELLED,
        }
    }

    /// The fixed word for metrics: how it ended, or that it never began.
    pub(super) fn outcome(&self) -> &'static str {
        match &self.end {
            End::Failed(error) if error.was_not_made => "breaker_open",
            End::Stopped(_) | End::Failed(_) | End::Interrupted(_) => self.finish_reason(),
        }
    }

    /// The event that reports it. `fallback_reason` says why it was made at another model than the agent's own.
    pub(super) fn event(&self, grant: &Grant, fallback_reason: &str) -> ModelAttempt {
        let (usage, usage_estimated) = self.usage();
        let error_class = match &self.end {
            End::Failed(error) => error.class.as_str(),
            End::Stopped(_) | End::Interrupted(_) => "",
        };
        ModelAttempt {
            attempt_id: Uuid::now_v7().to_string(),
            grant_id: grant.grant_id.clone(),
            provider: grant.provider.clone(),
            model: grant.model.clone(),
            usage: Some(usage),
            cost_nano_usd: None,
            latency_ms: milliseconds(self.latency),
            first_token_ms: self.first_token.map(milliseconds),
            finish_reason: self.finish_reason().to_owned(),
            error_class: error_class.to_owned(),
            fallback_reason: fallback_reason.to_owned(),
            usage_estimated,
            response_id: self.assembly.response_id.clone(),
            // The front knows who pays.
            mode: ProviderMode::Unspecified.into(),
        }
    }

    /// What it used, and whether that is reckoned rather than told.
    fn usage(&self) -> (TokenUsage, bool) {
        let opened = !self.assembly.response_id.is_empty() || self.first_token.is_some();
        match &self.end {
            End::Stopped(_) => match self.assembly.usage {
                Some(usage) => (usage, false),
                None => (self.assembly.estimated_usage(self.input_tokens_estimated), true),
            },
            // Refused at the door, or never there: nobody charges for it.
            End::Failed(error) if !opened && error.class != Class::Timeout => (TokenUsage::default(), true),
            End::Failed(_) | End::Interrupted(_) => (self.assembly.estimated_usage(self.input_tokens_estimated), true),
        }
    }
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
