//! One attempt at a model: streams its previews, and tells what it came to, however it ended.

use std::time::Duration;

use croft_llm::refusals::Sent;
use croft_llm::{Assembly, Class, Delta, DeltaStream, Error, Provider, Request, Stop, breaker, estimate};
use croft_proto::v1::content_block::Block;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    ContentBlock, Grant, ModelAttempt, ProviderMode, TextDelta, ThinkingDelta, TokenUsage, ToolArgumentDelta,
};
use futures::StreamExt as _;
use tokio::time::Instant;

use super::call_ids::CallIds;
use crate::guardrails::Output;
use crate::interrupt::{Interrupt, Why};
use crate::link::Link;

/// The fixed word for an answer that was broken off from outside.
pub(super) const CANCELLED: &str = "cancelled";
/// And for one that a guardrail broke off.
pub(super) const BLOCKED: &str = "guardrail";
/// And for one that another try of the same call was quicker than.
const HEDGED: &str = "hedged";

/// An attempt that is over.
pub(super) struct Attempt<'step> {
    pub(super) assembly: Assembly,
    /// What guards let through of the text, where there are guards.
    pub(super) guard: Option<Output<'step>>,
    pub(super) end: End,
    /// What the call was made with.
    pub(super) sent: Sent,
    latency: Duration,
    first_token: Option<Duration>,
    input_tokens_estimated: u32,
}

pub(super) enum End {
    Stopped(Stop),
    Failed(Error),
    Interrupted(Why),
    /// A guardrail refused what it said.
    Blocked,
    /// Another try of the same call began to answer before it, or made it needless.
    Hedged,
}

/// What is seen of an answer before it is whole.
pub(super) struct Shown<'step> {
    pub(super) link: &'step Link,
    /// What guards hold back is not.
    pub(super) thinking: bool,
    pub(super) arguments: bool,
}

/// A call that is being made, of which nobody was shown anything yet.
pub(super) struct Call {
    provider: &'static str,
    deltas: DeltaStream,
    assembly: Assembly,
    began: Instant,
    first_token: Option<Duration>,
    input_tokens_estimated: u32,
    sent: Sent,
    /// With what the answer begins, or why there will be none.
    first: Option<Result<Delta, Error>>,
}

impl Call {
    pub(super) fn new(provider: &dyn Provider, request: Request) -> Self {
        Self {
            provider: provider.name(),
            input_tokens_estimated: estimate::input_tokens(&request),
            sent: Sent::of(&request),
            began: Instant::now(),
            deltas: provider.stream(request),
            assembly: Assembly::default(),
            first_token: None,
            first: None,
        }
    }

    /// Reads until the answer begins or it is clear that there will be none. May be given up and called again.
    /// `permit` hears that the provider took the call.
    pub(super) async fn begun(&mut self, permit: &mut breaker::Permit) {
        while self.first.is_none() {
            let next = self.next().await;
            if next.is_ok() {
                permit.began();
            }
            match next {
                Ok(delta) if !delta.is_output() && !matches!(delta, Delta::Stop(_)) => self.assembly.push(&delta),
                first => self.first = Some(first),
            }
        }
    }

    pub(super) fn has_begun(&self) -> bool {
        matches!(self.first, Some(Ok(_)))
    }

    pub(super) fn has_failed(&self) -> bool {
        matches!(self.first, Some(Err(_)))
    }

    pub(super) fn input_tokens_estimated(&self) -> u32 {
        self.input_tokens_estimated
    }

    async fn next(&mut self) -> Result<Delta, Error> {
        let ended = || Err(Error::new(self.provider, Class::Truncated, "ended its answer early"));
        let item = self.deltas.next().await.unwrap_or_else(ended);
        if item.as_ref().is_ok_and(Delta::is_output) && self.first_token.is_none() {
            self.first_token = Some(self.began.elapsed());
        }
        item
    }

    /// Reads it to its end, and shows it. `permit` hears that the provider took the call.
    pub(super) async fn finish<'step>(
        mut self,
        permit: &mut breaker::Permit,
        shown: &Shown<'_>,
        interrupt: &Interrupt,
        mut guard: Option<Output<'step>>,
        mut ids: CallIds<'_>,
    ) -> Attempt<'step> {
        let end = loop {
            let first = self.first.take().map(Ok);
            let next = match first {
                Some(first) => first,
                None => interrupt.or(self.next()).await,
            };
            let mut delta = match next {
                Err(why) => break End::Interrupted(why),
                Ok(Err(error)) => break End::Failed(error),
                Ok(Ok(delta)) => delta,
            };
            permit.began();
            ids.settle(&mut delta);
            self.assembly.push(&delta);
            shown.preview(&delta, &self.assembly, guard.as_mut());
            if guard.as_ref().is_some_and(Output::is_blocked) {
                break End::Blocked;
            }
            if let Delta::Stop(stop) = delta {
                break End::Stopped(stop);
            }
        };
        let mut attempt = self.over(guard, end);
        attempt.finish(shown, interrupt).await;
        attempt
    }

    /// Ends it where it is, unless it has failed by itself.
    pub(super) fn give_up<'step>(mut self, end: End) -> Attempt<'step> {
        match self.first.take() {
            Some(Err(error)) => self.over(None, End::Failed(error)),
            _ => self.over(None, end),
        }
    }

    fn over(self, guard: Option<Output<'_>>, end: End) -> Attempt<'_> {
        let Self { assembly, began, first_token, input_tokens_estimated, sent, .. } = self;
        Attempt { assembly, guard, end, sent, latency: began.elapsed(), first_token, input_tokens_estimated }
    }
}

impl Shown<'_> {
    fn text(&self, text: String) {
        if !text.is_empty() {
            self.link.preview(Kind::TextDelta(TextDelta { text }));
        }
    }

    fn preview(&self, delta: &Delta, assembly: &Assembly, guard: Option<&mut Output<'_>>) {
        match delta {
            Delta::Text { text, .. } => self.text(guard.map_or_else(|| text.clone(), |guard| guard.push(text))),
            Delta::Thinking { text, .. } if self.thinking => {
                self.link.preview(Kind::ThinkingDelta(ThinkingDelta { text: text.clone() }));
            }
            Delta::ToolArguments { block, partial_json } if self.arguments => {
                let tool_call_id = assembly.tool_call_id(*block).unwrap_or_default().to_owned();
                let partial_json = partial_json.clone();
                self.link.preview(Kind::ToolArgumentDelta(ToolArgumentDelta { tool_call_id, partial_json }));
            }
            Delta::Thinking { .. }
            | Delta::ToolArguments { .. }
            | Delta::Opened { .. }
            | Delta::Signature { .. }
            | Delta::RedactedThinking { .. }
            | Delta::ToolCallStarted { .. }
            | Delta::ToolCallStopped { .. }
            | Delta::Native { .. }
            | Delta::Usage(_)
            | Delta::ServiceTier(_)
            | Delta::Refused(_)
            | Delta::Stop(_) => {}
        }
    }
}

/// What is told of a grant that nobody waited for any more: until the front hears of it, it holds what the call might cost.
pub(crate) fn unused(grant: &Grant) -> ModelAttempt {
    Attempt::needless().event(grant, "")
}

impl Attempt<'_> {
    /// One that a breaker prevented, or for which there is no way to the provider.
    pub(super) fn not_made(error: Error) -> Self {
        Self::without_a_call(End::Failed(error))
    }

    /// One that was granted, and not needed.
    pub(super) fn needless() -> Self {
        Self::without_a_call(End::Hedged)
    }

    fn without_a_call(end: End) -> Self {
        Self {
            assembly: Assembly::default(),
            guard: None,
            end,
            sent: Sent::default(),
            latency: Duration::ZERO,
            first_token: None,
            input_tokens_estimated: 0,
        }
    }

    /// Lets the guards judge an answer that is whole.
    async fn finish(&mut self, shown: &Shown<'_>, interrupt: &Interrupt) {
        let (End::Stopped(stop), Some(guard)) = (&self.end, &mut self.guard) else { return };
        let leads_on = match stop {
            // It is cut off, or another answer may take its place: what the turn comes to is not this.
            Stop::MaxTokens | Stop::ContextFull | Stop::Refusal | Stop::BadToolCall => true,
            Stop::EndTurn | Stop::ToolUse | Stop::Pause => !self.assembly.calls().is_empty(),
        };
        match interrupt.or(guard.finish(leads_on)).await {
            Ok(rest) => shown.text(rest),
            Err(why) => return self.end = End::Interrupted(why),
        }
        if guard.is_blocked() {
            self.end = End::Blocked;
        }
    }

    /// The whole answer, with what guards let through for its text.
    pub(super) fn content(&self) -> Vec<ContentBlock> {
        self.let_through(self.assembly.content())
    }

    /// The text alone, of an answer that broke off.
    pub(super) fn text_only(&self) -> Vec<ContentBlock> {
        self.let_through(self.assembly.text_only())
    }

    /// What was let through is one text. It stands where the first stood.
    fn let_through(&self, mut content: Vec<ContentBlock>) -> Vec<ContentBlock> {
        let Some(guard) = &self.guard else { return content };
        let mut released = Some(guard.released()).filter(|released| !released.is_empty());
        content.retain_mut(|block| match &mut block.block {
            Some(Block::Text(text)) => released.take().map(|released| released.clone_into(&mut text.text)).is_some(),
            _ => true,
        });
        content
    }

    /// What it says of the model's health, in mid stream as well as at the door.
    pub(super) fn health(&self) -> breaker::Outcome {
        match &self.end {
            End::Stopped(_) => breaker::Outcome::Answered,
            End::Failed(error) => breaker::Outcome::of(error.class, error.retry_after),
            End::Interrupted(_) | End::Blocked | End::Hedged => breaker::Outcome::Unknown,
        }
    }

    pub(super) fn first_token(&self) -> Option<Duration> {
        self.first_token
    }

    /// The fixed word for how it ended: the neutral reason to stop, `error`, `cancelled`, `guardrail`, or `hedged`.
    pub(super) fn finish_reason(&self) -> &'static str {
        match &self.end {
            End::Stopped(stop) => stop.as_str(),
            End::Failed(_) => "error",
            End::Interrupted(_) => CANCELLED,
            End::Blocked => BLOCKED,
            End::Hedged => HEDGED,
        }
    }

    /// The fixed word for metrics: how it ended, or that it never began.
    pub(super) fn outcome(&self) -> &'static str {
        match &self.end {
            End::Failed(error) if error.was_not_made => "breaker_open",
            End::Stopped(_) | End::Failed(_) | End::Interrupted(_) | End::Blocked | End::Hedged => self.finish_reason(),
        }
    }

    /// What kind of failure it was, if a call was made and failed.
    pub(super) fn error_class(&self) -> Option<Class> {
        match &self.end {
            End::Failed(error) if !error.was_not_made => Some(error.class),
            End::Stopped(_) | End::Failed(_) | End::Interrupted(_) | End::Blocked | End::Hedged => None,
        }
    }

    /// The event that reports it. `fallback_reason` says why it was made at another model than the agent's own.
    pub(super) fn event(&self, grant: &Grant, fallback_reason: &str) -> ModelAttempt {
        let (usage, usage_estimated) = self.usage();
        let error_class = match &self.end {
            End::Failed(error) => error.class.as_str(),
            End::Stopped(_) | End::Interrupted(_) | End::Blocked | End::Hedged => "",
        };
        ModelAttempt {
            // A grant is for one attempt, so that whoever tells of it, and however often, names the same.
            attempt_id: grant.grant_id.clone(),
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
            // The front knows who pays, and on whose behalf.
            mode: ProviderMode::Unspecified.into(),
            sender: String::new(),
            service_tier: self.assembly.service_tier.clone(),
        }
    }

    /// What it used, and whether that is reckoned rather than told.
    pub(super) fn usage(&self) -> (TokenUsage, bool) {
        let Assembly { response_id, usage, .. } = &self.assembly;
        let opened = !response_id.is_empty() || usage.is_some() || self.first_token.is_some();
        match &self.end {
            // One that was blocked at its end had been told in full.
            End::Stopped(_) | End::Blocked if self.assembly.stop.is_some() => match self.assembly.usage {
                Some(usage) => (usage, false),
                None => (self.assembly.estimated_usage(self.input_tokens_estimated), true),
            },
            // Refused at the door, or never there.
            End::Failed(error) if !opened && error.is_free() => (TokenUsage::default(), true),
            End::Stopped(_) | End::Failed(_) | End::Interrupted(_) | End::Blocked | End::Hedged => {
                (self.assembly.estimated_usage(self.input_tokens_estimated), true)
            }
        }
    }
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
