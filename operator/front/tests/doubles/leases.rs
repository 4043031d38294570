//! Leases, with a hook.

use std::time::Duration;

use async_trait::async_trait;
use croft_front::Error;
use croft_front::lease::{Abandoned, LeaseStore};
use croft_proto::id::{SessionId, TenantId};

use super::{Call, Hooked};

#[async_trait]
impl LeaseStore for Hooked<dyn LeaseStore> {
    async fn acquire(
        &self,
        tenant: TenantId,
        session: SessionId,
        holder: &str,
        ttl: Duration,
    ) -> Result<Option<u64>, Error> {
        self.pass(Call::Acquire, self.behind.acquire(tenant, session, holder, ttl)).await
    }

    async fn renew_all(
        &self,
        tenant: TenantId,
        leases: &[(SessionId, u64)],
        ttl: Duration,
    ) -> Result<Vec<SessionId>, Error> {
        self.pass(Call::RenewAll(leases), self.behind.renew_all(tenant, leases, ttl)).await
    }

    async fn release(&self, tenant: TenantId, session: SessionId, epoch: u64) -> Result<(), Error> {
        self.pass(Call::Release, self.behind.release(tenant, session, epoch)).await
    }

    async fn abandon(&self, tenant: TenantId, session: SessionId, epoch: u64) -> Result<(), Error> {
        self.pass(Call::Abandon, self.behind.abandon(tenant, session, epoch)).await
    }

    async fn abandoned(&self, limit: u32) -> Result<Vec<Abandoned>, Error> {
        self.pass(Call::Abandoned, self.behind.abandoned(limit)).await
    }
}
