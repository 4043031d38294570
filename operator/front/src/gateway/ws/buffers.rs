//! What open sockets keep of the room that their largest frame took: the library gives none of it back. Beyond a bound those go
//! that needed theirs longest ago; their clients connect again.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use croft_proto::id::TenantId;
use tokio_util::sync::CancellationToken;

/// Of all sockets, and of one tenant's.
const KEPT_BYTES_MAX: usize = 64 * 1024 * 1024;
const TENANT_KEPT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Frames of fewer bytes are not reckoned.
const SMALL_BYTES: usize = 16 * 1024;

/// Of a replica. Clones share them.
#[derive(Clone)]
pub(in crate::gateway) struct Buffers {
    state: Arc<Mutex<State>>,
}

struct State {
    max: usize,
    of_tenant_max: usize,
    next_place: u64,
    /// In the order in which they were needed.
    kept: BTreeMap<u64, Kept>,
    all: usize,
    of_tenants: HashMap<TenantId, usize>,
}

struct Kept {
    tenant: TenantId,
    bytes: usize,
    goes: CancellationToken,
}

/// A socket's, until it is dropped.
pub(super) struct Buffer {
    buffers: Buffers,
    tenant: TenantId,
    goes: CancellationToken,
    place: Mutex<Option<u64>>,
}

impl Default for Buffers {
    fn default() -> Self {
        Self::of(KEPT_BYTES_MAX, TENANT_KEPT_BYTES_MAX)
    }
}

impl Buffers {
    fn of(max: usize, of_tenant_max: usize) -> Self {
        let (kept, of_tenants) = (BTreeMap::new(), HashMap::new());
        Self { state: Arc::new(Mutex::new(State { max, of_tenant_max, next_place: 0, kept, all: 0, of_tenants })) }
    }

    /// Of a socket of the tenant's that has read nothing yet.
    pub(super) fn buffer(&self, tenant: TenantId) -> Buffer {
        Buffer { buffers: self.clone(), tenant, goes: CancellationToken::new(), place: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buffer {
    /// A frame of so many bytes was read.
    pub(super) fn took(&self, bytes: usize) {
        if bytes <= SMALL_BYTES {
            return;
        }
        let (mut place, mut state) = (self.lock(), self.buffers.lock());
        let before = place.and_then(|place| state.remove(place)).map_or(0, |kept| kept.bytes);
        let kept = Kept { tenant: self.tenant, bytes: bytes.max(before), goes: self.goes.clone() };
        *place = Some(state.add(kept));
        state.make_room(self.tenant);
    }

    /// Cancelled once others need the room.
    pub(super) fn goes(&self) -> CancellationToken {
        self.goes.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<u64>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let place = *self.lock();
        if let Some(place) = place {
            self.buffers.lock().remove(place);
        }
    }
}

impl State {
    fn add(&mut self, kept: Kept) -> u64 {
        let place = self.next_place;
        self.next_place += 1;
        self.all += kept.bytes;
        *self.of_tenants.entry(kept.tenant).or_default() += kept.bytes;
        self.kept.insert(place, kept);
        place
    }

    fn remove(&mut self, place: u64) -> Option<Kept> {
        let kept = self.kept.remove(&place)?;
        self.all -= kept.bytes;
        if let Some(of_tenant) = self.of_tenants.get_mut(&kept.tenant) {
            *of_tenant -= kept.bytes;
            if *of_tenant == 0 {
                self.of_tenants.remove(&kept.tenant);
            }
        }
        Some(kept)
    }

    /// Has the oldest go, but for the newest: the tenant's own where those are too many, else anybody's.
    fn make_room(&mut self, tenant: TenantId) {
        while self.kept.len() > 1 {
            let is_own = self.of_tenants.get(&tenant).is_some_and(|bytes| *bytes > self.of_tenant_max);
            if !is_own && self.all <= self.max {
                return;
            }
            let newest = self.next_place - 1;
            let mut oldest = self.kept.iter().filter(|(_, kept)| !is_own || kept.tenant == tenant);
            let Some(place) = oldest.next().map(|(place, _)| *place).filter(|place| *place != newest) else { return };
            if let Some(kept) = self.remove(place) {
                kept.goes.cancel();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: usize = 100 * 1024;

    fn told(buffers: &[Buffer]) -> Vec<bool> {
        buffers.iter().map(|buffer| buffer.goes.is_cancelled()).collect()
    }

    #[test]
    fn who_needed_its_room_longest_ago_goes_first_and_only_its_own_tenants() {
        let (buffers, one, other) = (Buffers::of(6 * LARGE, 2 * LARGE), TenantId::generate(), TenantId::generate());
        let foreign = buffers.buffer(other);
        foreign.took(LARGE);
        let own: Vec<_> = (0..3).map(|_| buffers.buffer(one)).collect();
        own[0].took(LARGE);
        own[1].took(LARGE);
        own[0].took(LARGE / 2);
        own[2].took(SMALL_BYTES);
        assert_eq!(told(&own), [false; 3], "a smaller frame needs no more, and a small one nothing");
        own[2].took(LARGE);
        assert_eq!(told(&own), [false, true, false]);
        assert!(!foreign.goes.is_cancelled());
        drop(own);
        drop(foreign);
        let state = buffers.lock();
        assert!(state.kept.is_empty() && state.of_tenants.is_empty() && state.all == 0);
    }

    #[test]
    fn who_comes_finds_room_whatever_others_keep() {
        let buffers = Buffers::of(3 * LARGE, 2 * LARGE);
        let all: Vec<_> = (0..4).map(|_| buffers.buffer(TenantId::generate())).collect();
        for buffer in &all {
            buffer.took(LARGE);
        }
        assert_eq!(told(&all), [true, false, false, false]);
        let alone = Buffers::of(LARGE / 2, LARGE / 2);
        let buffer = alone.buffer(TenantId::generate());
        buffer.took(LARGE);
        assert!(!buffer.goes.is_cancelled());
    }
}
