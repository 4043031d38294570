//! Whether a tenant has all its sessions, before a worker is asked for one more. The store has the last word: it counts under a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use croft_proto::id::TenantId;
use moka::future::Cache;

use super::store::SessionStore;
use crate::error::Error;

/// A count is used for so long, while it shows room.
const KNOWN_FOR: Duration = Duration::from_secs(1);
const TENANTS_MAX: u64 = 10_000;

/// How many sessions tenants have open, as they were counted last and with what this replica has opened since.
pub(crate) struct OpenSessions {
    counts: Cache<TenantId, Arc<AtomicU32>>,
}

impl Default for OpenSessions {
    fn default() -> Self {
        Self { counts: Cache::builder().time_to_live(KNOWN_FOR).max_capacity(TENANTS_MAX).build() }
    }
}

impl OpenSessions {
    /// Counts only where no count shows room: a tenant is told that it is full by what is so now.
    pub(super) async fn is_full(&self, store: &dyn SessionStore, tenant: TenantId, max: u32) -> Result<bool, Error> {
        if let Some(count) = self.counts.get(&tenant).await
            && count.load(Ordering::Relaxed) < max
        {
            return Ok(false);
        }
        let open = store.count_open(tenant).await?;
        self.counts.insert(tenant, Arc::new(AtomicU32::new(open))).await;
        Ok(open >= max)
    }

    pub(super) async fn opened(&self, tenant: TenantId) {
        if let Some(count) = self.counts.get(&tenant).await {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Stores;

    #[tokio::test]
    async fn a_count_that_shows_room_is_used_until_what_was_opened_fills_it() {
        let (open, stores, tenant) = (OpenSessions::default(), Stores::memory(), TenantId::generate());
        open.counts.insert(tenant, Arc::new(AtomicU32::new(1))).await;
        assert!(!open.is_full(&*stores.sessions, tenant, 2).await.unwrap());
        assert_eq!(open.counts.get(&tenant).await.unwrap().load(Ordering::Relaxed), 1, "nobody counted");

        open.opened(tenant).await;
        assert!(!open.is_full(&*stores.sessions, tenant, 2).await.unwrap(), "the store has none");
        assert_eq!(open.counts.get(&tenant).await.unwrap().load(Ordering::Relaxed), 0, "they were counted");
    }
}
