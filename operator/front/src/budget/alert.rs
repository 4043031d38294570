//! Thresholds of budgets, which are told of once each: to the session whose attempt reached them, as a durable event, or whose call was
//! refused.

use croft_proto::id::SessionId;
use croft_proto::v1::BudgetAlert;

use super::{Account, Budget, Budgets, Scope};
use crate::counters::{Amount, Standing};

/// Percent of a limit.
pub const THRESHOLDS: [u32; 4] = [50, 80, 90, 100];

/// What a limit is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unit {
    NanoUsd,
    Tokens,
}

impl Unit {
    pub const ALL: [Self; 2] = [Self::NanoUsd, Self::Tokens];

    /// As it is stored and told.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NanoUsd => "nano_usd",
            Self::Tokens => "tokens",
        }
    }

    /// Of a budget.
    pub fn limit(self, budget: &Budget) -> Option<i64> {
        match self {
            Self::NanoUsd => budget.nano_usd,
            Self::Tokens => budget.tokens,
        }
    }

    /// Of what is spent.
    pub fn amount(self, amount: &Amount) -> i64 {
        match self {
            Self::NanoUsd => amount.nano_usd,
            Self::Tokens => amount.tokens,
        }
    }
}

/// A threshold that was reached. It is the same alert whatever was spent, and whoever spent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alert {
    pub account: Account,
    pub unit: Unit,
    pub limit: i64,
    pub percent: u32,
    pub spent: i64,
    /// Who is told.
    pub session: SessionId,
}

impl Alert {
    fn of(account: &Account, unit: Unit, limit: i64, percent: u32, spent: i64, session: SessionId) -> Self {
        // A session whose sub-agent reached it is told itself.
        let session = match account.scope {
            Scope::Session => account.subject.parse().unwrap_or(session),
            Scope::Tenant | Scope::Agent => session,
        };
        Self { account: account.clone(), unit, limit, percent, spent, session }
    }

    /// As an event.
    pub fn event(&self) -> BudgetAlert {
        BudgetAlert {
            scope: self.account.scope.as_str().to_owned(),
            percent: self.percent,
            subject: self.account.subject.clone(),
            period: self.account.period.clone(),
            unit: self.unit.as_str().to_owned(),
            limit: self.limit,
            spent: self.spent,
        }
    }

    /// A name that no other alert has.
    pub fn key(&self) -> String {
        format!("budget-alert/{}/{}/{}/{}", self.account.key(), self.unit.as_str(), self.limit, self.percent)
    }
}

/// All thresholds that are reached as things stand.
pub fn reached(budgets: &Budgets, standings: &[Standing], session: SessionId) -> Vec<Alert> {
    let mut alerts = Vec::new();
    for (budget, place) in budgets.iter() {
        let (Some(standing), Some(account)) = (standings.get(place), budgets.accounts.get(place)) else { continue };
        for unit in Unit::ALL {
            let Some(limit) = unit.limit(budget) else { continue };
            let spent = unit.amount(&standing.spent);
            let is_reached = |percent: &u32| i128::from(spent) * 100 >= i128::from(limit) * i128::from(*percent);
            let percents = THRESHOLDS.into_iter().filter(is_reached);
            alerts.extend(percents.map(|percent| Alert::of(account, unit, limit, percent, spent, session)));
        }
    }
    alerts
}

/// All thresholds of the hard limits of an account that have no room for a call of so much, though nothing is reserved: what is left will
/// never be spent, and who waits for the last percent would never hear of it.
pub fn exhausted(budgets: &Budgets, place: usize, spent: &Amount, call: &Amount, session: SessionId) -> Vec<Alert> {
    let mut alerts = Vec::new();
    let Some(account) = budgets.accounts.get(place) else { return alerts };
    for budget in budgets.hard(place) {
        for unit in Unit::ALL {
            let Some(limit) = unit.limit(budget) else { continue };
            let spent = unit.amount(spent);
            if spent.saturating_add(unit.amount(call)) > limit {
                alerts.extend(THRESHOLDS.map(|percent| Alert::of(account, unit, limit, percent, spent, session)));
            }
        }
    }
    alerts
}
