//! What each tenant may have of something that all share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use croft_proto::id::TenantId;
use tokio::sync::Semaphore;

/// A share for each tenant. Clones share them. A tenant that has nothing of it, and waits for nothing, takes no room.
#[derive(Debug, Clone)]
pub(crate) struct Shares {
    each: usize,
    of_tenants: Arc<Mutex<HashMap<TenantId, Weak<Semaphore>>>>,
}

impl Shares {
    /// So much for each tenant.
    pub(crate) fn of(each: usize) -> Self {
        Self { each, of_tenants: Arc::default() }
    }

    /// What is left of the tenant's share.
    pub(crate) fn of_tenant(&self, tenant: TenantId) -> Arc<Semaphore> {
        let mut of_tenants = self.of_tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = of_tenants.get(&tenant).and_then(Weak::upgrade) {
            return there;
        }
        of_tenants.retain(|_, there| there.strong_count() > 0);
        let made = Arc::new(Semaphore::new(self.each));
        of_tenants.insert(tenant, Arc::downgrade(&made));
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_lasts_for_as_long_as_anything_of_it_is_out() {
        let (shares, one, other) = (Shares::of(2), TenantId::generate(), TenantId::generate());
        let permit = shares.of_tenant(one).try_acquire_owned().unwrap();
        assert_eq!(shares.of_tenant(one).available_permits(), 1);
        assert_eq!(shares.of_tenant(other).available_permits(), 2);
        drop(permit);
        assert_eq!(shares.of_tenant(one).available_permits(), 2);
        assert_eq!(
            shares.of_tenants.lock().unwrap().len(),
            1,
            "whoever comes next clears away what is left of the others"
        );
    }
}
