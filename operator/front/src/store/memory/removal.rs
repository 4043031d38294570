//! The removal of tenants in memory.

use std::time::Duration;

use async_trait::async_trait;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::SessionState;
use croft_proto::v1::session_event::Kind;

use super::{Memory, Record, State};
use crate::clock::now;
use crate::error::Error;
use crate::store::time;
use crate::tenants::removal::store::RemovalStore;

#[async_trait]
impl RemovalStore for Memory {
    async fn begin(&self, tenant: TenantId, name: &str) -> Result<bool, Error> {
        let mut state = self.lock();
        state.tenants.entry(tenant).or_insert_with(|| name.to_owned());
        Ok(state.removing.insert(tenant))
    }

    async fn count_cut_short(&self, tenant: TenantId, within: Duration) -> Result<u64, Error> {
        let within = i64::try_from(within.as_micros()).unwrap_or(i64::MAX);
        let since = time::micros(&now()).saturating_sub(within);
        let mut state = self.lock();
        let cut_short = state.records_of(tenant).filter(|Record { session, events, .. }| {
            // At rest, a session's last word is that it is.
            let before = events.iter().rev().nth(1).and_then(|event| event.kind.as_ref());
            let was_at_rest = matches!(before, None | Some(Kind::SessionReady(_) | Kind::SessionIdle(_)));
            session.terminate_time.is_some_and(|ended| time::micros(&ended) > since) && !was_at_rest
        });
        Ok(cut_short.count() as u64)
    }

    async fn erase_credentials(&self, tenant: TenantId) -> Result<u64, Error> {
        let mut state = self.lock();
        state.check_removal(tenant)?;
        let before = state.api_keys.len();
        state.api_keys.retain(|_, kept| kept.key.tenant != tenant);
        Ok((before - state.api_keys.len()) as u64)
    }

    async fn erase_rows(&self, tenant: TenantId, rows_max: u32) -> Result<u64, Error> {
        let mut state = self.lock();
        state.check_removal(tenant)?;
        let mut room = rows_max as usize;
        let mut goes = |of: TenantId| {
            let goes = of == tenant && room > 0;
            room -= usize::from(goes);
            goes
        };
        state.budgets.retain(|(of, ..), _| !goes(*of));
        state.alerts.retain(|found| !goes(found.tenant()));
        for record in state.records_of(tenant) {
            let gone = record.events.len().min(room);
            record.events.drain(..gone);
            room -= gone;
        }
        state.going.retain(|(of, _), events| {
            if *of != tenant {
                return true;
            }
            let gone = usize::try_from(*events).unwrap_or(usize::MAX).min(room);
            *events -= gone as u64;
            // And the session itself.
            let goes = *events == 0 && room > gone;
            room -= gone + usize::from(goes);
            !goes
        });
        let keys: Vec<_> = state.used_keys.keys().filter(|key| key.0 == tenant).take(room).cloned().collect();
        room -= keys.len();
        for key in &keys {
            state.used_keys.remove(key);
        }
        let sessions: Vec<_> = state.sessions.keys().filter(|key| key.0 == tenant).take(room).copied().collect();
        room -= sessions.len();
        for key in &sessions {
            state.sessions.remove(key);
        }
        Ok(u64::from(rows_max) - room as u64)
    }

    async fn count_rows(&self, tenant: TenantId, rows_max: u32) -> Result<u64, Error> {
        let mut state = self.lock();
        let rows: usize = state.records_of(tenant).map(|record| record.events.len() + 1).sum();
        let budgets = state.budgets.keys().filter(|key| key.0 == tenant).count();
        let alerts = state.alerts.iter().filter(|found| found.tenant() == tenant).count();
        let keys = state.used_keys.keys().filter(|key| key.0 == tenant).count();
        let going: u64 = state.going.iter().filter(|((of, _), _)| *of == tenant).map(|(_, events)| events + 1).sum();
        Ok(((rows + budgets + alerts + keys) as u64 + going).min(u64::from(rows_max)))
    }
}

impl State {
    fn records_of(&mut self, tenant: TenantId) -> impl Iterator<Item = &mut super::Record> {
        let of = |id| (tenant, SessionId(id));
        self.sessions.range_mut(of(uuid::Uuid::nil())..=of(uuid::Uuid::max())).map(|(_, record)| record)
    }

    fn check_removal(&mut self, tenant: TenantId) -> Result<(), Error> {
        if !self.removing.contains(&tenant) {
            return Err(Error::internal(anyhow::anyhow!("the tenant is not being removed")));
        }
        if self.records_of(tenant).any(|record| record.session.state != SessionState::Terminated) {
            return Err(Error::internal(anyhow::anyhow!("the tenant has open sessions")));
        }
        Ok(())
    }
}
