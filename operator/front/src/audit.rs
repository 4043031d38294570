//! Who did what. Append-only, with a hash chain for each tenant.

pub mod spool;
pub mod writer;

use std::borrow::Cow;

use async_trait::async_trait;
use croft_proto::id::TenantId;
use croft_proto::v1::{AuditRecord, VerifyAuditLogResponse};
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// An action that is about to be recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    #[serde(with = "tenant_id")]
    pub tenant: TenantId,
    pub actor: String,
    /// For example `session.create`.
    pub action: Cow<'static, str>,
    /// For example `sessions/0198…`.
    pub resource: String,
    /// `ok`, or the reason of the refusal.
    pub outcome: Cow<'static, str>,
}

/// A tenant's id as text.
mod tenant_id {
    use croft_proto::id::TenantId;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(tenant: &TenantId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(tenant)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TenantId, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
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
