//! Looks across tenants, in memory.

use std::collections::BTreeSet;

use async_trait::async_trait;
use croft_proto::Timestamp;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::SessionState;

use super::{Memory, Record, State};
use crate::error::Error;
use crate::session::across::{AcrossTenants, Changed, Horizon};
use crate::session::family::Parent;
use crate::store::{projection, time};

#[async_trait]
impl AcrossTenants for Memory {
    async fn due(&self, now: Timestamp, limit: u32) -> Result<Vec<(TenantId, SessionId)>, Error> {
        let state = self.lock();
        let due = state.sessions.iter().filter(|(_, record)| record.is_due(&now));
        let mut due: Vec<_> = due.map(|(&key, record)| (record.due_time.as_ref().map(time::micros), key)).collect();
        due.sort_unstable();
        Ok(due.into_iter().map(|(_, key)| key).take(limit as usize).collect())
    }

    async fn orphaned(&self, limit: u32) -> Result<Vec<(TenantId, SessionId)>, Error> {
        let state = self.lock();
        let is_over = |tenant: TenantId, parent: &Parent| {
            let above = state.sessions.get(&(tenant, parent.session)).map(|record| &record.session);
            above.is_none_or(|above| above.state != SessionState::Running || above.turn_id != parent.turn.to_string())
        };
        let orphans = state.sessions.iter().filter(|((tenant, _), Record { session, .. })| {
            session.state != SessionState::Terminated
                && session.parent.as_ref().is_some_and(|parent| is_over(*tenant, parent))
        });
        Ok(orphans.map(|(key, _)| *key).take(limit as usize).collect())
    }

    async fn erasing(&self, limit: u32) -> Result<Vec<TenantId>, Error> {
        let tenants: BTreeSet<_> = self.lock().going.keys().map(|(tenant, _)| *tenant).collect();
        Ok(tenants.into_iter().take(limit as usize).collect())
    }

    async fn horizon(&self) -> Result<Horizon, Error> {
        Ok(Horizon { next: self.lock().changes + 1, open: Vec::new() })
    }

    async fn changed(&self, since: &Horizon, after: (u64, SessionId), limit: u32) -> Result<Vec<Changed>, Error> {
        let state = self.lock();
        let all = state.sessions.iter().map(|(&(tenant, session), record)| {
            let number = record.change_number;
            Changed { tenant, session, number }
        });
        let is_asked_for =
            |changed: &Changed| !since.shows(changed.number) && (changed.number, changed.session) > after;
        let mut changed: Vec<_> = all.filter(is_asked_for).collect();
        changed.sort_unstable_by_key(|changed| (changed.number, changed.session));
        changed.truncate(limit as usize);
        Ok(changed)
    }
}

impl Record {
    pub(super) fn is_due(&self, as_of: &Timestamp) -> bool {
        self.due_time.as_ref().is_some_and(|due_time| time::micros(due_time) <= time::micros(as_of))
    }
}

impl State {
    /// Has whoever follows the session told of it.
    pub(super) fn changed(&mut self, tenant: TenantId, session: SessionId) -> Result<&mut Record, Error> {
        self.changes += 1;
        let change_number = self.changes;
        let record = self.record(tenant, session)?;
        record.change_number = change_number;
        Ok(record)
    }

    /// Draws the conclusions from a session's new state.
    pub(super) fn turned(&mut self, tenant: TenantId, session: SessionId) -> Result<(), Error> {
        let record = self.changed(tenant, session)?;
        record.due_time = projection::due_time(&record.session);
        Ok(())
    }
}
