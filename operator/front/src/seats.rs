//! How many streams of events are open at this replica, of a tenant and in all: no tenant may take all the room that others need too, and
//! no number of tenants more than there is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use croft_proto::id::TenantId;

use crate::error::Error;

/// When another try may find a seat, where the replica has none. At another replica it may at once.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// The seats of every tenant. Clones share them.
#[derive(Debug, Clone)]
pub struct Seats {
    of_tenant_max: usize,
    max: usize,
    taken: Arc<Mutex<Taken>>,
}

/// A tenant without an open stream has no entry.
#[derive(Debug, Default)]
struct Taken {
    by_tenant: HashMap<TenantId, usize>,
    in_all: usize,
}

impl Seats {
    /// So many for each tenant, and `max` in all: a stream by gRPC or SSE takes one, and so does a WebSocket and each of its
    /// subscriptions.
    pub fn new(of_tenant_max: usize, max: usize) -> Self {
        Self { of_tenant_max, max, taken: Arc::default() }
    }

    /// A seat, until it is dropped. At the tenant's bound it is refused with [`Error::StreamLimit`], at the replica's with
    /// [`Error::Unavailable`].
    pub fn take(&self, tenant: TenantId) -> Result<Seat, Error> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let of_tenant = taken.by_tenant.get(&tenant).copied().unwrap_or_default();
        if of_tenant >= self.of_tenant_max {
            return Err(Error::StreamLimit { max: self.of_tenant_max });
        }
        if taken.in_all >= self.max {
            return Err(Error::Unavailable { part: "a free stream", retry_after: RETRY_AFTER, source: None });
        }
        taken.by_tenant.insert(tenant, of_tenant + 1);
        taken.in_all += 1;
        Ok(Seat { seats: self.clone(), tenant })
    }

    /// How many the tenant has taken.
    pub fn of(&self, tenant: TenantId) -> usize {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.by_tenant.get(&tenant).copied().unwrap_or_default()
    }
}

/// One stream's seat.
#[derive(Debug)]
pub struct Seat {
    seats: Seats,
    tenant: TenantId,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.in_all -= 1;
        if let Some(of_tenant) = taken.by_tenant.get_mut(&self.tenant) {
            *of_tenant -= 1;
            if *of_tenant == 0 {
                taken.by_tenant.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_fills_its_own_seats_alone_and_leaves_none_behind() {
        let (seats, heron, plover) = (Seats::new(2, 10), TenantId::generate(), TenantId::generate());
        let first = seats.take(heron).unwrap();
        let second = seats.take(heron).unwrap();
        assert!(matches!(seats.take(heron), Err(Error::StreamLimit { max: 2 })));
        let other = seats.take(plover).unwrap();
        drop(first);
        let again = seats.clone().take(heron).unwrap();
        drop((second, other, again));
        let taken = seats.taken.lock().unwrap();
        assert!(taken.by_tenant.is_empty() && taken.in_all == 0);
    }

    #[test]
    fn all_tenants_together_have_no_more_than_there_are() {
        let (seats, heron, plover) = (Seats::new(2, 3), TenantId::generate(), TenantId::generate());
        let taken = [seats.take(heron).unwrap(), seats.take(heron).unwrap(), seats.take(plover).unwrap()];
        assert!(matches!(seats.take(plover), Err(Error::Unavailable { .. })));
        assert!(matches!(seats.take(TenantId::generate()), Err(Error::Unavailable { .. })));
        assert!(matches!(seats.take(heron), Err(Error::StreamLimit { .. })), "its own bound comes first");
        drop(taken);
        seats.take(plover).unwrap();
    }
}
