//! The mirror of tenants in memory.

use async_trait::async_trait;
use croft_proto::id::TenantId;

use super::Memory;
use crate::error::Error;
use crate::tenants::TenantMirror;

#[async_trait]
impl TenantMirror for Memory {
    async fn upsert(&self, tenant: TenantId, name: &str) -> Result<(), Error> {
        self.lock().tenants.insert(tenant, name.to_owned());
        Ok(())
    }
}
