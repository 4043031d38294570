//! The superstep that asks the model: leave first, then an attempt, and further ones while nothing durable came of it.

use std::sync::Arc;
use std::time::Duration;

use croft_llm::{Provider, Request, Stop, estimate};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{AgentMessage, ContentBlock, Grant, GrantRequest, SessionError, StopReason};
use tracing::Instrument as _;
use uuid::Uuid;

use super::attempt::{self, Attempt, End};
use super::{Executor, Superstep, failure};
use crate::interrupt::Why;

/// How long the front may think about a grant. At the bound the turn ends with an error.
const GRANT_TIMEOUT: Duration = Duration::from_secs(30);

/// Why no attempt is made.
enum Refused {
    Ended(StopReason, Option<SessionError>),
    Interrupted(Why),
}

impl Executor<'_> {
    pub(super) async fn model_call(&mut self) -> Superstep {
        self.state.model_calls += 1;
        let mut schedule = self.retry.start();
        loop {
            let (grant, provider) = match self.leave().await {
                Ok(granted) => granted,
                Err(Refused::Interrupted(Why::Stop(StopReason::HandedBack))) => {
                    return Superstep::Ended(self.hand_back());
                }
                Err(Refused::Interrupted(why)) => return Superstep::Interrupted(why),
                Err(Refused::Ended(stop_reason, error)) => return self.failed(stop_reason, error).await,
            };
            let attempt = self.attempt(&grant, provider.as_ref()).await;
            self.link.event(Kind::ModelAttempt(attempt.event(&grant))).await;
            let error = match attempt.end {
                End::Stopped(stop) => {
                    let content = match stop {
                        // The last call may be cut, and none of them will be made: without results they may not stay.
                        Stop::MaxTokens | Stop::ContextFull | Stop::Refusal => attempt.assembly.text_only(),
                        Stop::EndTurn | Stop::ToolUse | Stop::BadToolCall | Stop::Pause => attempt.assembly.content(),
                    };
                    self.answer(content, &grant.model).await;
                    return Superstep::Answered(stop);
                }
                // Whoever goes on asks again.
                End::Interrupted(Why::Stop(StopReason::HandedBack)) => return Superstep::Ended(self.hand_back()),
                End::Interrupted(why) => {
                    // What people saw of it stays.
                    self.answer(attempt.assembly.text_only(), &grant.model).await;
                    return Superstep::Interrupted(why);
                }
                End::Failed(error) => error,
            };
            tracing::warn!(
                provider = %grant.provider, model = %grant.model, class = error.class.as_str(),
                error = %crate::step::chain(&error), "model attempt failed"
            );
            let Some(delay) = schedule.after(&error) else {
                let told = failure::session_error(&error);
                return self.failed(failure::stop_reason(error.class), Some(told)).await;
            };
            tokio::select! {
                biased;
                why = self.interrupt.wait() => return Superstep::Interrupted(why),
                () = self.draining.cancelled() => return Superstep::Ended(self.hand_back()),
                () = tokio::time::sleep(delay) => {}
            }
        }
    }

    /// The call was not made after all: whoever goes on makes it.
    fn hand_back(&mut self) -> StopReason {
        self.state.model_calls -= 1;
        StopReason::HandedBack
    }

    /// Asks the front for a model call.
    async fn leave(&self) -> Result<(Grant, Arc<dyn Provider>), Refused> {
        let request = GrantRequest {
            request_id: Uuid::now_v7().to_string(),
            model: self.agent.model.clone(),
            input_tokens_estimated: estimate::input_tokens(&self.request(self.agent.model.clone(), 0)),
            output_tokens_max: self.bounds.output_tokens_max,
        };
        let asked = tokio::time::timeout(GRANT_TIMEOUT, self.link.grant(request));
        let answer = self.interrupt.or(asked).await.map_err(Refused::Interrupted)?;
        let grant = match answer {
            Ok(Ok(grant)) => grant,
            Ok(Err(refused)) => {
                let (stop_reason, error) = failure::refused(refused);
                return Err(Refused::Ended(stop_reason, error));
            }
            Err(_) => return Err(ended("GRANT_TIMEOUT", "the front gave no answer about a model call".into(), true)),
        };
        let Some(provider) = self.providers.get(&grant.provider) else {
            let message = format!("model {} needs provider {}, which is not configured", grant.model, grant.provider);
            return Err(ended("PROVIDER_MISSING", message, false));
        };
        Ok((grant, provider))
    }

    async fn attempt(&self, grant: &Grant, provider: &dyn Provider) -> Attempt {
        let output_tokens_max = match grant.output_tokens_max {
            0 => self.bounds.output_tokens_max,
            granted => granted.min(self.bounds.output_tokens_max),
        };
        let span = tracing::info_span!(
            "chat",
            otel.name = format!("chat {}", grant.model),
            otel.kind = "client",
            gen_ai.operation.name = "chat",
            gen_ai.provider.name = %grant.provider,
            gen_ai.request.model = %grant.model,
            gen_ai.conversation.id = %self.session,
            gen_ai.agent.name = %self.agent.name,
        );
        let request = self.request(grant.model.clone(), output_tokens_max);
        let attempt = attempt::make(provider, request, self.link, self.interrupt).instrument(span).await;
        self.metrics.model_attempt(&grant.provider, &grant.model, attempt.finish_reason(), attempt.first_token());
        attempt
    }

    fn request(&self, model: String, output_tokens_max: u32) -> Request {
        Request {
            model,
            system: self.agent.system_prompt.clone(),
            messages: self.state.messages.clone(),
            tools: self.toolbox.definitions(),
            output_tokens_max,
            temperature: self.agent.temperature,
        }
    }

    async fn answer(&mut self, content: Vec<ContentBlock>, model: &str) {
        if content.is_empty() {
            return;
        }
        self.state.answered(content.clone());
        self.link.event(Kind::AgentMessage(AgentMessage { content, model: model.to_owned() })).await;
    }

    async fn failed(&self, stop_reason: StopReason, error: Option<SessionError>) -> Superstep {
        if let Some(error) = error {
            self.link.event(Kind::Error(error)).await;
        }
        Superstep::Ended(stop_reason)
    }
}

fn ended(reason: &str, message: String, retryable: bool) -> Refused {
    let error = SessionError { reason: reason.to_owned(), message, retryable };
    Refused::Ended(StopReason::Error, Some(error))
}
