//! Who did what. Append-only, with a hash chain for each tenant.

pub mod writer;

use async_trait::async_trait;
use croft_proto::id::TenantId;
use croft_proto::v1::{AuditRecord, VerifyAuditLogResponse};

use crate::error::Error;

/// An action that is about to be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    pub tenant: TenantId,
    pub actor: String,
    /// For example `session.create`.
    pub action: &'static str,
    /// For example `sessions/0198…`.
    pub resource: String,
    /// `ok`, or the reason of the refusal.
    pub outcome: &'static str,
}

/// The audit log.
#[async_trait]
pub trait AuditStore: Send + Sync {
    /// Records actions in this order, all or none.
    async fn append(&self, actions: Vec<Action>) -> Result<(), Error>;

    /// Records with numbers above `after_number`, oldest first.
    async fn list(&self, tenant: TenantId, after_number: u64, limit: u32) -> Result<Vec<AuditRecord>, Error>;

    /// Recomputes the tenant's chain.
    async fn verify(&self, tenant: TenantId) -> Result<VerifyAuditLogResponse, Error>;
}
