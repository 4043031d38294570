//! Keeps budgets: grants model calls against them and against the tenant's rates, settles what the calls came to, and tells of
//! thresholds.

mod alerts;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use croft_proto::id::TenantId;
use croft_proto::v1::{BudgetAction, BudgetReached, Model, ModelAttempt};
use croft_serve::Tasks;
use moka::future::Cache;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
use tokio::time::Instant;
use uuid::Uuid;

use super::alert::{exhausted, reached};
use super::asked::Asked;
use super::period::Period;
use super::queue::{Head, Queues};
use super::reservation::{OUTPUT_TOKENS_MIN, Reservation, output_that_fits, tokens_of};
use super::{Account, Budget, BudgetStore, Budgets, Scope, of_agent, of_family, of_tenant};
use crate::counters::{Amount, Ask, Bound, Counters, Settlement, Standing, Verdict, Window};
use crate::error::Error;
use crate::events::fanout::Hub;
use crate::events::log::EventLog;
use crate::limits::Limiter;
use crate::models::price::Quote;
use crate::session::Session;
use crate::tenants::Tenants;
use crate::turn::now;

/// How long a reservation outlives the last word of its holder, as a rule: see [`Keeper::hold`].
pub const RESERVATION_TTL: Duration = Duration::from_secs(30);
/// A call of which a used-up budget says that it be slowed down comes one in so long.
const THROTTLED_TO: Duration = Duration::from_secs(5);
/// How old what is known of a tenant's budgets may be. One that is set here is known here at once.
const BUDGETS_FRESH: Duration = Duration::from_secs(3);
/// Tenants whose budgets are remembered, and standings and alerts. At the bound the least used are forgotten, and read again.
const REMEMBERED_MAX: u64 = 50_000;
/// Rounds of asking the counters: for the ledger's word, and for less output. At the bound there is no grant.
const ROUNDS_MAX: usize = 8;

/// What a call wants to use.
#[derive(Debug, Clone)]
pub struct Wish {
    pub session: Session,
    pub model: Arc<Model>,
    pub input_tokens: i64,
    pub output_tokens_max: i64,
    /// How long it may wait for a rate, or for room that running calls hold, before it is refused.
    pub patience: Duration,
}

/// What a [`Wish`] came to.
#[derive(Debug)]
pub enum Outcome {
    Granted(Box<Reservation>),
    /// A rate is used up, or a budget lets few calls through, and for too long to wait: why, in a sentence.
    Limited(String),
    /// A budget is used up, or may be: why, for the session's people.
    Reached(BudgetReached),
}

/// See the module; cheap to clone.
#[derive(Clone)]
pub struct Keeper {
    pub(super) store: Arc<dyn BudgetStore>,
    events: Arc<dyn EventLog>,
    counters: Arc<dyn Counters>,
    limiter: Limiter,
    tenants: Tenants,
    hub: Hub,
    reservation_ttl: Duration,
    queues: Queues,
    set: Cache<TenantId, Arc<Vec<Budget>>>,
    standings: Cache<(TenantId, String), Standing>,
    alerted: Cache<(TenantId, String), ()>,
    tasks: Tasks,
    metrics: Metrics,
}

/// What a [`Keeper`] is made from.
pub struct Parts {
    pub store: Arc<dyn BudgetStore>,
    pub events: Arc<dyn EventLog>,
    pub counters: Arc<dyn Counters>,
    pub limiter: Limiter,
    pub tenants: Tenants,
    pub hub: Hub,
    pub reservation_ttl: Duration,
}

/// Instruments of budgets.
#[derive(Clone)]
struct Metrics {
    /// By scope.
    refusals: IntCounterVec,
    cuts: IntCounter,
    /// By percent.
    alerts: IntCounterVec,
    waits: IntCounter,
    /// Not for a rate.
    room_waits: IntCounter,
}

impl Metrics {
    fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let refusals = Opts::new("croft_budget_refusals_total", "Model calls that a budget had no room for");
        let refusals = IntCounterVec::new(refusals, &["scope"])?;
        registry.register(Box::new(refusals.clone()))?;
        let cuts = IntCounter::new("croft_budget_cuts_total", "Running model calls that were cut at a budget")?;
        registry.register(Box::new(cuts.clone()))?;
        let alerts = Opts::new("croft_budget_alerts_total", "Thresholds of budgets that were told of");
        let alerts = IntCounterVec::new(alerts, &["percent"])?;
        registry.register(Box::new(alerts.clone()))?;
        let waits = IntCounter::new("croft_grant_waits_total", "Model calls that waited for a rate")?;
        registry.register(Box::new(waits.clone()))?;
        let room_waits = IntCounter::new(
            "croft_budget_waits_total",
            "Model calls that waited for room in a budget which running calls held",
        )?;
        registry.register(Box::new(room_waits.clone()))?;
        Ok(Self { refusals, cuts, alerts, waits, room_waits })
    }
}

impl Keeper {
    /// Starts the look for alerts that nobody was told of, too. Fails if an instrument is registered already.
    pub fn start(parts: Parts, tasks: &Tasks, registry: &Registry) -> Result<Self, prometheus::Error> {
        let Parts { store, events, counters, limiter, tenants, hub, reservation_ttl } = parts;
        let keeper = Self {
            store,
            events,
            counters,
            limiter,
            tenants,
            hub,
            reservation_ttl,
            queues: Queues::default(),
            set: Cache::builder().max_capacity(REMEMBERED_MAX).time_to_live(BUDGETS_FRESH).build(),
            standings: Cache::new(REMEMBERED_MAX),
            alerted: Cache::new(REMEMBERED_MAX),
            tasks: tasks.clone(),
            metrics: Metrics::register(registry)?,
        };
        tasks.spawn_endless("budget-alerts", keeper.clone().tell_what_is_untold(tasks.clone()));
        Ok(keeper)
    }

    /// All budgets that were set for a tenant. Callers at the same time share one look.
    async fn set_for(&self, tenant: TenantId) -> Result<Arc<Vec<Budget>>, Error> {
        let read = async { self.store.list(tenant).await.map(Arc::new) };
        let budgets = self.set.try_get_with(tenant, read).await;
        budgets.map_err(|error| Error::unavailable("the tenant's budgets", anyhow::anyhow!("{error}")))
    }

    /// A budget has been changed here.
    pub async fn forget(&self, tenant: TenantId) {
        self.set.invalidate(&tenant).await;
    }

    /// Those that hold for a session now.
    async fn budgets(&self, session: &Session) -> Result<Budgets, Error> {
        let own = self.tenants.get(session.tenant).and_then(|tenant| of_tenant(&tenant.limits));
        let set = self.set_for(session.tenant).await?;
        let given = own.into_iter().chain(of_agent(session)).chain(of_family(session));
        Ok(Budgets::of(session, given.chain(set.iter().cloned()), &now()))
    }

    /// Grants a call, and waits with that for a while where a rate or a slowed-down budget asks it to, or where calls that are
    /// running hold what it needs.
    pub async fn grant(&self, wish: Wish) -> Result<Outcome, Error> {
        let tenant = wish.session.tenant;
        let give_up_at = Instant::now() + wish.patience;
        let mut output = wish.output_tokens_max.max(1);
        let mut clipped_by = None;
        let mut unread = BTreeSet::new();
        let id = Uuid::now_v7().to_string();
        let mut rounds = 0;
        let mut head: Option<Head> = None;
        loop {
            // As they are by now: who waits goes on when one is raised.
            let budgets = self.budgets(&wish.session).await?;
            let quote = Quote::of(&wish.model, wish.input_tokens, now().seconds);
            if let Some(reached) = self.unpriced(&wish, quote, &budgets).await? {
                return Ok(Outcome::Reached(reached));
            }
            let tokens = wish.input_tokens.saturating_add(output);
            let limits = self.limiter.of_model_call(tenant, &wish.model.provider, tokens);
            let throttles = self.throttles(tenant, &budgets).await;
            let throttling = throttles.iter().map(|(window, _)| window);
            let windows: Vec<_> = limits.windows.iter().chain(throttling).cloned().collect();
            let mut bounds = budgets.bounds();
            let places = (0..).zip(&budgets.accounts).filter(|(_, account)| unread.contains(*account));
            let places = places.map(|(place, _)| place).collect();
            self.read(tenant, &budgets, &mut bounds, &places).await?;
            let nano_usd = quote.map_or(0, |quote| quote.nano_usd(wish.input_tokens, output));
            let ask = Ask { tenant, id: id.clone(), ttl: self.reservation_ttl, nano_usd, tokens, windows, bounds };
            if ask.windows.is_empty() && ask.bounds.is_empty() {
                return Ok(granted(ask, budgets, quote, &wish, output, None));
            }
            rounds += 1;
            let asked = Asked::new(self, tenant, &id, &budgets.accounts);
            let verdict = self.counters.admit(&ask).await?.verdict;
            if let Verdict::Granted(standings) = &verdict {
                self.remember(tenant, &budgets, standings).await;
            }
            asked.answered();
            match verdict {
                Verdict::Granted(_) => return Ok(granted(ask, budgets, quote, &wish, output, clipped_by)),
                Verdict::Unknown(places) if rounds < ROUNDS_MAX => {
                    unread.extend(places.iter().filter_map(|place| budgets.accounts.get(*place)).cloned());
                }
                Verdict::Full { window, retry_after } => {
                    if Instant::now() + retry_after > give_up_at {
                        let behind_rates = window.checked_sub(limits.windows.len());
                        let throttle = behind_rates.and_then(|place| throttles.get(place));
                        let why = if let Some((_, budget)) = throttle {
                            self.throttled(budget)
                        } else {
                            let error = limits.refusal(window, retry_after);
                            self.limiter.refused(&error);
                            error.to_string()
                        };
                        return Ok(Outcome::Limited(why));
                    }
                    self.metrics.waits.inc();
                    // Who waits for a rate keeps nobody from a budget's room.
                    head = None;
                    tokio::time::sleep(retry_after).await;
                    rounds = 0;
                }
                Verdict::Spent { bound, standing } => {
                    let budget = budgets.hard_of(bound).cloned();
                    let room_beside = |reserved| {
                        let left = budgets.left(bound, Standing { reserved, ..standing });
                        output_that_fits(left, quote, wish.input_tokens)
                    };
                    let enough = OUTPUT_TOKENS_MIN.min(wish.output_tokens_max);
                    let fits = room_beside(standing.reserved);
                    if fits >= enough && fits < output && rounds < ROUNDS_MAX {
                        (output, clipped_by) = (fits, budget);
                        continue;
                    }
                    if room_beside(Amount::default()) < enough {
                        let call = Amount {
                            nano_usd: quote.map_or(0, |quote| quote.nano_usd(wish.input_tokens, enough)),
                            tokens: wish.input_tokens.saturating_add(enough),
                        };
                        for alert in exhausted(&budgets, bound, &standing.spent, &call, wish.session.id) {
                            self.alert(tenant, &alert).await;
                        }
                    } else {
                        if head.is_none() && !wish.patience.is_zero() {
                            self.metrics.room_waits.inc();
                        }
                        head = self.queues.wait(tenant, &budgets.accounts[bound].key(), head, give_up_at).await;
                        if head.is_some() {
                            (output, clipped_by, rounds) = (wish.output_tokens_max.max(1), None, 0);
                            continue;
                        }
                    }
                    return Ok(Outcome::Reached(self.refused(budget.as_ref())));
                }
                Verdict::Unknown(_) => {
                    return Err(Error::unavailable("the ledger of budgets", anyhow::anyhow!("it changes too often")));
                }
            }
        }
    }

    /// How much of the tightest budget of money that holds for a session is spent or reserved, in percent; `None` without one. As it
    /// was told last: it is for choices, not for limits.
    pub async fn pressure(&self, session: &Session) -> Result<Option<u32>, Error> {
        let budgets = self.budgets(session).await?;
        let mut tightest = None;
        for (budget, place) in budgets.iter() {
            let Some(limit) = budget.nano_usd else { continue };
            let key = (session.tenant, budgets.accounts[place].key());
            let used = if let Some(Standing { spent, reserved }) = self.standings.get(&key).await {
                spent.nano_usd.saturating_add(reserved.nano_usd)
            } else {
                let ledgers = self.store.ledgers(session.tenant, &budgets.accounts[place..=place]).await?;
                ledgers.first().map_or(0, |ledger| ledger.nano_usd)
            };
            let percent = i128::from(used) * 100 / i128::from(limit.max(1));
            tightest = tightest.max(Some(u32::try_from(percent).unwrap_or(u32::MAX)));
        }
        Ok(tightest)
    }

    /// What must be known of a price that isn't, before money may be spent by it.
    async fn unpriced(
        &self,
        wish: &Wish,
        quote: Option<Quote>,
        budgets: &Budgets,
    ) -> Result<Option<BudgetReached>, Error> {
        let (Some(budget), session) = (budgets.hard_money(), &wish.session) else { return Ok(None) };
        let described = budget.described();
        let message = if quote.is_none() {
            format!("the price of model {} is not known, and {described} must not be passed", wish.model.model_id)
        } else if session.usage.unpriced_attempts > 0 {
            format!("the session used a model whose price is not known, and {described} must not be passed")
        } else if self.is_family_unpriced(session, budgets).await? {
            format!(
                "a session above or below used a model whose price is not known, and {described} must not be passed"
            )
        } else {
            return Ok(None);
        };
        self.metrics.refusals.with_label_values(&[budget.scope.as_str()]).inc();
        Ok(Some(BudgetReached { scope: budget.scope.as_str().to_owned(), message }))
    }

    /// Whether nobody knows what the sub-agents have spent that share a limit of money with the session.
    async fn is_family_unpriced(&self, session: &Session, budgets: &Budgets) -> Result<bool, Error> {
        let is_alone = session.parent.is_none() && session.agent.sub_agents.is_empty();
        match budgets.hard_money_from(session).filter(|_| !is_alone) {
            Some(top) => self.store.is_unpriced(session.tenant, top).await,
            None => Ok(false),
        }
    }

    fn refused(&self, budget: Option<&Budget>) -> BudgetReached {
        let scope = budget.map_or("tenant", |budget| budget.scope.as_str());
        self.metrics.refusals.with_label_values(&[scope]).inc();
        reached_event(budget)
    }

    /// Why a call was held back for too long by a budget that slows calls down.
    fn throttled(&self, budget: &Budget) -> String {
        self.metrics.refusals.with_label_values(&[budget.scope.as_str()]).inc();
        format!("{} is used up, and lets one call through in {} s", budget.described(), THROTTLED_TO.as_secs())
    }

    /// Windows of the budgets that are used up and say that calls be slowed down.
    async fn throttles<'set>(&self, tenant: TenantId, budgets: &'set Budgets) -> Vec<(Window, &'set Budget)> {
        let mut windows = Vec::new();
        for (budget, place) in budgets.iter().filter(|(budget, _)| budget.action == BudgetAction::Throttle) {
            let key = budgets.accounts[place].key();
            let Some(Standing { spent, .. }) = self.standings.get(&(tenant, key.clone())).await else { continue };
            let is_used_up = budget.nano_usd.is_some_and(|limit| spent.nano_usd >= limit)
                || budget.tokens.is_some_and(|limit| spent.tokens >= limit);
            if is_used_up {
                let name = format!("throttle:{key}");
                windows.push((Window { name, limit: 1, span: THROTTLED_TO, amount: 1, settles: false }, budget));
            }
        }
        windows
    }

    /// Adds the ledger's word to the bounds at these places.
    async fn read(
        &self,
        tenant: TenantId,
        budgets: &Budgets,
        bounds: &mut [Bound],
        places: &BTreeSet<usize>,
    ) -> Result<(), Error> {
        let accounts: Vec<_> = places.iter().filter_map(|place| budgets.accounts.get(*place).cloned()).collect();
        let ledgers = self.store.ledgers(tenant, &accounts).await?;
        for (place, ledger) in places.iter().zip(ledgers) {
            if let Some(bound) = bounds.get_mut(*place) {
                bound.ledger = Some(ledger);
            }
        }
        Ok(())
    }

    async fn remember(&self, tenant: TenantId, budgets: &Budgets, standings: &[Standing]) {
        for (account, standing) in budgets.accounts.iter().zip(standings) {
            self.standings.insert((tenant, account.key()), *standing).await;
        }
    }

    /// Says that a call is still running, and looks whether what it and others have spent by now passes a budget as it stands
    /// now: then it is to be cut. Its reservation is of the budgets that hold for it now, be it that another day has begun.
    pub async fn hold(&self, session: &Session, reservation: &mut Reservation) -> Result<Option<BudgetReached>, Error> {
        let budgets = self.budgets(session).await?;
        let mut bounds = budgets.bounds();
        if bounds.is_empty() && reservation.ask.windows.iter().all(|window| !window.settles) {
            return Ok(None);
        }
        let mut rounds = 0;
        let standings = loop {
            let ask = Ask { bounds: bounds.clone(), windows: Vec::new(), ..reservation.ask.clone() };
            rounds += 1;
            match self.counters.hold(&ask).await?.verdict {
                Verdict::Granted(standings) => break standings,
                _ if rounds < ROUNDS_MAX => {
                    let all = (0..bounds.len()).collect();
                    self.read(session.tenant, &budgets, &mut bounds, &all).await?;
                }
                _ => return Ok(None),
            }
        };
        reservation.budgets.clone_from(&budgets);
        let so_far = reservation.so_far();
        let passes = |place: usize| {
            let (bound, spent) = (&bounds[place], standings.get(place).copied().unwrap_or_default().spent);
            bound.nano_usd.is_some_and(|limit| spent.nano_usd.saturating_add(so_far.nano_usd) > limit)
                || bound.tokens.is_some_and(|limit| spent.tokens.saturating_add(so_far.tokens) > limit)
        };
        let Some(place) = (0..bounds.len()).find(|place| passes(*place)) else { return Ok(None) };
        self.metrics.cuts.inc();
        Ok(Some(reached_event(budgets.hard_of(place))))
    }

    /// Settles a call to what the ledger says since: `attempt` is stored there, or nothing came of the call. Never fails: what
    /// could not be done is made up for when the reservation runs out.
    pub async fn settle(&self, session: &Session, reservation: &Reservation, attempt: Option<&ModelAttempt>) {
        let (tenant, budgets) = (session.tenant, &reservation.budgets);
        if reservation.ask.windows.is_empty() && budgets.is_empty() {
            return;
        }
        let mut bounds = budgets.bounds();
        let all = (0..bounds.len()).collect();
        let read = self.read(tenant, budgets, &mut bounds, &all).await;
        if let Err(error) = &read {
            tracing::warn!(%tenant, %error, "a call is settled without the ledger");
        }
        let tokens = attempt.map(|attempt| tokens_of(&attempt.usage.unwrap_or_default()));
        let settlement = Settlement { tenant, id: reservation.ask.id.clone(), tokens, bounds };
        let standings = match self.counters.settle(&settlement).await {
            Ok(standings) => standings,
            Err(error) => {
                tracing::warn!(%tenant, %error, "a call could not be settled: its reservation runs out");
                return;
            }
        };
        for (account, standing) in budgets.accounts.iter().zip(&standings) {
            // Of one that says nothing, neither the ledger nor Redis was there: what was known last goes on, or calls would be slowed
            // down no longer.
            if read.is_ok() || standing.spent != Amount::default() {
                self.standings.insert((tenant, account.key()), *standing).await;
            }
        }
        for account in &budgets.accounts {
            self.queues.settled(tenant, account.key()).await;
        }
        for alert in reached(budgets, &standings, session.id) {
            self.alert(tenant, &alert).await;
        }
    }

    /// Settles what may have been granted and nobody knows of, in a task of its own, and wakes who waits for its room.
    pub(super) fn give_back(&self, settlement: Settlement, accounts: Vec<Account>) {
        let keeper = self.clone();
        let settling = async move {
            let tenant = settlement.tenant;
            if let Err(error) = keeper.counters.settle(&settlement).await {
                tracing::debug!(%tenant, %error, "a grant that nobody took is not given back: it runs out");
                return;
            }
            for account in accounts {
                keeper.queues.settled(tenant, account.key()).await;
            }
        };
        drop(self.tasks.spawn("leave-given-back", settling));
    }

    /// Takes the word back that a call is running, in a task of its own: it is settled.
    pub fn take_back(&self, session: &Session, id: &str) {
        let settlement = Settlement { tenant: session.tenant, id: id.to_owned(), tokens: None, bounds: Vec::new() };
        self.give_back(settlement, Vec::new());
    }

    /// What a session and the sub-agents below it have spent, by the ledger.
    pub async fn spent_by(&self, session: &Session) -> Result<Amount, Error> {
        let (subject, period) = (session.id.to_string(), Period::Life.name(&now()));
        let account = Account { scope: Scope::Session, subject, period };
        let ledgers = self.store.ledgers(session.tenant, &[account]).await?;
        let spent = ledgers.first().map(|ledger| Amount { nano_usd: ledger.nano_usd, tokens: ledger.tokens });
        Ok(spent.unwrap_or_default())
    }

    /// What is spent of each budget of the tenant, by the ledger.
    pub async fn list(&self, tenant: TenantId) -> Result<Vec<(Budget, Amount)>, Error> {
        let own = self.tenants.get(tenant).and_then(|tenant| of_tenant(&tenant.limits));
        let all: Vec<_> = own.into_iter().chain(self.store.list(tenant).await?).collect();
        let accounts: Vec<_> = all.iter().map(|budget| budget.account(&now())).collect();
        let ledgers = self.store.ledgers(tenant, &accounts).await?;
        let spent = ledgers.into_iter().map(|ledger| Amount { nano_usd: ledger.nano_usd, tokens: ledger.tokens });
        Ok(all.into_iter().zip(spent).collect())
    }
}

fn granted(
    ask: Ask,
    budgets: Budgets,
    quote: Option<Quote>,
    wish: &Wish,
    output_tokens_max: i64,
    clipped_by: Option<Budget>,
) -> Outcome {
    Outcome::Granted(Box::new(Reservation {
        ask,
        budgets,
        quote,
        input_tokens: wish.input_tokens,
        output_tokens_max,
        clipped_by,
        weight: 0,
    }))
}

/// The event of a budget that has no more room.
pub(super) fn reached_event(budget: Option<&Budget>) -> BudgetReached {
    let (scope, message) = match budget {
        Some(budget) => (budget.scope.as_str(), format!("{} is used up", budget.described())),
        None => ("tenant", "a budget is used up".to_owned()),
    };
    BudgetReached { scope: scope.to_owned(), message }
}
