//! Who did what. Append-only, with a hash chain for each tenant.

pub mod journal;
pub mod lag;
pub mod spool;
pub mod writer;

use std::borrow::Cow;

use async_trait::async_trait;
use croft_proto::id::TenantId;
use croft_proto::v1::{AuditRecord, VerifyAuditLogResponse};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::Error;
use crate::plain::plain;

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
    /// When it was done, in microseconds since 1970. Without it, the writer takes the time at which it is told of the action.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub act_micros: Option<i64>,
}

impl Action {
    /// As it can be recorded whatever callers made up.
    #[must_use]
    pub fn plain(self) -> Self {
        Self { actor: plain(self.actor), resource: plain(self.resource), ..self }
    }
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

/// Where in a journal a batch of records begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub journal: Uuid,
    /// From 1.
    pub first: u64,
}

impl Place {
    /// The beginning of a journal that nobody knows.
    pub fn start() -> Self {
        Self { journal: Uuid::now_v7(), first: 1 }
    }

    /// That of the only record of its kind: it is stored once, whoever gives it and however often.
    pub fn once(whose: TenantId, action: &str) -> Self {
        Self { journal: Uuid::new_v5(&whose.0, action.as_bytes()), first: 1 }
    }

    /// The place behind so many records.
    #[must_use]
    pub fn behind(self, records: usize) -> Self {
        Self { first: self.first + records as u64, ..self }
    }
}

/// What an earlier verification came to: this many records, and the hash of the last of them. Kept outside of the database, it finds
/// out whoever owns the database and wrote a chain anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// From 1.
    pub number: u64,
    pub hash: [u8; 32],
}

/// The audit log.
#[async_trait]
pub trait AuditStore: Send + Sync {
    /// Records actions in this order, all or none, but for those that stand in a journal before what is stored of it already: a
    /// batch is stored once, however often it is given. The batches of a journal come in its order. [`Error::Invalid`] where one of them
    /// can't be stored, now or later.
    ///
    /// Tells up to which number the journal was stored before; 0 where it was not known.
    async fn append(&self, place: Place, actions: Vec<Action>) -> Result<u64, Error>;

    /// Records with numbers above `after_number`, oldest first.
    async fn list(&self, tenant: TenantId, after_number: u64, limit: u32) -> Result<Vec<AuditRecord>, Error>;

    /// Recomputes the tenant's chain, and looks whether it comes by what is known.
    async fn verify(&self, tenant: TenantId, known: Option<Known>) -> Result<VerifyAuditLogResponse, Error>;
}
