//! API keys in memory.

use async_trait::async_trait;

use super::Memory;
use crate::error::Error;
use crate::identity::api_key::{KeyStore, StoredKey};

#[async_trait]
impl KeyStore for Memory {
    async fn insert(&self, key: &StoredKey) -> Result<(), Error> {
        let mut state = self.lock();
        if !state.tenants.contains_key(&key.tenant) {
            return Err(Error::invalid("tenant", "does not exist"));
        }
        if state.api_keys.contains_key(&key.prefix) {
            return Err(Error::invalid("prefix", "is taken"));
        }
        state.api_keys.insert(key.prefix.clone(), key.clone());
        Ok(())
    }

    async fn find(&self, prefix: &str) -> Result<Option<StoredKey>, Error> {
        Ok(self.lock().api_keys.get(prefix).cloned())
    }
}
