//! How much of logs is held for those who read them, in all and by each tenant.
//!
//! A page has its room before it is read, and until its last event is taken. It can always be read again: while somebody waits for
//! room, pages that have lain for long are taken away from readers who are slow, or don't read at all. They read on from the log.
//! So pages are read in tasks of their own: a reader that stops in the middle of waiting for room would keep what it is given.

use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::SessionEvent;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use crate::error::Error;
use crate::events::log::{self, EventLog, PAGE_BYTES};
use crate::shares::Shares;

/// Of all pages, and of those of one tenant's sessions. At the bound a reader waits.
pub(super) const HELD_BYTES_MAX: usize = 64 * 1024 * 1024;
pub(super) const TENANT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// What room is counted in.
const UNIT_BYTES: usize = 1024;
/// That a page takes until it is known how large it is.
const UNREAD_BYTES: usize = 2 * PAGE_BYTES as usize;
/// What an event takes beside its bytes, roughly.
const EVENT_BYTES: usize = 512;
/// A page that has lain for so long makes room for others.
pub(super) const LIES_MAX: Duration = Duration::from_secs(5);
/// How often one who waits looks for such pages.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Who has waited for room for so long is told to come again.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Of one replica. Clones share it.
#[derive(Clone)]
pub(crate) struct Room {
    all: Arc<Semaphore>,
    shares: Shares,
    pages: Arc<Mutex<HashMap<u64, Weak<Page>>>>,
    next_id: Arc<AtomicU64>,
}

/// Of the tenant's, and of all tenants'.
type Place = [OwnedSemaphorePermit; 2];

/// Events that were read together, in order.
pub(super) struct Page {
    room: Room,
    id: u64,
    read_at: Instant,
    /// How many there were, and the number of the last one.
    pub(super) len: usize,
    pub(super) last_seq: u64,
    /// Nothing stood behind it.
    pub(super) is_last: bool,
    left: Mutex<Left>,
}

/// What has not been taken of a page.
enum Left {
    Here {
        events: VecDeque<SessionEvent>,
        _place: Option<Place>,
    },
    /// To make room.
    TakenAway,
}

/// What [`Page::take`] found.
pub(super) enum Taken {
    /// The next event, and how many stand behind it.
    Event(Box<SessionEvent>, usize),
    /// It was the last.
    Empty,
    /// They are to be read again.
    Away,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            all: Arc::new(Semaphore::new(HELD_BYTES_MAX / UNIT_BYTES)),
            shares: Shares::of(TENANT_BYTES_MAX / UNIT_BYTES),
            pages: Arc::default(),
            next_id: Arc::default(),
        }
    }
}

impl Room {
    /// A page of the log: see [`EventLog::read`]. Fails with [`Error::Unavailable`] when there is no room for it for long.
    pub(super) async fn read(
        &self,
        log: &dyn EventLog,
        tenant: TenantId,
        session: SessionId,
        after_seq: u64,
        limit: u32,
    ) -> Result<Arc<Page>, Error> {
        let mut bytes = UNREAD_BYTES;
        loop {
            let mut place = self.place(tenant, bytes).await?;
            let events = log.read(tenant, session, after_seq, limit).await?;
            let told = log::bytes(&events);
            let taken = told + events.len() * EVENT_BYTES;
            if self.fit(tenant, &mut place, taken) {
                let is_last = log::is_last(events.len(), told, limit);
                return Ok(self.keep(events, Some(place), after_seq, is_last));
            }
            // One event may be larger than a page. To wait for more with what there is in hand would keep it from others who do.
            bytes = taken;
        }
    }

    /// An empty page, where nothing stands behind this number: that takes no room.
    pub(super) async fn look(
        &self,
        log: &dyn EventLog,
        tenant: TenantId,
        session: SessionId,
        after_seq: u64,
    ) -> Result<Option<Arc<Page>>, Error> {
        let events = log.read(tenant, session, after_seq, 1).await?;
        Ok(events.is_empty().then(|| self.keep(events, None, after_seq, true)))
    }

    /// How many bytes are held.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        HELD_BYTES_MAX - self.all.available_permits() * UNIT_BYTES
    }

    fn keep(&self, events: Vec<SessionEvent>, place: Option<Place>, after_seq: u64, is_last: bool) -> Arc<Page> {
        let page = Arc::new(Page {
            room: self.clone(),
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            read_at: Instant::now(),
            len: events.len(),
            last_seq: events.last().map_or(after_seq, |event| event.seq),
            is_last,
            left: Mutex::new(Left::Here { _place: place.filter(|_| !events.is_empty()), events: events.into() }),
        });
        self.pages().insert(page.id, Arc::downgrade(&page));
        page
    }

    /// Room for so many bytes.
    async fn place(&self, tenant: TenantId, bytes: usize) -> Result<Place, Error> {
        let units = units(bytes);
        let share = self.shares.of_tenant(tenant);
        let taken = async {
            let own = share.acquire_many_owned(units).await.map_err(Error::internal)?;
            let all = Arc::clone(&self.all).acquire_many_owned(units).await.map_err(Error::internal)?;
            Ok([own, all])
        };
        let mut taken = pin!(taken);
        let waited = async {
            loop {
                match timeout(LOOK_EVERY, &mut taken).await {
                    Ok(place) => return place,
                    Err(_) => self.take_away(),
                }
            }
        };
        let full = |_| Error::unavailable("the room for replays", anyhow::anyhow!("{TENANT_BYTES_MAX} bytes are held"));
        timeout(WAIT_MAX, waited).await.map_err(full)?
    }

    /// Gives back what is not needed, or takes what is, if it is free. False if it is not.
    fn fit(&self, tenant: TenantId, place: &mut Place, bytes: usize) -> bool {
        let units = units(bytes) as usize;
        let [own, all] = place;
        let held = own.num_permits();
        if let Some(surplus) = held.checked_sub(units) {
            drop((own.split(surplus), all.split(surplus)));
            return true;
        }
        let more = u32::try_from(units - held).unwrap_or(u32::MAX);
        let Ok(own_more) = self.shares.of_tenant(tenant).try_acquire_many_owned(more) else { return false };
        let Ok(all_more) = Arc::clone(&self.all).try_acquire_many_owned(more) else { return false };
        own.merge(own_more);
        all.merge(all_more);
        true
    }

    /// The pages that have lain for too long.
    fn take_away(&self) {
        let pages: Vec<_> = self.pages().values().filter_map(Weak::upgrade).collect();
        for page in pages {
            if page.read_at.elapsed() >= LIES_MAX {
                *page.left() = Left::TakenAway;
            }
        }
    }

    fn pages(&self) -> MutexGuard<'_, HashMap<u64, Weak<Page>>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Page {
    pub(super) fn take(&self) -> Taken {
        match &mut *self.left() {
            Left::Here { events, .. } => match events.pop_front() {
                Some(event) => Taken::Event(Box::new(event), events.len()),
                None => Taken::Empty,
            },
            Left::TakenAway => Taken::Away,
        }
    }

    /// Its first event, which is not to be told, if that has this number.
    pub(super) fn known(&self, seq: u64) -> Option<SessionEvent> {
        match &mut *self.left() {
            Left::Here { events, .. } if events.front().is_some_and(|event| event.seq == seq) => events.pop_front(),
            Left::Here { .. } | Left::TakenAway => None,
        }
    }

    pub(super) fn is_away(&self) -> bool {
        matches!(*self.left(), Left::TakenAway)
    }

    fn left(&self) -> MutexGuard<'_, Left> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.room.pages().remove(&self.id);
    }
}

/// What is larger than a tenant's share takes all of that.
fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.min(TENANT_BYTES_MAX).div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}
