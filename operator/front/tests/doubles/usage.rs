//! The ledger of usage, with a hook.

use async_trait::async_trait;
use croft_front::Error;
use croft_front::events::log::NewEvent;
use croft_front::usage::{Selection, UsageStore};
use croft_proto::Timestamp;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::{UsageDimension, UsageEvent, UsageSummary};

use super::{Call, Hooked};

#[async_trait]
impl UsageStore for Hooked<dyn UsageStore> {
    async fn list(
        &self,
        tenant: TenantId,
        session: Option<SessionId>,
        before: Option<Timestamp>,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<UsageEvent>, Error> {
        self.pass(Call::ListUsage, self.behind.list(tenant, session, before, after, limit)).await
    }

    async fn summarize(
        &self,
        tenant: TenantId,
        selection: Selection<'_>,
        group_by: &[UsageDimension],
    ) -> Result<Vec<UsageSummary>, Error> {
        self.pass(Call::Summarize, self.behind.summarize(tenant, selection, group_by)).await
    }

    async fn add_behind_end(&self, tenant: TenantId, session: SessionId, events: &[NewEvent]) -> Result<u64, Error> {
        self.pass(Call::AddBehindEnd, self.behind.add_behind_end(tenant, session, events)).await
    }
}
