//! API keys: `ck_<prefix>_<secret>`. The prefix is public and finds the row; of the secret only the SHA-256 is kept.

use async_trait::async_trait;
use croft_proto::id::TenantId;

use crate::error::Error;

/// An API key as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredKey {
    /// 8 hex digits.
    pub prefix: String,
    pub tenant: TenantId,
    pub tenant_name: String,
    /// SHA-256 of the secret.
    pub secret_hash: [u8; 32],
}

/// Where API keys live.
#[async_trait]
pub trait KeyStore: Send + Sync {
    /// Records a key. Fails with [`Error::Invalid`] if its tenant is unknown.
    async fn insert(&self, key: &StoredKey) -> Result<(), Error>;

    /// The key of this prefix, if there is one that is neither revoked nor expired.
    async fn find(&self, prefix: &str) -> Result<Option<StoredKey>, Error>;
}
