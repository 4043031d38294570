//! The superstep that asks the model: a grant first, then an attempt, and further ones while nothing durable came of it: at
//! the same model as long as that may help, then at those that may take over.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use croft_llm::refusals::{Part, Sent};
use croft_llm::retry::Schedule;
use croft_llm::{Class, Error, Provider, Request, Stop, carry, estimate};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{AgentMessage, ContentBlock, Grant, GrantRequest, Message, Role, SessionError, StopReason};
use uuid::Uuid;

use super::attempt::{self, Attempt, End};
use super::chain::{Cause, Chain};
use super::failure::{self, Failure};
use super::{Executor, Superstep, compaction};
use crate::guardrails::Output;
use crate::interrupt::Why;

/// How long the front may think about a grant. At the bound the turn ends with an error.
const GRANT_TIMEOUT: Duration = Duration::from_secs(30);

/// Why no attempt is made.
enum Refused {
    Ended(StopReason, Option<SessionError>),
    /// Of this model; another may do. `routed` says that the front chose it in place of the one asked for.
    Unusable {
        error: Option<SessionError>,
        routed: bool,
    },
    Interrupted(Why),
}

/// What a model came to that another may do better. It is told if none can.
enum Unanswered {
    Stopped { said: Said, grant: Grant },
    Failed(Failure),
    Unusable(SessionError),
}

/// An answer that came to its end.
struct Said {
    stop: Stop,
    content: Vec<ContentBlock>,
    /// Why the model would not go on, where its provider tells; else empty.
    refusal: String,
}

/// A model that the conversation does not fit, with those that could take over from it.
struct Outgrown {
    provider: String,
    model: String,
    chain: Chain,
}

/// Parts of requests that models were found to refuse, by provider and model.
type Learnt = HashMap<(String, String), Vec<Part>>;

/// What the attempts of one superstep have come to so far.
struct Tries {
    /// Of the model at hand.
    schedule: Schedule,
    /// The last that came to nothing.
    unanswered: Option<Unanswered>,
    outgrown: Option<Outgrown>,
    learnt: Learnt,
}

/// What follows from an attempt, or from none.
enum Next {
    Again,
    Over(Superstep),
}

impl Executor<'_> {
    pub(super) async fn model_call(&mut self) -> Superstep {
        self.state.model_calls += 1;
        // It was of a conversation that a model has answered since.
        self.chain.input_tokens = None;
        let schedule = self.retry.start();
        let mut tries = Tries { schedule, unanswered: None, outgrown: None, learnt: Learnt::new() };
        loop {
            let next = match self.ask_for_grant().await {
                Ok((grant, provider)) => self.granted(grant, provider.as_ref(), &mut tries).await,
                Err(refused) => self.refused(refused, &mut tries).await,
            };
            if let Next::Over(superstep) = next {
                return superstep;
            }
        }
    }

    /// There is no grant for the model at hand, or no way to it.
    async fn refused(&mut self, refused: Refused, tries: &mut Tries) -> Next {
        Next::Over(match refused {
            Refused::Interrupted(Why::Stop(StopReason::HandedBack)) => Superstep::Ended(self.hand_back()),
            Refused::Interrupted(why) => Superstep::Interrupted(why),
            Refused::Ended(stop_reason, error) => self.failed(stop_reason, error).await,
            Refused::Unusable { error, routed } => {
                // The first failure is what people should hear of, unless there was none.
                tries.unanswered = tries.unanswered.take().or(error.map(Unanswered::Unusable));
                let took_over = !self.chain.reason().is_empty();
                let another =
                    if took_over && !routed { self.chain.skip() } else { self.gives_way(routed, Cause::Error) };
                if self.goes_on(another, tries) {
                    return Next::Again;
                }
                self.give_up(tries.unanswered.take()).await
            }
        })
    }

    /// Makes an attempt, and tells of it.
    async fn granted(&mut self, grant: Grant, provider: &dyn Provider, tries: &mut Tries) -> Next {
        let (grant, attempt) = self.attempt(grant, provider).await;
        self.link.attempted(attempt.event(&grant, self.chain.reason())).await;
        self.tell_violations(attempt.guard.as_ref().map_or(&[], Output::violations)).await;
        match attempt.end {
            // What it said led up to a call that never came, and does not stay. Whole calls beside it are made all the
            // same: the model goes on from their results.
            End::Stopped(Stop::BadToolCall) if attempt.assembly.calls().is_empty() => {
                let failure = Failure::BadToolCall { provider: provider.name() };
                self.came_to_nothing(failure, &attempt.sent, &grant, provider, tries).await
            }
            End::Stopped(stop) => {
                let content = match stop {
                    // The last call may be cut, and none of them will be made: without results they may not stay.
                    Stop::MaxTokens | Stop::ContextFull | Stop::Refusal => Ok(attempt.text_only()),
                    Stop::EndTurn | Stop::ToolUse | Stop::BadToolCall | Stop::Pause => {
                        self.guarded(attempt.content()).await
                    }
                };
                match content {
                    Ok(content) => {
                        let said = Said { stop, content, refusal: attempt.assembly.refusal };
                        self.stopped(said, grant, provider, tries).await
                    }
                    Err(why) => Next::Over(self.broken_off(attempt.text_only(), &grant, why).await),
                }
            }
            End::Interrupted(why) => Next::Over(self.broken_off(attempt.text_only(), &grant, why).await),
            End::Blocked => {
                self.answer(attempt.text_only(), attempt::BLOCKED, &grant).await;
                Next::Over(Superstep::Ended(StopReason::Guardrail))
            }
            // The one that is left is never given up.
            End::Hedged => Next::Over(Superstep::Ended(StopReason::Error)),
            End::Failed(error) => {
                self.came_to_nothing(Failure::Call(error), &attempt.sent, &grant, provider, tries).await
            }
        }
    }

    /// A model answered to the end. Another takes over where it would not, or could not, go on.
    async fn stopped(&mut self, said: Said, grant: Grant, provider: &dyn Provider, tries: &mut Tries) -> Next {
        if let Some(cause) = Cause::of_stop(said.stop)
            && self.hands_over(cause, &grant, provider, tries).await
        {
            tries.unanswered = Some(Unanswered::Stopped { said, grant });
            return Next::Again;
        }
        Next::Over(self.answered(said, &grant).await)
    }

    /// An attempt failed, or said what nobody can make use of: it is made again where that may help.
    async fn came_to_nothing(
        &mut self,
        failure: Failure,
        sent: &Sent,
        grant: &Grant,
        provider: &dyn Provider,
        tries: &mut Tries,
    ) -> Next {
        tracing::warn!(
            provider = %grant.provider, model = %grant.model, class = failure.as_str(),
            error = %croft_serve::log::chain(&failure), "model attempt failed"
        );
        if self.unbinds(grant, sent, &failure) || self.leaves_out(grant, sent, &failure, &mut tries.learnt) {
            self.metrics.model_retry(&grant.provider, failure.as_str());
            return Next::Again;
        }
        // Nobody waits for a breaker while there is another model to ask.
        let waits = !failure.was_not_made() || !self.may_give_way(grant.routed);
        let again = if waits { failure.again(&mut tries.schedule) } else { None };
        let Some(delay) = again else {
            let goes_on = self.hands_over(failure.cause(), grant, provider, tries).await;
            let unanswered = Some(Unanswered::Failed(failure));
            if goes_on {
                tries.unanswered = unanswered;
                return Next::Again;
            }
            return Next::Over(self.give_up(unanswered).await);
        };
        tokio::select! {
            biased;
            why = self.interrupt.wait() => return Next::Over(Superstep::Interrupted(why)),
            () = self.draining.cancelled() => return Next::Over(Superstep::Ended(self.hand_back())),
            () = tokio::time::sleep(delay) => {}
        }
        self.metrics.model_retry(&grant.provider, failure.as_str());
        Next::Again
    }

    /// True when there is another model to ask in place of the one at hand, or a shorter conversation to send.
    async fn hands_over(&mut self, cause: Cause, grant: &Grant, provider: &dyn Provider, tries: &mut Tries) -> bool {
        self.count_for(cause, grant, provider).await;
        if cause == Cause::Context {
            // What to go back to, should no other take a conversation that this one did not.
            let (provider, model) = (grant.provider.clone(), grant.model.clone());
            tries.outgrown = Some(Outgrown { provider, model, chain: self.chain.clone() });
        }
        let another = self.gives_way(grant.routed, cause);
        self.goes_on(another, tries)
    }

    /// With `another` model at hand, or without one with a conversation that is shorter. Either has all its tries before it.
    fn goes_on(&mut self, another: bool, tries: &mut Tries) -> bool {
        let goes_on = another || self.goes_back(&mut tries.outgrown);
        if goes_on {
            tries.schedule = self.retry.start();
        }
        goes_on
    }

    /// The call was not made after all: whoever goes on makes it.
    fn hand_back(&mut self) -> StopReason {
        self.state.model_calls -= 1;
        StopReason::HandedBack
    }

    /// There is a model to ask in place of the one that was granted.
    fn may_give_way(&self, routed: bool) -> bool {
        self.chain.has_next() || (routed && !self.chain.as_asked())
    }

    /// Lets another model take over: the agent's own from one that was chosen in its place, or else the next of the agent's.
    fn gives_way(&mut self, routed: bool, cause: Cause) -> bool {
        let hops = (routed && self.chain.insist()) || self.chain.hop(cause);
        if hops {
            self.metrics.fallback(cause.as_str());
            tracing::info!(model = self.chain.model(), cause = cause.as_str(), "another model takes over");
        }
        hops
    }

    /// No other took the conversation over: true when the model that it did not fit can be sent a shorter one.
    fn goes_back(&mut self, outgrown: &mut Option<Outgrown>) -> bool {
        let Some(Outgrown { provider, model, chain }) = outgrown.take() else { return false };
        self.chain = chain;
        self.compact(&provider, &model)
    }

    /// How large a conversation is that did not fit, by the count of the provider that refused it: the front then knows
    /// which model it fits. Without a count it goes by our estimate.
    async fn count_for(&mut self, cause: Cause, grant: &Grant, provider: &dyn Provider) {
        if cause != Cause::Context || !self.chain.has_next() {
            return;
        }
        let request = self.request(grant, 0);
        match self.interrupt.or(provider.count_tokens(request)).await {
            Ok(Ok(count)) => self.chain.input_tokens = count,
            Ok(Err(error)) => tracing::debug!(error = %croft_serve::log::chain(&error), "no count of tokens"),
            // It shows again at the next wait.
            Err(_) => {}
        }
    }

    /// Asks the front for a model call.
    async fn ask_for_grant(&self) -> Result<(Grant, Arc<dyn Provider>), Refused> {
        let estimate = self.input_tokens_estimated();
        let request = GrantRequest {
            request_id: Uuid::now_v7().to_string(),
            model: self.chain.model().to_owned(),
            input_tokens_estimated: self.chain.input_tokens.unwrap_or_default().max(estimate),
            output_tokens_max: self.bounds.output_tokens_max,
            takeover: self.chain.takeover(&self.state.messages),
            hedges: false,
            as_asked: self.chain.as_asked(),
        };
        let asked = tokio::time::timeout(GRANT_TIMEOUT, self.link.grant(request));
        let answer = self.interrupt.or(asked).await.map_err(Refused::Interrupted)?;
        let grant = match answer {
            Ok(Ok(grant)) => grant,
            Ok(Err(refused)) if refused.reason == "MODEL_UNFIT" => {
                return Err(Refused::Unusable { error: None, routed: false });
            }
            Ok(Err(refused)) if refused.reason == "MODEL_UNKNOWN" => {
                return Err(Refused::Unusable { error: failure::refused(refused).1, routed: false });
            }
            Ok(Err(refused)) => {
                let (stop_reason, error) = failure::refused(refused);
                return Err(Refused::Ended(stop_reason, error));
            }
            Err(_) => {
                let message = "the front gave no answer about a model call".to_owned();
                let error = SessionError { reason: "GRANT_TIMEOUT".to_owned(), message, retryable: true };
                return Err(Refused::Ended(StopReason::Error, Some(error)));
            }
        };
        let Some(provider) = self.providers.get(&grant.provider) else {
            // The front must hear of every grant.
            let missing = Error::new("worker", Class::Auth, "there is no way to the provider");
            self.tell(&grant, &Attempt::not_made(missing)).await;
            let message = format!("model {} needs provider {}, which is not configured", grant.model, grant.provider);
            let error = SessionError { reason: "PROVIDER_MISSING".to_owned(), message, retryable: false };
            return Err(Refused::Unusable { error: Some(error), routed: grant.routed });
        };
        Ok((grant, provider))
    }

    /// The input tokens of the next call. Whose thoughts it is sent only its grant tells: it is reckoned for the model at hand, and for
    /// the one that answered last unless another has just taken over, and the larger counts.
    fn input_tokens_estimated(&self) -> u32 {
        let answers = || self.state.messages.iter().rev().filter(|message| message.role() == Role::Assistant);
        let model = self.chain.model();
        let own = answers().find(|answer| answer.model == model);
        let is_ours = self.chain.has_answered || self.chain.reason().is_empty();
        let last = answers().next().filter(|answer| is_ours && answer.model != model);
        let own = own.map_or((String::new(), model.to_owned()), |answer| (answer.provider.clone(), model.to_owned()));
        let last = last.map(|answer| (answer.provider.clone(), answer.model.clone()));
        let estimates = std::iter::once(own).chain(last).map(|(provider, model)| {
            estimate::input_tokens(&self.request(&Grant { provider, model, ..Grant::default() }, 0))
        });
        estimates.max().unwrap_or_default()
    }

    /// The request for the model of `grant`, with nothing in it that only another understands.
    pub(super) fn request(&self, grant: &Grant, output_tokens_max: u32) -> Request {
        let refused = self.providers.refusals().of(&grant.provider, &grant.model);
        let mut messages = self.conversation(&grant.provider, &grant.model);
        carry::show(&mut messages, &grant.provider, grant.images.unwrap_or(true));
        Request {
            model: grant.model.clone(),
            system: self.agent.system_prompt.clone(),
            messages,
            tools: self.toolbox.definitions(),
            output_tokens_max,
            temperature: self
                .agent
                .temperature
                .filter(|wanted| !refused.contains(&Part::Temperature(wanted.to_bits()))),
            refused,
        }
    }

    /// Its provider does not take back what the model thought: this call and all later ones of the session go without.
    fn unbinds(&mut self, grant: &Grant, sent: &Sent, failure: &Failure) -> bool {
        let Failure::Call(error) = failure else { return false };
        let (provider, model) = (&grant.provider, &grant.model);
        if !sent.has_refused_proofs(error) || !self.state.unbind(provider, model) {
            return false;
        }
        tracing::warn!(%provider, %model, "the provider does not take back what the model thought; calls go without it");
        true
    }

    /// It was a part of the request that the model refused, and no turn need fail of it: all calls to come go without it, this one
    /// first. What was `learnt` so is forgotten if the call is refused without it, too.
    fn leaves_out(&self, grant: &Grant, sent: &Sent, failure: &Failure, learnt: &mut Learnt) -> bool {
        let Failure::Call(error) = failure else { return false };
        let (provider, model) = (&grant.provider, &grant.model);
        let learnt = learnt.entry((provider.clone(), model.clone())).or_default();
        // Once in a superstep, whatever others learn and forget meanwhile.
        let part = self.providers.refusals().learn(provider, model, sent, error).filter(|part| !learnt.contains(part));
        if let Some(part) = part {
            tracing::warn!(%provider, %model, ?part, "the model refuses a part of the request; calls go without it");
            learnt.push(part);
        } else if error.class == Class::Invalid {
            self.providers.refusals().forget(provider, model, learnt);
            learnt.clear();
        }
        part.is_some()
    }

    /// What a model is sent of the conversation.
    pub(super) fn conversation(&self, provider: &str, model: &str) -> Vec<Message> {
        let mut messages = self.state.messages.clone();
        carry::strip(&mut messages, provider, model);
        compaction::compacted(messages, self.bounds.context_tokens_max)
    }

    /// The step ends before the answer is whole, or checked.
    async fn broken_off(&mut self, text_only: Vec<ContentBlock>, grant: &Grant, why: Why) -> Superstep {
        if why == Why::Stop(StopReason::HandedBack) {
            // Whoever goes on asks again.
            return Superstep::Ended(self.hand_back());
        }
        // What people saw of it stays.
        self.answer(text_only, attempt::CANCELLED, grant).await;
        Superstep::Interrupted(why)
    }

    /// The answer stands: none does better.
    async fn answered(&mut self, said: Said, grant: &Grant) -> Superstep {
        let Said { stop, content, refusal } = said;
        self.answer(content, stop.as_str(), grant).await;
        if !refusal.is_empty() {
            self.link.event(Kind::Error(failure::refusal(&grant.model, &refusal))).await;
        }
        Superstep::Answered(stop)
    }

    /// Takes what was said, as it may be stored.
    async fn answer(&mut self, content: Vec<ContentBlock>, finish_reason: &str, grant: &Grant) {
        let is_silent = content.iter().all(carry::is_thought);
        // Behind results of tools, or the rest of an answer, it is no failure to have nothing to add.
        let owes_words = is_silent && self.state.last_role() == Some(Role::User);
        self.chain.has_answered = true;
        self.state.answered(content.clone(), finish_reason, &grant.provider, &grant.model);
        // Before the answer, for which the front waits when it has this: whoever goes on from the answer, or from the checkpoint that
        // the turn ends from, finds it told and tells nothing a second time.
        if is_silent && finish_reason == Stop::MaxTokens.as_str() {
            let output_tokens = self.bounds.output_tokens(grant.output_tokens_max);
            let error = failure::wordless(output_tokens, output_tokens == self.bounds.output_tokens_max);
            self.link.event(Kind::Error(error)).await;
        } else if owes_words && finish_reason == Stop::EndTurn.as_str() {
            self.link.event(Kind::Error(failure::silent())).await;
        }
        if !content.is_empty() {
            self.link.event(Kind::AgentMessage(AgentMessage { content, model: grant.model.clone() })).await;
        }
    }

    /// No model is left: tells what the last one came to.
    async fn give_up(&mut self, unanswered: Option<Unanswered>) -> Superstep {
        match unanswered {
            Some(Unanswered::Stopped { said, grant }) => self.answered(said, &grant).await,
            Some(Unanswered::Failed(failure)) => {
                self.failed(failure.stop_reason(), Some(failure.session_error())).await
            }
            Some(Unanswered::Unusable(error)) => self.failed(StopReason::Error, Some(error)).await,
            None => self.failed(StopReason::Error, None).await,
        }
    }

    async fn failed(&self, stop_reason: StopReason, error: Option<SessionError>) -> Superstep {
        if let Some(error) = error {
            self.link.event(Kind::Error(error)).await;
        }
        Superstep::Ended(stop_reason)
    }
}
