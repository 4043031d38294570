//! Leases in memory, by the clock of tokio.

use std::time::Duration;

use async_trait::async_trait;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::SessionState;
use tokio::time::Instant;

use super::Memory;
use crate::error::Error;
use crate::lease::{Abandoned, LeaseStore};

#[async_trait]
impl LeaseStore for Memory {
    async fn acquire(
        &self,
        tenant: TenantId,
        session: SessionId,
        _holder: &str,
        ttl: Duration,
    ) -> Result<Option<u64>, Error> {
        let mut state = self.lock();
        let record = state.record(tenant, session)?;
        if record.session.state == SessionState::Terminated {
            return Err(Error::SessionTerminated { session_id: session.to_string() });
        }
        let now = Instant::now();
        if !record.lease.is_left(now) {
            return Ok(None);
        }
        Ok(Some(record.lease.take(now + ttl)))
    }

    async fn renew_all(
        &self,
        tenant: TenantId,
        leases: &[(SessionId, u64)],
        ttl: Duration,
    ) -> Result<Vec<SessionId>, Error> {
        let mut state = self.lock();
        let mut lost = Vec::new();
        for (session, epoch) in leases {
            match state.record(tenant, *session).map(|record| &mut record.lease) {
                Ok(lease) if lease.is_held_under(*epoch) => lease.expiry = Some(Instant::now() + ttl),
                _ => lost.push(*session),
            }
        }
        Ok(lost)
    }

    async fn release(&self, tenant: TenantId, session: SessionId, epoch: u64) -> Result<(), Error> {
        let mut state = self.lock();
        if let Ok(record) = state.record(tenant, session)
            && record.lease.is_held_under(epoch)
        {
            if record.session.has_waiting_input() {
                record.lease.abandon();
            } else {
                record.lease.expiry = None;
            }
        }
        Ok(())
    }

    async fn abandon(&self, tenant: TenantId, session: SessionId, epoch: u64) -> Result<(), Error> {
        let mut state = self.lock();
        if let Ok(record) = state.record(tenant, session)
            && record.lease.is_held_under(epoch)
        {
            record.lease.abandon();
        }
        Ok(())
    }

    async fn abandoned(&self, limit: u32) -> Result<Vec<Abandoned>, Error> {
        let (state, now) = (self.lock(), Instant::now());
        let mut found: Vec<_> = state
            .sessions
            .iter()
            .filter_map(|(&(tenant, session), record)| {
                let expiry = record.lease.expiry.filter(|expiry| *expiry <= now)?;
                Some((expiry, Abandoned { tenant, session }))
            })
            .collect();
        found.sort_by_key(|(expiry, abandoned)| (*expiry, abandoned.tenant, abandoned.session));
        Ok(found.into_iter().map(|(_, abandoned)| abandoned).take(limit as usize).collect())
    }
}
