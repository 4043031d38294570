//! Keeps budgets: grants model calls against them and against the tenant's rates, settles what the calls came to, and tells of
//! thresholds.

mod alerts;
mod asking;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use croft_proto::id::TenantId;
use croft_proto::v1::{BudgetReached, Model, ModelAttempt};
use croft_serve::Tasks;
use moka::future::Cache;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use self::asking::Asking;
use super::alert::reached;
use super::period::Period;
use super::queue::Queues;
use super::reservation::{Reservation, tokens_of};
use super::{Account, Budget, BudgetStore, Budgets, Scope, of_agent, of_family, of_tenant};
use crate::clock::now;
use crate::counters::{Amount, Ask, Bound, Counters, Settlement, Standing, Verdict};
use crate::error::Error;
use crate::events::fanout::Hub;
use crate::events::log::EventLog;
use crate::limits::Limiter;
use crate::session::Session;
use crate::tenants::Tenants;

/// How long a reservation outlives the last word of its holder, as a rule: see [`Keeper::hold`].
pub const RESERVATION_TTL: Duration = Duration::from_secs(30);
/// How old what is known of a tenant's budgets may be. One that is set here is known here at once.
const BUDGETS_FRESH: Duration = Duration::from_secs(3);
/// Tenants whose budgets are remembered, and standings and alerts. At the bound the least used are forgotten, and read again.
const REMEMBERED_MAX: u64 = 50_000;
/// Rounds of asking the counters: for the ledger's word, and for less output. At the bound there is no grant.
const ROUNDS_MAX: usize = 8;
/// Rounds in which the counters did not go by the ledger's word, although it was read after they had asked for it. At the bound it is
/// insisted on, as the ledger has gone back: to a standby that had not everything, or to a backup. Of a ledger that only changed meanwhile
/// the next settlement tells.
const DISBELIEVED_MAX: usize = 3;

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
        Asking::new(self, wish).outcome().await
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

    /// Has the counters go by the ledger's word of the bounds at these places, though they know a newer one.
    fn insist(tenant: TenantId, bounds: &mut [Bound], places: &BTreeSet<usize>) {
        for place in places {
            if let Some(bound) = bounds.get_mut(*place) {
                bound.insists = true;
            }
        }
        tracing::warn!(%tenant, "the counters know newer sums than the ledger has: they are to go by the ledger's");
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
                    // The first was without it.
                    if rounds > DISBELIEVED_MAX {
                        Self::insist(session.tenant, &mut bounds, &all);
                    }
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

/// The event of a budget that has no more room.
pub(super) fn reached_event(budget: Option<&Budget>) -> BudgetReached {
    let (scope, message) = match budget {
        Some(budget) => (budget.scope.as_str(), format!("{} is used up", budget.described())),
        None => ("tenant", "a budget is used up".to_owned()),
    };
    BudgetReached { scope: scope.to_owned(), message }
}
