//! The removal of tenants in memory.

use async_trait::async_trait;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::SessionState;

use super::{Memory, State};
use crate::error::Error;
use crate::tenants::removal::RemovalStore;

#[async_trait]
impl RemovalStore for Memory {
    async fn begin(&self, tenant: TenantId, name: &str) -> Result<bool, Error> {
        let mut state = self.lock();
        state.tenants.entry(tenant).or_insert_with(|| name.to_owned());
        Ok(state.removing.insert(tenant))
    }

    async fn erase_credentials(&self, tenant: TenantId) -> Result<u64, Error> {
        let mut state = self.lock();
        state.check_removal(tenant)?;
        let before = state.api_keys.len();
        state.api_keys.retain(|_, kept| kept.key.tenant != tenant);
        Ok((before - state.api_keys.len()) as u64)
    }

    async fn erase_sessions(&self, tenant: TenantId, rows_max: u32) -> Result<u64, Error> {
        let mut state = self.lock();
        state.check_removal(tenant)?;
        let mut room = rows_max as usize;
        for record in state.records_of(tenant) {
            let gone = record.events.len().min(room);
            record.events.drain(..gone);
            room -= gone;
        }
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
        let keys = state.used_keys.keys().filter(|key| key.0 == tenant).count();
        let rows: usize = state.records_of(tenant).map(|record| record.events.len() + 1).sum();
        Ok(((rows + keys) as u64).min(u64::from(rows_max)))
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
