//! The log of events, with a hook.

use async_trait::async_trait;
use croft_front::Error;
use croft_front::events::log::{Append, Appended, EventLog, IdempotencyKey, StoredCheckpoint};
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::SessionEvent;

use super::{Call, Hooked};

#[async_trait]
impl EventLog for Hooked<dyn EventLog> {
    async fn append(&self, append: Append) -> Result<Appended, Error> {
        self.pass(Call::Append(&append), self.behind.append(append.clone())).await
    }

    async fn find_sent(&self, tenant: TenantId, id: SessionId, key: &IdempotencyKey) -> Result<Option<u64>, Error> {
        self.pass(Call::FindSent, self.behind.find_sent(tenant, id, key)).await
    }

    async fn read(&self, tenant: TenantId, id: SessionId, after: u64, limit: u32) -> Result<Vec<SessionEvent>, Error> {
        self.pass(Call::Read, self.behind.read(tenant, id, after, limit)).await
    }

    async fn waiting(&self, tenant: TenantId, id: SessionId, max: u32) -> Result<u32, Error> {
        self.pass(Call::Waiting, self.behind.waiting(tenant, id, max)).await
    }

    async fn checkpoint(&self, tenant: TenantId, id: SessionId) -> Result<Option<StoredCheckpoint>, Error> {
        self.pass(Call::Checkpoint, self.behind.checkpoint(tenant, id)).await
    }
}
