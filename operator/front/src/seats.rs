//! How many streams of events a tenant has open at this replica: none may take all the room that others need too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use croft_proto::id::TenantId;

use crate::error::Error;

/// The seats of every tenant. Clones share them. A tenant without an open stream has no entry.
#[derive(Debug, Clone)]
pub struct Seats {
    max: usize,
    taken: Arc<Mutex<HashMap<TenantId, usize>>>,
}

impl Seats {
    /// So many for each tenant: a stream by gRPC or SSE takes one, and so does a WebSocket and each of its subscriptions.
    pub fn new(max: usize) -> Self {
        Self { max, taken: Arc::default() }
    }

    /// A seat, until it is dropped. At the bound it is refused with [`Error::StreamLimit`].
    pub fn take(&self, tenant: TenantId) -> Result<Seat, Error> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let of_tenant = taken.entry(tenant).or_default();
        if *of_tenant >= self.max {
            return Err(Error::StreamLimit { max: self.max });
        }
        *of_tenant += 1;
        Ok(Seat { seats: self.clone(), tenant })
    }

    /// How many the tenant has taken.
    pub fn of(&self, tenant: TenantId) -> usize {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).get(&tenant).copied().unwrap_or_default()
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
        if let Some(of_tenant) = taken.get_mut(&self.tenant) {
            *of_tenant -= 1;
            if *of_tenant == 0 {
                taken.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_fills_its_own_seats_alone_and_leaves_none_behind() {
        let (seats, heron, plover) = (Seats::new(2), TenantId::generate(), TenantId::generate());
        let first = seats.take(heron).unwrap();
        let second = seats.take(heron).unwrap();
        assert!(matches!(seats.take(heron), Err(Error::StreamLimit { max: 2 })));
        let other = seats.take(plover).unwrap();
        drop(first);
        let again = seats.clone().take(heron).unwrap();
        drop((second, other, again));
        assert!(seats.taken.lock().unwrap().is_empty());
    }
}
