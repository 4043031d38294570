//! Where sessions live, with a hook.

use async_trait::async_trait;
use croft_front::Error;
use croft_front::events::log::IdempotencyKey;
use croft_front::session::Session;
use croft_front::session::store::{Filter, Inserted, NewSession, Page, SessionStore};
use croft_proto::id::{SessionId, TenantId};

use super::{Call, Hooked};

#[async_trait]
impl SessionStore for Hooked<dyn SessionStore> {
    async fn insert(&self, new: NewSession) -> Result<Inserted, Error> {
        self.pass(Call::Insert(&new), self.behind.insert(new.clone())).await
    }

    async fn get(&self, tenant: TenantId, id: SessionId) -> Result<Option<Session>, Error> {
        self.pass(Call::Get, self.behind.get(tenant, id)).await
    }

    async fn list(
        &self,
        tenant: TenantId,
        filter: &Filter,
        after: Option<SessionId>,
        limit: u32,
    ) -> Result<Page, Error> {
        self.pass(Call::List, self.behind.list(tenant, filter, after, limit)).await
    }

    async fn asking(&self, tenant: TenantId, after: Option<SessionId>, limit: u32) -> Result<Page, Error> {
        self.pass(Call::List, self.behind.asking(tenant, after, limit)).await
    }

    async fn count_open(&self, tenant: TenantId) -> Result<u32, Error> {
        self.pass(Call::CountOpen, self.behind.count_open(tenant)).await
    }

    async fn child(&self, tenant: TenantId, parent: SessionId, tool_call_id: &str) -> Result<Option<Session>, Error> {
        self.pass(Call::Child, self.behind.child(tenant, parent, tool_call_id)).await
    }

    async fn find_created(&self, tenant: TenantId, key: &IdempotencyKey) -> Result<Option<Session>, Error> {
        self.pass(Call::FindCreated, self.behind.find_created(tenant, key)).await
    }
}
