//! The event log in Postgres, for many appends at a time.

use std::sync::Arc;

use async_trait::async_trait;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::SessionEvent;
use croft_serve::Tasks;

use super::Postgres;
use super::append::Prepared;
use super::groups::{Groups, Job};
use super::turns::Stored;
use crate::error::Error;
use crate::events::log::{Append, Appended, EventLog, IdempotencyKey, StoredCheckpoint};

/// Appends that come at the same time share transactions.
pub(in crate::store) struct GroupedLog {
    postgres: Arc<Postgres>,
    tasks: Tasks,
    appends: Groups<Prepared>,
}

#[async_trait]
impl Job for Prepared {
    type Outcome = Stored;

    fn session(&self) -> SessionId {
        self.append.session
    }

    fn events(&self) -> usize {
        self.append.events.len()
    }

    fn bytes(&self) -> usize {
        self.columns.bytes() + self.append.checkpoint.as_ref().map_or(0, prost::Message::encoded_len)
    }

    async fn store(postgres: &Postgres, tenant: TenantId, group: Vec<Self>) -> Vec<Result<Stored, Error>> {
        postgres.append_group(tenant, group).await
    }
}

impl GroupedLog {
    pub(in crate::store) fn new(postgres: Arc<Postgres>, tasks: &Tasks) -> Self {
        Self { appends: Groups::new(Arc::clone(&postgres), tasks), tasks: tasks.clone(), postgres }
    }

    pub(super) async fn store(&self, prepared: Prepared) -> Result<Stored, Error> {
        if prepared.stands_alone() {
            // In a task of its own: a caller that goes away while the transaction begins would leave the session locked.
            let postgres = Arc::clone(&self.postgres);
            let storing = self.tasks.spawn("store-one", async move { postgres.append_alone(prepared).await });
            let lost = |_| Err(Error::unavailable("postgres", anyhow::anyhow!("what stores an append has failed")));
            return storing.await.unwrap_or_else(lost);
        }
        self.appends.store(prepared.append.tenant, prepared).await
    }
}

#[async_trait]
impl EventLog for GroupedLog {
    async fn append(&self, append: Append) -> Result<Appended, Error> {
        self.store(Prepared::of(append)?).await?.appended()
    }

    async fn find_sent(
        &self,
        tenant: TenantId,
        session: SessionId,
        key: &IdempotencyKey,
    ) -> Result<Option<u64>, Error> {
        self.postgres.find_sent(tenant, session, key).await
    }

    async fn read(
        &self,
        tenant: TenantId,
        session: SessionId,
        after_seq: u64,
        limit: u32,
    ) -> Result<Vec<SessionEvent>, Error> {
        self.postgres.read(tenant, session, after_seq, limit).await
    }

    async fn waiting(&self, tenant: TenantId, session: SessionId, max: u32) -> Result<u32, Error> {
        self.postgres.waiting(tenant, session, max).await
    }

    async fn checkpoint(&self, tenant: TenantId, session: SessionId) -> Result<Option<StoredCheckpoint>, Error> {
        self.postgres.checkpoint(tenant, session).await
    }
}
