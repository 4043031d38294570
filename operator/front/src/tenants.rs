//! The tenants that this front knows of: what the operator's RouteService told last.

use async_trait::async_trait;
use croft_proto::id::TenantId;

use crate::error::Error;

/// The rows that mirror tenants in the database, for foreign keys and for `api-key create`.
#[async_trait]
pub trait TenantMirror: Send + Sync {
    /// Records that a tenant exists under this name. Safe to repeat.
    async fn upsert(&self, tenant: TenantId, name: &str) -> Result<(), Error>;
}
