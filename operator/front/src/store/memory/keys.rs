//! API keys in memory.

use async_trait::async_trait;
use croft_proto::Timestamp;
use croft_proto::id::TenantId;

use super::Memory;
use crate::error::Error;
use crate::identity::api_key::{KeyRecord, KeyStore, StoredKey};
use crate::store::time::{micros, stored, timestamp};

/// A key, and what was done with it.
pub(super) struct Kept {
    pub(super) key: StoredKey,
    record: KeyRecord,
}

impl Kept {
    fn is_good(&self) -> bool {
        let is_ahead = |time: &Timestamp| micros(time) > micros(&now());
        self.record.revoke_time.is_none() && self.record.expire_time.as_ref().is_none_or(is_ahead)
    }
}

#[async_trait]
impl KeyStore for Memory {
    async fn insert(&self, key: &StoredKey, expire_time: Option<Timestamp>) -> Result<(), Error> {
        let mut state = self.lock();
        if !state.tenants.contains_key(&key.tenant) || state.removing.contains(&key.tenant) {
            return Err(Error::invalid("tenant", "does not exist, or is being removed"));
        }
        if state.api_keys.contains_key(&key.prefix) {
            return Err(Error::invalid("prefix", "is taken"));
        }
        let record = KeyRecord {
            prefix: key.prefix.clone(),
            role: key.role,
            create_time: now(),
            expire_time: expire_time.as_ref().map(stored),
            revoke_time: None,
        };
        state.api_keys.insert(key.prefix.clone(), Kept { key: key.clone(), record });
        Ok(())
    }

    async fn list(&self, tenant: TenantId) -> Result<Vec<KeyRecord>, Error> {
        let state = self.lock();
        let ours = state.api_keys.values().filter(|kept| kept.key.tenant == tenant);
        let mut records: Vec<_> = ours.map(|kept| kept.record.clone()).collect();
        records.sort_by_key(|record| std::cmp::Reverse(micros(&record.create_time)));
        Ok(records)
    }

    async fn revoke(&self, tenant: TenantId, prefix: &str) -> Result<bool, Error> {
        let mut state = self.lock();
        let kept = state.api_keys.get_mut(prefix).filter(|kept| kept.key.tenant == tenant);
        Ok(kept.map(|kept| kept.record.revoke_time.get_or_insert_with(now)).is_some())
    }

    async fn find(&self, prefix: &str) -> Result<Option<StoredKey>, Error> {
        Ok(self.lock().api_keys.get(prefix).filter(|kept| kept.is_good()).map(|kept| kept.key.clone()))
    }
}

fn now() -> Timestamp {
    timestamp(jiff::Timestamp::now().as_microsecond())
}
