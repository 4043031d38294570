//! What a removal needs of a store.

use std::time::Duration;

use async_trait::async_trait;
use croft_proto::id::TenantId;

use crate::error::Error;

/// What a store can take away. Refused for a tenant whose removal has not begun, or that has open sessions: what a mistake
/// could delete is nobody's any more.
#[async_trait]
pub trait RemovalStore: Send + Sync {
    /// From when this returns, no session of the tenant can be opened, at whatever front. The tenant need not be known. False
    /// when it was so before.
    async fn begin(&self, tenant: TenantId, name: &str) -> Result<bool, Error>;

    /// How many sessions ended so lately, by the store's clock, in the midst of a turn: what its calls used may be on its way still. When one
    /// ended is by the clock of the front that ended it.
    async fn count_cut_short(&self, tenant: TenantId, within: Duration) -> Result<u64, Error>;

    /// Deletes the tenant's API keys, and tells how many.
    async fn erase_credentials(&self, tenant: TenantId) -> Result<u64, Error>;

    /// Deletes at most `rows_max` rows: budgets, alerts whether they were posted or not, and sessions, with their events, checkpoints,
    /// leases and idempotency keys. Tells how many; 0 when none are left. Usage and audit stay.
    async fn erase_rows(&self, tenant: TenantId, rows_max: u32) -> Result<u64, Error>;

    /// How many rows [`Self::erase_rows`] has to delete still, counted up to `rows_max`. Those of sessions that nobody sees any more,
    /// as they are being erased, are among them.
    async fn count_rows(&self, tenant: TenantId, rows_max: u32) -> Result<u64, Error>;
}
