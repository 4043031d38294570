//! Budgets in memory.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use croft_proto::Timestamp;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::UsageEvent;
use tokio::time::Instant;

use super::{Memory, State};
use crate::budget::alert::{Alert, Unit};
use crate::budget::period::Period;
use crate::budget::webhook::{Claimed, HookEnd};
use crate::budget::{Account, Budget, BudgetStore, Scope};
use crate::counters::Ledger;
use crate::error::Error;

/// An alert, when it was found, and whether its session was told.
pub(super) struct Found {
    tenant: TenantId,
    alert: Alert,
    at: Instant,
    create_time: Timestamp,
    is_told: bool,
    /// When it is to be posted; `None` when that is over.
    hook_time: Option<Instant>,
    tries: u32,
}

impl Found {
    /// The same threshold of the same limit, whoever reached it.
    fn is(&self, tenant: TenantId, alert: &Alert) -> bool {
        self.tenant == tenant && self.alert.key() == alert.key()
    }

    pub(super) fn tenant(&self) -> TenantId {
        self.tenant
    }

    pub(super) fn is_of(&self, tenant: TenantId, is_wanted: impl FnOnce(&Account) -> bool) -> bool {
        self.tenant == tenant && is_wanted(&self.alert.account)
    }
}

#[async_trait]
impl BudgetStore for Memory {
    async fn list(&self, tenant: TenantId) -> Result<Vec<Budget>, Error> {
        let state = self.lock();
        Ok(state.budgets.iter().filter(|((owner, ..), _)| *owner == tenant).map(|(_, budget)| budget.clone()).collect())
    }

    async fn put(&self, tenant: TenantId, budget: &Budget) -> Result<(), Error> {
        let key = (tenant, budget.scope, budget.subject.clone(), budget.period);
        self.lock().budgets.insert(key, Budget { is_given: false, ..budget.clone() });
        Ok(())
    }

    async fn delete(&self, tenant: TenantId, scope: Scope, subject: &str, period: Period) -> Result<bool, Error> {
        Ok(self.lock().budgets.remove(&(tenant, scope, subject.to_owned(), period)).is_some())
    }

    async fn ledgers(&self, tenant: TenantId, accounts: &[Account]) -> Result<Vec<Ledger>, Error> {
        let state = self.lock();
        let rows: Vec<_> = state.usage.iter().filter(|((owner, _), _)| *owner == tenant).map(|(_, row)| row).collect();
        let ledger = |account: &Account| {
            rows.iter().filter(|row| counts(account, row, &state.lineages)).fold(Ledger::default(), |ledger, row| {
                let tokens = row.tokens.unwrap_or_default();
                let input = tokens.input_uncached_tokens + tokens.cache_read_tokens;
                let written = tokens.cache_write_5m_tokens + tokens.cache_write_1h_tokens;
                Ledger {
                    version: ledger.version + 1,
                    nano_usd: ledger.nano_usd + row.cost_nano_usd.unwrap_or_default(),
                    tokens: ledger.tokens + input + written + tokens.output_tokens,
                }
            })
        };
        Ok(accounts.iter().map(ledger).collect())
    }

    async fn is_unpriced(&self, tenant: TenantId, session: SessionId) -> Result<bool, Error> {
        let (state, top) = (self.lock(), session.to_string());
        let is_its = |id: &SessionId| {
            let id = id.to_string();
            id == top || state.lineages.get(&id).is_some_and(|above| above.contains(&top))
        };
        let mut own = state.sessions.iter().filter(|((owner, id), _)| *owner == tenant && is_its(id));
        Ok(own.any(|(_, record)| record.session.usage.unpriced_attempts > 0))
    }

    async fn alert(&self, tenant: TenantId, alert: &Alert) -> Result<bool, Error> {
        let mut state = self.lock();
        if state.alerts.iter().any(|found| found.is(tenant, alert)) {
            return Ok(false);
        }
        let now = Instant::now();
        state.alerts.push(Found {
            tenant,
            alert: alert.clone(),
            at: now,
            create_time: crate::clock::now(),
            is_told: false,
            hook_time: Some(now),
            tries: 0,
        });
        Ok(true)
    }

    async fn highest_alerts(&self, tenant: TenantId, budget: &Budget, account: &Account) -> Result<Vec<Alert>, Error> {
        let state = self.lock();
        let its = || state.alerts.iter().filter(|found| found.is_of(tenant, |told| told == account));
        let highest = |unit: Unit| {
            let limit = unit.limit(budget)?;
            let of_limit = its().map(|found| &found.alert).filter(|alert| (alert.unit, alert.limit) == (unit, limit));
            of_limit.max_by_key(|alert| alert.percent).cloned()
        };
        Ok(Unit::ALL.into_iter().filter_map(highest).collect())
    }

    async fn told(&self, tenant: TenantId, alert: &Alert) -> Result<(), Error> {
        for found in self.lock().alerts.iter_mut().filter(|found| found.is(tenant, alert)) {
            found.is_told = true;
        }
        Ok(())
    }

    async fn untold(&self, older_than: Duration, limit: u32) -> Result<Vec<(TenantId, Alert)>, Error> {
        let state = self.lock();
        let untold = state.alerts.iter().filter(|found| !found.is_told && found.at.elapsed() >= older_than);
        Ok(untold.take(limit as usize).map(|found| (found.tenant, found.alert.clone())).collect())
    }

    async fn claim_hooks(&self, limit: usize, lease: Duration) -> Result<Vec<Claimed>, Error> {
        let mut state = self.lock();
        let State { alerts, tenants, .. } = &mut *state;
        let now = Instant::now();
        let due = alerts.iter_mut().filter(|found| found.hook_time.is_some_and(|time| time <= now));
        let claim = |found: &mut Found| {
            found.tries += 1;
            found.hook_time = Some(now + lease);
            Claimed {
                tenant: found.tenant,
                tenant_name: tenants.get(&found.tenant).cloned().unwrap_or_default(),
                alert: found.alert.clone(),
                create_time: found.create_time,
                tries: found.tries,
            }
        };
        Ok(due.take(limit).map(claim).collect())
    }

    async fn hook_ended(&self, tenant: TenantId, alert: &Alert, end: HookEnd) -> Result<(), Error> {
        for found in self.lock().alerts.iter_mut().filter(|found| found.is(tenant, alert)) {
            found.hook_time = match end {
                HookEnd::Taken | HookEnd::Dead => None,
                HookEnd::Again(pause) => Some(Instant::now() + pause),
            };
        }
        Ok(())
    }
}

fn counts(account: &Account, row: &UsageEvent, lineages: &BTreeMap<String, Vec<String>>) -> bool {
    let is_its = match account.scope {
        Scope::Tenant => true,
        Scope::Agent => account.subject == row.agent,
        Scope::Session => {
            let above = lineages.get(&row.session_id);
            account.subject == row.session_id || above.is_some_and(|above| above.contains(&account.subject))
        }
    };
    let moment: Timestamp = row.create_time.unwrap_or_default();
    is_its && [Period::Day, Period::Month, Period::Life].iter().any(|period| period.name(&moment) == account.period)
}
