//! What a turn may spend: it asks for a grant before each model call, says that the call is running while it is, and settles what came
//! of it. What is left open when the turn ends is given back.

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use croft_proto::Timestamp;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{BudgetReached, Grant, GrantRefused, GrantRequest, Model, ModelAttempt, ModelRouted};

use super::granted::weight;
use crate::budget::keeper::{Outcome, Wish};
use crate::budget::reservation::Reservation;
use crate::clock::now;
use crate::core::Core;
use crate::error::Error;
use crate::models::output;
use crate::models::router::{self, Choice, Question};
use crate::models::seed::sees;
use crate::session::Session;

/// How long a grant is good for.
const GRANT_TTL_SECONDS: i64 = 600;
/// How long a call may wait for its grant before it is refused. Workers wait for thirty seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// The purse of one turn. Clones share it.
#[derive(Clone)]
pub(super) struct Purse {
    core: Arc<Core>,
    session: Arc<Session>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    open: Vec<Reservation>,
    /// Why no more may be spent in this turn.
    ended: Option<BudgetReached>,
    /// Running calls are being looked at.
    is_looking: bool,
}

/// What became of a request for a grant, or of a look at a running call.
pub(super) enum Told {
    /// With what was decided about the model, if anything was.
    Granted { request: GrantRequest, routed: Option<ModelRouted>, grant: Grant },
    /// A refusal that no event tells of.
    Refused(GrantRefused),
    /// A budget has no room: people are told first, then the worker.
    Reached(BudgetReached, Option<GrantRefused>),
    /// Nothing is to be said.
    Nothing,
}

impl Purse {
    pub(super) fn new(core: Arc<Core>, session: Session) -> Self {
        Self { core, session: Arc::new(session), state: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call is running, as far as is known here.
    pub(super) fn is_open(&self) -> bool {
        !self.lock().open.is_empty()
    }

    /// No more may be spent in this turn.
    pub(super) fn has_ended(&self) -> bool {
        self.lock().ended.is_some()
    }

    /// Asks for the grant of a model call, and waits for it.
    pub(super) async fn grant(self, request: GrantRequest, model: Arc<Model>) -> Told {
        let refused = |reason: &str, message: String| GrantRefused {
            request_id: request.request_id.clone(),
            reason: reason.to_owned(),
            message,
        };
        if let Some(ended) = self.lock().ended.clone() {
            // Its event is stored.
            return Told::Refused(refused("BUDGET", ended.message));
        }
        let choice = self.route(&request, &model).await;
        let routed = choice.as_ref().map(|choice| choice.event(&model));
        let is_routed = choice.as_ref().is_some_and(|choice| choice.model.model_id != model.model_id);
        let model = choice.map_or(model, |choice| choice.model);
        let input_tokens = i64::from(request.input_tokens_estimated);
        let can = model.capabilities.unwrap_or_default();
        let wish = Wish {
            session: (*self.session).clone(),
            model: Arc::clone(&model),
            input_tokens,
            output_tokens_max: output::bound(&can, input_tokens, request.output_tokens_max),
            // A second call is made to be quick, or not at all.
            patience: if request.hedges { Duration::ZERO } else { PATIENCE },
        };
        match self.core.budgets.grant(wish).await {
            Ok(Outcome::Granted(reservation)) => {
                let grant = Grant {
                    request_id: request.request_id.clone(),
                    grant_id: reservation.ask.id.clone(),
                    provider: model.provider.clone(),
                    model: model.model_id.clone(),
                    output_tokens_max: u32::try_from(reservation.output_tokens_max).unwrap_or(u32::MAX),
                    expire_time: Some(Timestamp { seconds: now().seconds + GRANT_TTL_SECONDS, nanos: 0 }),
                    routed: is_routed,
                    images: sees(&model),
                };
                self.lock().open.push(*reservation);
                Told::Granted { request, routed, grant }
            }
            Ok(Outcome::Limited(why)) => Told::Refused(refused("RATE_LIMIT", why)),
            // The call itself goes on: that there is no room for a second one ends nothing.
            Ok(Outcome::Reached(reached)) if request.hedges => Told::Refused(refused("BUDGET", reached.message)),
            Ok(Outcome::Reached(reached)) => {
                let refused = refused("BUDGET", reached.message.clone());
                self.lock().ended = Some(reached.clone());
                Told::Reached(reached, Some(refused))
            }
            Err(error) => {
                let message = match &error {
                    Error::Unavailable { .. } => format!("budgets can't be looked at: {error}"),
                    other => other.to_string(),
                };
                tracing::warn!(session = %self.session.id, error = format!("{:#}", anyhow::Error::from(error)), "no grant");
                Told::Refused(refused("RATE_LIMIT", message))
            }
        }
    }

    /// Which model is to answer, for an agent that lets it be chosen. A model that takes over was chosen already, and so was
    /// that of a call which is made a second time.
    async fn route(&self, request: &GrantRequest, requested: &Arc<Model>) -> Option<Choice> {
        let Session { agent, tenant, .. } = &*self.session;
        if request.takeover.is_some() || request.hedges || agent.routing.is_none() {
            return None;
        }
        if request.as_asked {
            let reason = "a cheaper one that was chosen in this turn could not answer".to_owned();
            return Some(Choice { model: Arc::clone(requested), reason });
        }
        let pressure = match self.core.budgets.pressure(&self.session).await {
            Ok(pressure) => pressure,
            Err(error) => {
                tracing::warn!(session = %self.session.id, %error, "no other model is looked for");
                return None;
            }
        };
        let question = Question {
            agent,
            requested,
            input_tokens: i64::from(request.input_tokens_estimated),
            output_tokens_max: request.output_tokens_max,
            pressure,
            at_seconds: now().seconds,
        };
        let tenant = self.core.tenants.get(*tenant);
        // A provider that needs no key is in no route.
        let own = &requested.provider;
        let is_open = |provider: &str| {
            provider == own || tenant.as_ref().is_some_and(|tenant| tenant.providers.contains_key(provider))
        };
        router::choose(&self.core.models, &question, is_open)
    }

    /// A piece of the answer was shown.
    pub(super) fn shown(&self, preview: &Kind) {
        let weight = weight(preview);
        // A worker makes one attempt at a time. Of two, it tells what came of the one that it gave up first.
        if let Some(running) = self.lock().open.last_mut() {
            running.weight = running.weight.saturating_add(weight);
        }
    }

    /// Says that the running call is running, or both that are, and looks whether it must be cut. While one look is under way a further
    /// one does nothing: behind counters that don't answer they would pile up.
    pub(super) async fn hold(self) -> Told {
        let Some(_look) = Look::begin(&self) else { return Told::Nothing };
        let open = self.lock().open.clone();
        for mut running in open {
            let mut word = Word { purse: &self, id: &running.ask.id.clone(), is_taken_back: false };
            let held = self.core.budgets.hold(&self.session, &mut running).await;
            let reached = held.unwrap_or_else(|error| {
                tracing::debug!(session = %self.session.id, %error, "a running call was not looked at");
                None
            });
            if !self.is_still_open(&running) {
                // It was settled while we looked, and our word may have come behind that: then its reservation was taken again.
                self.core.budgets.settle(&self.session, &running, None).await;
                word.is_taken_back = true;
            } else if let Some(reached) = reached
                && self.ends(&reached)
            {
                return Told::Reached(reached, None);
            }
        }
        Told::Nothing
    }

    /// Whether the call has not been settled. Then the budgets that hold for it are those that were looked at now.
    fn is_still_open(&self, running: &Reservation) -> bool {
        let mut state = self.lock();
        let open = state.open.iter_mut().find(|open| open.ask.id == running.ask.id);
        let is_open = open.is_some();
        if let Some(open) = open {
            open.budgets.clone_from(&running.budgets);
        }
        is_open
    }

    /// No more may be spent in this turn, for this reason; false when there is another one already.
    fn ends(&self, reached: &BudgetReached) -> bool {
        let mut state = self.lock();
        let is_first = state.ended.is_none();
        state.ended.get_or_insert_with(|| reached.clone());
        is_first
    }

    /// Why the turn must end with this attempt, if it must.
    pub(super) fn ends_with(&self, attempt: &ModelAttempt) -> Option<BudgetReached> {
        let mut state = self.lock();
        let its = |open: &&Reservation| open.ask.id == attempt.grant_id;
        let reached = state.open.iter().find(its).and_then(|open| open.ends_with(attempt))?;
        if state.ended.is_some() {
            return None;
        }
        state.ended = Some(reached.clone());
        Some(reached)
    }

    /// The model that was granted for this attempt, as it was known then; `None` where no call is open for it.
    pub(super) fn granted(&self, attempt: &ModelAttempt) -> Option<Arc<Model>> {
        let is_its = |open: &&Reservation| open.ask.id == attempt.grant_id && open.model.model_id == attempt.model;
        self.lock().open.iter().find(is_its).map(|open| Arc::clone(&open.model))
    }

    /// What came of grants is stored.
    pub(super) async fn settle(&self, attempts: &[ModelAttempt]) {
        for attempt in attempts {
            let open = {
                let mut state = self.lock();
                let place = state.open.iter().position(|open| open.ask.id == attempt.grant_id);
                place.map(|place| state.open.remove(place))
            };
            if let Some(reservation) = open {
                self.core.budgets.settle(&self.session, &reservation, Some(attempt)).await;
            }
        }
    }

    /// The turn is over. What nothing came of is given back.
    pub(super) async fn close(&self) {
        let open = std::mem::take(&mut self.lock().open);
        for reservation in open {
            self.core.budgets.settle(&self.session, &reservation, None).await;
        }
    }
}

/// A look at the running calls; there is one at a time.
struct Look<'purse>(&'purse Purse);

impl<'purse> Look<'purse> {
    fn begin(purse: &'purse Purse) -> Option<Self> {
        let is_first = !std::mem::replace(&mut purse.lock().is_looking, true);
        is_first.then(|| Self(purse))
    }
}

impl Drop for Look<'_> {
    fn drop(&mut self) {
        self.0.lock().is_looking = false;
    }
}

/// Our word that a call is running. When the turn ends over it, it may have come behind the call's settlement: then it is taken back.
struct Word<'look> {
    purse: &'look Purse,
    /// Of the ask.
    id: &'look str,
    is_taken_back: bool,
}

impl Drop for Word<'_> {
    fn drop(&mut self) {
        let Purse { core, session, .. } = self.purse;
        let is_open = self.purse.lock().open.iter().any(|open| open.ask.id == self.id);
        if !is_open && !self.is_taken_back {
            core.budgets.take_back(session, self.id);
        }
    }
}
