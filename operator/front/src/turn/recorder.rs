//! Stores what a turn reports, under its lease, and only then shows it.

use std::sync::Arc;
use std::time::Duration;

use croft_proto::id::TurnId;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{ModelAttempt, ProviderMode, SessionCheckpoint, SessionEvent, StopReason, TokenUsage};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::charge::Charge;
use super::extent::Extent;
use super::granted::Granted;
use super::purse::Purse;
use super::store::Ended;
use crate::clock::now;
use crate::core::Core;
use crate::error::Error;
use crate::events::log::{Append, Appended, Authority, NewEvent};
use crate::models::price;
use crate::session::Session;
use crate::tenants::Tenant;

/// What is to be settled, once it is stored.
fn attempts(events: &[SessionEvent]) -> Vec<ModelAttempt> {
    let attempt = |event: &SessionEvent| match &event.kind {
        Some(Kind::ModelAttempt(attempt)) => Some(attempt.clone()),
        _ => None,
    };
    events.iter().filter_map(attempt).collect()
}

/// Tokens of a class that one attempt may have used. What is beyond is no model's doing, and would break every sum.
const TOKENS_MAX: i64 = 1_000_000_000;

/// Brings what a provider claims into bounds. Whether it was not.
fn sensible(usage: &mut TokenUsage) -> bool {
    let TokenUsage {
        input_uncached_tokens,
        cache_read_tokens,
        cache_write_5m_tokens,
        cache_write_1h_tokens,
        output_tokens,
        reasoning_tokens,
    } = usage;
    let classes = [
        input_uncached_tokens,
        cache_read_tokens,
        cache_write_5m_tokens,
        cache_write_1h_tokens,
        output_tokens,
        reasoning_tokens,
    ];
    let mut changed = false;
    for class in classes {
        let sensible = (*class).clamp(0, TOKENS_MAX);
        changed |= sensible != *class;
        *class = sensible;
    }
    changed
}

/// How far a turn has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// A worker was chosen that knows the session.
    Placed,
    /// It has said its first word.
    Ready,
    FirstToken,
}

/// Writes for one turn.
pub(super) struct Recorder {
    core: Arc<Core>,
    session: Session,
    epoch: u64,
    turn: TurnId,
    /// On whose behalf the turn runs; empty where nobody knows.
    sender: String,
    /// As it was when the turn began.
    tenant: Option<Arc<Tenant>>,
    purse: Purse,
    /// Its calls of which nothing is stored: they are charged for whatever becomes of the turn.
    pub(super) granted: Granted,
    extent: Extent,
    began: Instant,
    /// How long the turn had run by then, where whoever had it before began it.
    ran_before: Duration,
    /// Taken while something is being stored.
    under_way: Arc<Mutex<()>>,
    /// Later ones may come first, where a turn goes on at another worker.
    reached: Option<Stage>,
    /// Previews of the turn may have been shown, here or by whoever had the turn before.
    has_shown: bool,
    /// That of the last attempt; empty before there is one.
    last_model: String,
}

impl Recorder {
    /// For a turn that runs on behalf of `sender`. `is_fresh` when nothing of the turn can have been shown yet.
    pub(super) fn new(
        core: Arc<Core>,
        session: Session,
        epoch: u64,
        (turn, sender): (TurnId, &str),
        is_fresh: bool,
    ) -> Self {
        let tenant = core.tenants.get(session.tenant);
        let purse = Purse::new(Arc::clone(&core), session.clone());
        let extent = Extent::of(session.agent.limits);
        Self {
            core,
            session,
            epoch,
            turn,
            sender: sender.to_owned(),
            tenant,
            purse,
            granted: Granted::default(),
            extent,
            began: Instant::now(),
            ran_before: Duration::ZERO,
            under_way: Arc::default(),
            reached: None,
            has_shown: !is_fresh,
            last_model: String::new(),
        }
    }

    /// The turn has run for so long by now, or longer.
    pub(super) fn has_run_for(&mut self, elapsed: Duration) {
        self.ran_before = self.ran_before.max(elapsed.saturating_sub(self.began.elapsed()));
    }

    /// Since the turn began, whoever had it then.
    pub(super) fn elapsed(&self) -> Duration {
        self.ran_before + self.began.elapsed()
    }

    /// Taken while something is being stored.
    pub(super) fn under_way(&self) -> Arc<Mutex<()>> {
        Arc::clone(&self.under_way)
    }

    /// What the turn may spend.
    pub(super) fn purse(&self) -> &Purse {
        &self.purse
    }

    /// What workers may still tell of the turn.
    pub(super) fn extent(&mut self) -> &mut Extent {
        &mut self.extent
    }

    /// The turn that it writes for.
    pub(super) fn turn(&self) -> TurnId {
        self.turn
    }

    /// Stores durable events and a checkpoint in one transaction, publishes them, and tells their numbers.
    pub(super) async fn store(
        &mut self,
        kinds: Vec<Kind>,
        checkpoint: Option<SessionCheckpoint>,
        input_seq: Option<u64>,
    ) -> Result<Vec<u64>, Error> {
        let appended = self.storing(kinds, checkpoint, input_seq).await?;
        self.stored(appended).await
    }

    /// The first half of [`Self::store`]. What is shown meanwhile comes before it.
    pub(super) fn storing(
        &mut self,
        kinds: Vec<Kind>,
        checkpoint: Option<SessionCheckpoint>,
        input_seq: Option<u64>,
    ) -> impl Future<Output = Result<Appended, Error>> + Send + use<> {
        let append = self.append(kinds, checkpoint, input_seq);
        let (log, charge) = (Arc::clone(&self.core.stores.events), self.charge_of(&append));
        let under_way = self.under_way();
        async move {
            let _under_way = under_way.lock().await;
            let appended = log.append(append).await;
            Charge::unless_stored(charge, appended).await
        }
    }

    /// The second half of [`Self::store`].
    pub(super) async fn stored(&mut self, appended: Appended) -> Result<Vec<u64>, Error> {
        match appended {
            Appended::New(events) => {
                self.granted.stored();
                let attempts = attempts(&events);
                let numbers = self.show(events);
                self.purse.settle(&attempts).await;
                Ok(numbers)
            }
            Appended::Existing { .. } => Err(Error::internal(anyhow::anyhow!("an append without a key was known"))),
        }
    }

    /// The same for the last events of the turn. Tells whether the lease went with them, since no message waits.
    pub(super) async fn end(
        &mut self,
        kinds: Vec<Kind>,
        checkpoint: Option<SessionCheckpoint>,
        input_seq: u64,
    ) -> Result<bool, Error> {
        let append = self.append(kinds, checkpoint, Some(input_seq));
        let charge = self.charge_of(&append);
        let ended = self.core.stores.turns.end(append).await;
        let ended = Charge::unless_stored(charge, ended).await;
        if let Ok(_) | Err(Error::SessionTerminated { .. }) = &ended {
            self.granted.stored();
        }
        let Ended { events, released } = ended?;
        let attempts = attempts(&events);
        self.show(events);
        self.purse.settle(&attempts).await;
        self.purse.close().await;
        Ok(released)
    }

    /// Accounts for these attempts, of which no event will tell, since the session has ended or another worker goes on with its turn.
    pub(super) async fn charge_behind_end(&mut self, attempts: Vec<Kind>) {
        let append = self.append(attempts, None, None);
        if let Some(charge) = self.charge_of(&append) {
            Box::pin(charge.make()).await;
        }
    }

    /// The same for attempts of a turn that another front goes on with, later: should their worker tell it of them, that counts.
    pub(super) fn charge_unless_told(&mut self, attempts: Vec<Kind>) {
        let append = self.append(attempts, None, None);
        if let Some(charge) = self.charge_of(&append) {
            charge.make_unless_told();
        }
    }

    fn charge_of(&self, append: &Append) -> Option<Charge> {
        Charge::of(append, &self.core, &self.purse)
    }

    fn append(&mut self, kinds: Vec<Kind>, checkpoint: Option<SessionCheckpoint>, input_seq: Option<u64>) -> Append {
        if kinds.iter().any(|kind| matches!(kind, Kind::AgentMessage(_))) {
            self.reach(Stage::FirstToken);
        }
        let (elapsed_ms, create_time) = (self.elapsed_ms(), now());
        let kinds = self.ended_by_budget(kinds.into_iter().map(|kind| self.priced(kind)).collect());
        let events =
            kinds.into_iter().map(|kind| NewEvent { kind, turn: Some(self.turn), elapsed_ms, create_time }).collect();
        let authority = Authority::Lease { epoch: self.epoch };
        Append { checkpoint, input_seq, ..Append::of(self.session.tenant, self.session.id, authority, events) }
    }

    /// Says so, where an attempt among these was the last that a budget had room for: behind them all, or before the word that
    /// ends the turn.
    fn ended_by_budget(&self, mut kinds: Vec<Kind>) -> Vec<Kind> {
        let mut attempts = kinds.iter().filter_map(|kind| match kind {
            Kind::ModelAttempt(attempt) => Some(attempt),
            _ => None,
        });
        let Some(reached) = attempts.find_map(|attempt| self.purse.ends_with(attempt)) else { return kinds };
        match kinds.last_mut() {
            Some(Kind::SessionIdle(idle)) => {
                if idle.stop_reason() == StopReason::MaxTokens {
                    idle.set_stop_reason(StopReason::Budget);
                }
                kinds.insert(kinds.len() - 1, Kind::BudgetReached(reached));
            }
            _ => kinds.push(Kind::BudgetReached(reached)),
        }
        kinds
    }

    /// Counts what is stored, and publishes it.
    fn show(&mut self, events: Vec<SessionEvent>) -> Vec<u64> {
        let metrics = &self.core.metrics;
        metrics.events_stored.inc_by(events.len() as u64);
        metrics.told.count(&events, &mut self.last_model);
        let is_unpriced = |event: &&SessionEvent| matches!(&event.kind, Some(Kind::ModelAttempt(made)) if made.cost_nano_usd.is_none());
        metrics.unpriced_attempts.inc_by(events.iter().filter(is_unpriced).count() as u64);
        let numbers = events.iter().map(|event| event.seq).collect();
        self.core.hub.publish(self.session.tenant, self.session.id, events);
        numbers
    }

    /// Shows a preview, which is stored nowhere.
    pub(super) fn preview(&mut self, kind: Kind) {
        self.has_shown = true;
        self.reach(Stage::FirstToken);
        let event = SessionEvent {
            session_id: self.session.id.to_string(),
            seq: 0,
            create_time: Some(now()),
            elapsed_ms: self.elapsed_ms(),
            turn_id: self.turn.to_string(),
            kind: Some(kind),
        };
        self.core.hub.publish(self.session.tenant, self.session.id, vec![event]);
    }

    /// Nobody can have seen a preview of the turn.
    pub(super) fn is_fresh(&self) -> bool {
        !self.has_shown
    }

    fn elapsed_ms(&self) -> i64 {
        i64::try_from(self.elapsed().as_millis()).unwrap_or(i64::MAX)
    }

    /// Measures when the turn came so far for the first time.
    pub(super) fn reach(&mut self, stage: Stage) {
        if self.reached >= Some(stage) {
            return;
        }
        self.reached = Some(stage);
        let (metrics, took) = (&self.core.metrics, self.began.elapsed().as_secs_f64());
        match stage {
            Stage::Placed => metrics.turn_stages.with_label_values(&["place"]).observe(took),
            Stage::Ready => metrics.turn_stages.with_label_values(&["ready"]).observe(took),
            Stage::FirstToken => metrics.first_token.observe(took),
        }
    }

    /// Whose account the provider used. One that has been taken out of the routes since the turn began is known from then; one
    /// that was never in them needs no key, and is the platform's.
    fn mode(&self, provider: &str) -> ProviderMode {
        let now = self.core.tenants.get(self.session.tenant);
        let told = now.iter().chain(&self.tenant).find_map(|tenant| tenant.providers.get(provider));
        told.copied().unwrap_or(ProviderMode::Platform)
    }

    /// At a model that has been taken out of the table since, by the price that it was granted at, also where its id has become an alias of
    /// another: that nobody knows would end the session under a budget of money.
    fn cost_nano_usd(&self, attempt: &ModelAttempt) -> Option<i64> {
        let by_name = self.core.models.get(&attempt.model).ok();
        let by_id = by_name.clone().filter(|model| model.model_id == attempt.model);
        let model = by_id.or_else(|| self.purse.granted(attempt)).or(by_name)?;
        price::cost_nano_usd(&model, attempt, now().seconds)
    }

    /// The worker tells what was used; what it cost, whom, and on whose behalf is ours to say.
    fn priced(&self, kind: Kind) -> Kind {
        match kind {
            Kind::ModelAttempt(mut attempt) => {
                if let Some(usage) = &mut attempt.usage {
                    attempt.usage_estimated |= sensible(usage);
                }
                attempt.cost_nano_usd = self.cost_nano_usd(&attempt);
                attempt.set_mode(self.mode(&attempt.provider));
                attempt.sender.clone_from(&self.sender);
                Kind::ModelAttempt(attempt)
            }
            other => other,
        }
    }
}

impl Drop for Recorder {
    /// What its calls used is not stored when the store or the lease is lost beneath the turn, or the turn is dropped where it stands. Whoever
    /// goes on with it does not know of them, unless their worker lives and tells it. At a shutdown it does, or nobody can any more.
    fn drop(&mut self) {
        let lost = self.granted.lost();
        if !lost.is_empty() && !self.core.tasks.ending().is_cancelled() {
            self.charge_unless_told(lost);
        }
    }
}
