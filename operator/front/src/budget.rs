//! What models may spend: budgets of a tenant, of its agents and of sessions, over a day, a month and for life, in money and tokens.
//!
//! A call reserves what it may cost at most of every budget that holds for it, before it begins, and is settled to what it did cost
//! once that is in the ledger. What is spent is always the ledger's word: see [`crate::counters`].

pub mod alert;
mod asked;
pub mod keeper;
pub mod period;
mod queue;
pub mod reservation;
pub mod webhook;

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use croft_proto::Timestamp;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::{AgentLimits, BudgetAction, TenantLimits};

use crate::counters::{Amount, Bound, Ledger, Standing};
use crate::error::Error;
use crate::session::Session;
use alert::Alert;
use period::Period;
use webhook::{Claimed, HookEnd};

/// Whom a budget is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    Tenant,
    Agent,
    Session,
}

impl Scope {
    /// As it is stored and told.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tenant => "tenant",
            Self::Agent => "agent",
            Self::Session => "session",
        }
    }
}

/// One budget. Of money and tokens it limits at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    pub scope: Scope,
    /// The agent's name or the session's id; empty for the tenant.
    pub subject: String,
    pub period: Period,
    /// Billionths of a US dollar.
    pub nano_usd: Option<i64>,
    /// Of all classes.
    pub tokens: Option<i64>,
    pub action: BudgetAction,
    /// It is the platform's or the agent's own, and nobody's to change here.
    pub is_given: bool,
}

impl Budget {
    /// It refuses what goes beyond it.
    pub fn is_hard(&self) -> bool {
        matches!(self.action, BudgetAction::Block | BudgetAction::Unspecified)
    }

    /// Whether it is for what this session spends.
    fn holds_for(&self, session: &Session) -> bool {
        match self.scope {
            Scope::Tenant => true,
            Scope::Agent => self.subject == session.agent.name,
            Scope::Session => {
                let above = session.parent.iter().flat_map(|parent| &parent.lineage);
                self.subject == session.id.to_string() || above.into_iter().any(|above| self.subject == above.session)
            }
        }
    }

    /// What it counts at this time.
    pub fn account(&self, now: &Timestamp) -> Account {
        Account { scope: self.scope, subject: self.subject.clone(), period: self.period.name(now) }
    }

    /// For sentences: `the tenant's budget for the month`.
    pub fn described(&self) -> String {
        let whose = match self.scope {
            Scope::Tenant => "the tenant's budget".to_owned(),
            Scope::Agent => format!("the budget of agent {}", self.subject),
            Scope::Session => format!("the budget of session {}", self.subject),
        };
        match self.period {
            Period::Day => format!("{whose} for the day"),
            Period::Month => format!("{whose} for the month"),
            Period::Life => whose,
        }
    }
}

/// What the ledger adds up under one name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Account {
    pub scope: Scope,
    pub subject: String,
    /// A day as `2026-11-25`, a month as `2026-11`, or `life`.
    pub period: String,
}

impl Account {
    /// Its name among the counters.
    pub fn key(&self) -> String {
        format!("{}:{}:{}", self.scope.as_str(), self.subject.replace(char::is_whitespace, "_"), self.period)
    }
}

/// The budgets that hold for a session, and what they count: several may share an account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Budgets {
    pub all: Vec<Budget>,
    /// In the order of [`Self::bounds`].
    pub accounts: Vec<Account>,
    /// The account of each budget.
    places: Vec<usize>,
}

impl Budgets {
    /// Of these, those that hold for a session.
    pub fn of(session: &Session, budgets: impl IntoIterator<Item = Budget>, now: &Timestamp) -> Self {
        let all: Vec<_> = budgets.into_iter().filter(|budget| budget.holds_for(session)).collect();
        let mut places = Vec::new();
        let mut accounts: Vec<Account> = Vec::new();
        let mut known = BTreeMap::new();
        for budget in &all {
            let account = budget.account(now);
            let place = *known.entry(account.clone()).or_insert_with(|| {
                accounts.push(account);
                accounts.len() - 1
            });
            places.push(place);
        }
        Self { all, accounts, places }
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Each budget with the place of its account.
    pub fn iter(&self) -> impl Iterator<Item = (&Budget, usize)> {
        self.all.iter().zip(self.places.iter().copied())
    }

    /// A limit of money that must not be passed: then no model may be called whose price is unknown.
    pub fn hard_money(&self) -> Option<&Budget> {
        self.all.iter().find(|budget| budget.is_hard() && budget.nano_usd.is_some())
    }

    /// The uppermost session whose spending, and that of those below it, is held to a limit of money that must not be passed. Where that is
    /// the tenant's or an agent's, it is the one that a client opened.
    pub fn hard_money_from(&self, session: &Session) -> Option<SessionId> {
        let above = session.parent.iter().flat_map(|parent| &parent.lineage).map(|above| above.session.clone());
        let chain: Vec<_> = std::iter::once(session.id.to_string()).chain(above).collect();
        let top = |budget: &Budget| match budget.scope {
            Scope::Tenant | Scope::Agent => Some(chain.len() - 1),
            Scope::Session => chain.iter().position(|id| *id == budget.subject),
        };
        let hard = self.all.iter().filter(|budget| budget.is_hard() && budget.nano_usd.is_some());
        chain[hard.filter_map(top).max()?].parse().ok()
    }

    /// One for each account, with the narrowest of its hard limits.
    pub fn bounds(&self) -> Vec<Bound> {
        let bound = |(place, account): (usize, &Account)| {
            let (nano_usd, tokens) = self.limits(place);
            Bound { key: account.key(), nano_usd, tokens, keep: KEEP, ledger: None, insists: false }
        };
        self.accounts.iter().enumerate().map(bound).collect()
    }

    /// What an account's limits leave where so much of it is taken; without a limit, all there is.
    pub fn left(&self, place: usize, taken: Standing) -> Amount {
        let Standing { spent, reserved } = taken;
        let (nano_usd, tokens) = self.limits(place);
        let left = |limit: Option<i64>, spent: i64, reserved: i64| {
            limit.map_or(i64::MAX, |limit| limit.saturating_sub(spent).saturating_sub(reserved))
        };
        Amount {
            nano_usd: left(nano_usd, spent.nano_usd, reserved.nano_usd),
            tokens: left(tokens, spent.tokens, reserved.tokens),
        }
    }

    /// The narrowest hard limits of an account, of money and of tokens.
    fn limits(&self, place: usize) -> (Option<i64>, Option<i64>) {
        let hard = || self.hard(place);
        (hard().filter_map(|budget| budget.nano_usd).min(), hard().filter_map(|budget| budget.tokens).min())
    }

    pub(crate) fn hard(&self, place: usize) -> impl Iterator<Item = &Budget> {
        self.iter().filter(move |(budget, at)| *at == place && budget.is_hard()).map(|(budget, _)| budget)
    }

    /// The narrowest hard budget of an account: the one that refused.
    pub fn hard_of(&self, place: usize) -> Option<&Budget> {
        self.hard(place).min_by_key(|budget| budget.nano_usd.unwrap_or(i64::MAX))
    }
}

/// How long the counters keep a copy that nobody asks for; the ledger has it then.
const KEEP: Duration = Duration::from_hours(48);

/// What the platform allows a tenant in a month.
pub fn of_tenant(limits: &TenantLimits) -> Option<Budget> {
    let [nano_usd, tokens] = [limits.monthly_budget_nano_usd, limits.monthly_budget_tokens].map(above_nothing);
    (nano_usd.is_some() || tokens.is_some()).then(|| Budget {
        scope: Scope::Tenant,
        subject: String::new(),
        period: Period::Month,
        nano_usd,
        tokens,
        action: limits.budget_action(),
        is_given: true,
    })
}

/// What an agent allows each of its sessions.
pub fn of_agent(session: &Session) -> Option<Budget> {
    let AgentLimits { budget_nano_usd, budget_tokens, .. } = session.agent.limits?;
    let [nano_usd, tokens] = [budget_nano_usd, budget_tokens].map(above_nothing);
    (nano_usd.is_some() || tokens.is_some()).then(|| Budget {
        scope: Scope::Session,
        subject: session.id.to_string(),
        period: Period::Life,
        nano_usd,
        tokens,
        action: BudgetAction::Block,
        is_given: true,
    })
}

/// What the agents of the sessions above allow those: a sub-agent spends of it, too.
pub fn of_family(session: &Session) -> impl Iterator<Item = Budget> {
    let lineage = session.parent.iter().flat_map(|parent| &parent.lineage);
    lineage.filter(|above| above.nano_usd.is_some() || above.tokens.is_some()).map(|above| Budget {
        scope: Scope::Session,
        subject: above.session.clone(),
        period: Period::Life,
        nano_usd: above.nano_usd,
        tokens: above.tokens,
        action: BudgetAction::Block,
        is_given: true,
    })
}

fn above_nothing(limit: i64) -> Option<i64> {
    (limit > 0).then_some(limit)
}

/// Where budgets are kept, and what the ledger says of what they count.
#[async_trait]
pub trait BudgetStore: Send + Sync {
    /// Those that were set for the tenant, in the order of scope, subject and period.
    async fn list(&self, tenant: TenantId) -> Result<Vec<Budget>, Error>;

    /// Sets the budget of this scope, subject and period.
    async fn put(&self, tenant: TenantId, budget: &Budget) -> Result<(), Error>;

    /// Takes it away. Whether there was one.
    async fn delete(&self, tenant: TenantId, scope: Scope, subject: &str, period: Period) -> Result<bool, Error>;

    /// What the ledger adds up for each account, in their order. Two answers that differ have different versions, and the later
    /// one the larger.
    async fn ledgers(&self, tenant: TenantId, accounts: &[Account]) -> Result<Vec<Ledger>, Error>;

    /// Whether this session, or any below it, has an attempt whose cost nobody knows.
    async fn is_unpriced(&self, tenant: TenantId, session: SessionId) -> Result<bool, Error>;

    /// Records that a threshold was reached. False when it had been before.
    async fn alert(&self, tenant: TenantId, alert: &Alert) -> Result<bool, Error>;

    /// The highest threshold of each of a budget's limits that was recorded to be reached in this account of it, money first. A limit
    /// without one is not there.
    async fn highest_alerts(&self, tenant: TenantId, budget: &Budget, account: &Account) -> Result<Vec<Alert>, Error>;

    /// The session was told of it.
    async fn told(&self, tenant: TenantId, alert: &Alert) -> Result<(), Error>;

    /// Alerts of which no session was told for so long, at most so many.
    async fn untold(&self, older_than: Duration, limit: u32) -> Result<Vec<(TenantId, Alert)>, Error>;

    /// Takes alerts that are to be posted now, and counts a try of each. Until the lease is over nobody else takes them.
    async fn claim_hooks(&self, limit: usize, lease: Duration) -> Result<Vec<Claimed>, Error>;

    /// How the try went.
    async fn hook_ended(&self, tenant: TenantId, alert: &Alert, end: HookEnd) -> Result<(), Error>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(scope: Scope, subject: &str, nano_usd: i64, action: BudgetAction) -> Budget {
        let (subject, nano_usd) = (subject.to_owned(), Some(nano_usd));
        Budget { scope, subject, period: Period::Life, nano_usd, tokens: None, action, is_given: false }
    }

    #[test]
    fn the_narrowest_hard_limit_of_an_account_holds_and_soft_ones_only_count() {
        let (all, now) = (
            vec![
                budget(Scope::Tenant, "", 50, BudgetAction::Warn),
                budget(Scope::Tenant, "", 90, BudgetAction::Block),
                budget(Scope::Tenant, "", 70, BudgetAction::Unspecified),
                budget(Scope::Agent, "a", 10, BudgetAction::Throttle),
            ],
            Timestamp::default(),
        );
        let mut budgets = Budgets { all, ..Budgets::default() };
        budgets.accounts = vec![budgets.all[0].account(&now), budgets.all[3].account(&now)];
        budgets.places = vec![0, 0, 0, 1];
        let bounds = budgets.bounds();
        assert_eq!(bounds.iter().map(|bound| bound.nano_usd).collect::<Vec<_>>(), [Some(70), None]);
        assert_eq!(bounds[0].key, "tenant::life");
        assert_eq!(budgets.hard_of(0).unwrap().nano_usd, Some(70));
        assert_eq!(budgets.hard_of(1), None);
    }

    #[test]
    fn a_tenant_without_a_limit_has_no_budget() {
        assert_eq!(of_tenant(&TenantLimits::default()), None);
        let limits = TenantLimits { monthly_budget_tokens: 7, ..TenantLimits::default() };
        let budget = of_tenant(&limits).unwrap();
        assert_eq!((budget.nano_usd, budget.tokens, budget.is_hard()), (None, Some(7), true));
    }
}
