//! One attempt at a model, or two: when an answer is slow to begin, and the agent asks for it, the call is made a second time.
//! Whichever begins first is the answer. The other is given up and told as an attempt of its own, since its provider may charge
//! for it.

use std::pin::pin;
use std::time::Duration;

use croft_llm::breaker::Permit;
use croft_llm::{Error, Provider};
use croft_proto::v1::{Grant, GrantRequest};
use tracing::{Instrument as _, Span};
use uuid::Uuid;

use super::Executor;
use super::attempt::{Attempt, Call, End};
use super::call_ids::CallIds;
use crate::spans;

/// How long the front may think about a second call. What the first one says meanwhile waits, so that it is known whether there
/// is a grant; at the bound there is none.
const GRANT_TIMEOUT: Duration = Duration::from_secs(1);

/// A call with all that belongs to it.
struct Try {
    grant: Grant,
    permit: Permit,
    span: Span,
    call: Call,
}

impl Try {
    async fn begun(&mut self) {
        let Self { permit, span, call, .. } = self;
        call.begun(permit).instrument(span.clone()).await;
    }
}

impl Executor<'_> {
    /// What came of a call under `grant`, or of a second try of it under the grant that is returned.
    pub(super) async fn attempt(&self, grant: Grant, provider: &dyn Provider) -> (Grant, Attempt<'_>) {
        let mut first = match self.start(&grant, provider) {
            Ok(first) => first,
            Err(error) => {
                let attempt = Attempt::not_made(error);
                self.count(&grant, &attempt);
                return (grant, attempt);
            }
        };
        let Some(after) = self.bounds.hedge_after else { return self.finish(first).await };
        let is_slow = tokio::select! {
            biased;
            _ = self.interrupt.wait() => false,
            () = first.begun() => false,
            () = tokio::time::sleep(after) => true,
        };
        if !is_slow {
            return self.finish(first).await;
        }
        let Some(second) = self.second(&mut first, provider).await else { return self.finish(first).await };
        self.race(first, second).await
    }

    /// Asks for a grant and starts a second try, unless the first begins meanwhile.
    async fn second(&self, first: &mut Try, provider: &dyn Provider) -> Option<Try> {
        let mut asked = pin!(self.ask_for_second_grant(first.grant.model.clone(), first.call.input_tokens_estimated()));
        let granted = tokio::select! {
            granted = &mut asked => granted,
            () = first.begun() => asked.await,
        };
        let Some(grant) = granted else {
            self.metrics.hedge("refused");
            return None;
        };
        if first.call.has_begun() || first.call.has_failed() {
            // The front must hear of every grant, or it takes the call for made.
            self.metrics.hedge("needless");
            self.tell(&grant, &Attempt::needless()).await;
            return None;
        }
        // It is asked for by the name of the model at hand, which the front may have chosen in place of the agent's own.
        let grant = Grant { routed: first.grant.routed, ..grant };
        match self.start(&grant, provider) {
            Ok(second) => Some(second),
            Err(error) => {
                self.metrics.hedge("refused");
                self.tell(&grant, &Attempt::not_made(error)).await;
                None
            }
        }
    }

    async fn ask_for_second_grant(&self, model: String, input_tokens_estimated: u32) -> Option<Grant> {
        let request = GrantRequest {
            request_id: Uuid::now_v7().to_string(),
            model,
            input_tokens_estimated,
            output_tokens_max: self.bounds.output_tokens_max,
            takeover: None,
            hedges: true,
            as_asked: false,
        };
        let asked = tokio::time::timeout(GRANT_TIMEOUT, self.link.grant(request));
        self.interrupt.or(asked).await.ok()?.ok()?.ok()
    }

    /// Lets the one that begins first go on. One that fails leaves the field to the other.
    async fn race(&self, mut first: Try, mut second: Try) -> (Grant, Attempt<'_>) {
        let is_first = tokio::select! {
            biased;
            _ = self.interrupt.wait() => true,
            () = first.begun() => first.call.has_begun(),
            () = second.begun() => second.call.has_failed(),
        };
        let (goes_on, given_up) = if is_first { (first, second) } else { (second, first) };
        self.metrics.hedge(if is_first { "lost" } else { "won" });
        let Try { grant, permit, span, call } = given_up;
        let given_up = call.give_up(self.interrupt.raised().map_or(End::Hedged, End::Interrupted));
        permit.ended(given_up.health());
        ended(&given_up).record(&span);
        // When the try ended, and not when it has been told.
        drop(span);
        // Before anything of the other is shown: the front counts what it sees for the one that is left.
        self.tell(&grant, &given_up).await;
        self.finish(goes_on).await
    }

    /// Fails while the model is left alone.
    fn start(&self, grant: &Grant, provider: &dyn Provider) -> Result<Try, Error> {
        let permit = self.providers.breakers().admit(provider, &grant.model)?;
        let span = spans::chat(grant, self.session, &self.agent.name);
        let call = Call::new(provider, self.request(grant, self.bounds.output_tokens(grant.output_tokens_max)));
        Ok(Try { grant: grant.clone(), permit, span, call })
    }

    async fn finish(&self, going_on: Try) -> (Grant, Attempt<'_>) {
        let Try { grant, mut permit, span, call } = going_on;
        let (shown, guard, ids) = (self.shown(), self.guardrails.output(), CallIds::new(&self.state.messages));
        let attempt = call.finish(&mut permit, &shown, self.interrupt, guard, ids).instrument(span.clone()).await;
        permit.ended(attempt.health());
        ended(&attempt).record(&span);
        self.count(&grant, &attempt);
        (grant, attempt)
    }

    fn count(&self, grant: &Grant, attempt: &Attempt<'_>) {
        self.metrics.model_attempt(&grant.provider, &grant.model, attempt.outcome(), attempt.first_token());
        if let Some(class) = attempt.error_class() {
            self.metrics.model_error(&grant.provider, class);
        }
    }

    /// Tells of an attempt that is not the answer.
    pub(super) async fn tell(&self, grant: &Grant, attempt: &Attempt<'_>) {
        self.count(grant, attempt);
        self.link.attempted(attempt.event(grant, self.chain.reason())).await;
    }
}

/// What the span of an attempt says of it. Usage that is reckoned is left out: whoever adds up spans takes it for the provider's.
fn ended<'attempt>(attempt: &'attempt Attempt<'_>) -> spans::Ended<'attempt> {
    let (usage, is_estimated) = attempt.usage();
    spans::Ended {
        response_id: &attempt.assembly.response_id,
        response_model: &attempt.assembly.response_model,
        outcome: attempt.error_class().map_or_else(|| Ok(attempt.finish_reason()), Err),
        usage: (!is_estimated).then_some(usage),
        first_token: attempt.first_token(),
    }
}
