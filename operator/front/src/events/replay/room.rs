//! How much of logs is held for those who read them, in all and by each tenant.
//!
//! A page has its room before it is read, and until its last event is taken. It can always be read again: while somebody waits for
//! room, pages that have lain or been read for long are taken away from readers who are slow, or don't read at all. They read on from
//! the log.
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
/// And so does one that was read so long ago, though its reader takes one event after the other. Short enough for those who wait behind
/// others who do: three times as long is [`WAIT_MAX`]. Long enough that whoever is to read it again has taken most of it, at 50 KiB a second.
const READ_MAX: Duration = Duration::from_secs(10);
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
    tenant: TenantId,
    /// How many there were, and the number of the last one.
    pub(super) len: usize,
    pub(super) last_seq: u64,
    /// They are as large as this.
    pub(super) bytes: usize,
    /// Nothing stood behind it.
    pub(super) is_last: bool,
    left: Mutex<Left>,
}

/// What has not been taken of a page.
enum Left {
    Here {
        events: VecDeque<SessionEvent>,
        place: Option<Place>,
        read_at: Instant,
        /// When it was read, or read from last.
        since: Instant,
    },
    /// To make room.
    TakenAway,
}

/// Why a page makes room. Those that come first do so first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Lies {
    /// Nothing has been read from it since then.
    Unread(Instant),
    /// It was read then, and its reader is slow.
    Slow(Instant),
}

/// What [`Page::take`] and [`Page::known`] found.
pub(super) enum Taken {
    /// The next event, and how many stand behind it.
    Event(Box<SessionEvent>, usize),
    /// There is none.
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
                return Ok(self.keep(tenant, events, place, after_seq, is_last));
            }
            // One event may be larger than a page. To wait for more with what there is in hand would keep it from others who do.
            bytes = taken;
        }
    }

    /// How many bytes are held.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        HELD_BYTES_MAX - self.all.available_permits() * UNIT_BYTES
    }

    fn keep(
        &self,
        tenant: TenantId,
        events: Vec<SessionEvent>,
        place: Place,
        after_seq: u64,
        is_last: bool,
    ) -> Arc<Page> {
        let place = (!events.is_empty()).then_some(place);
        let now = Instant::now();
        let page = Arc::new(Page {
            room: self.clone(),
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            tenant,
            len: events.len(),
            bytes: log::bytes(&events),
            last_seq: events.last().map_or(after_seq, |event| event.seq),
            is_last,
            left: Mutex::new(Left::Here { place, events: events.into(), read_at: now, since: now }),
        });
        self.pages().insert(page.id, Arc::downgrade(&page));
        page
    }

    /// Room for so many bytes.
    async fn place(&self, tenant: TenantId, bytes: usize) -> Result<Place, Error> {
        let (units, share) = (units(bytes), self.shares.of_tenant(tenant));
        let waited = async {
            // Another tenant's pages make no room in this one's share.
            let own = self.acquire(share, units, |page| page.tenant == tenant).await?;
            let all = self.acquire(Arc::clone(&self.all), units, |_| true).await?;
            Ok([own, all])
        };
        let full = |_| Error::unavailable("the room for replays", anyhow::anyhow!("{TENANT_BYTES_MAX} bytes are held"));
        timeout(WAIT_MAX, waited).await.map_err(full)?
    }

    /// So many units, for which pages are taken away that have lain or been read for too long, of those that would make room.
    async fn acquire(
        &self,
        room: Arc<Semaphore>,
        units: u32,
        makes_room: impl Fn(&Page) -> bool,
    ) -> Result<OwnedSemaphorePermit, Error> {
        let mut acquired = pin!(room.acquire_many_owned(units));
        loop {
            match timeout(LOOK_EVERY, &mut acquired).await {
                Ok(permit) => return permit.map_err(Error::internal),
                Err(_) => self.take_away(units as usize, &makes_room),
            }
        }
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

    /// Pages that have lain for too long, those that have lain longest first, and then those that have been read for too long, until there
    /// is room for so many units.
    fn take_away(&self, units: usize, makes_room: impl Fn(&Page) -> bool) {
        let pages: Vec<_> = self.pages().values().filter_map(Weak::upgrade).collect();
        let makes_room = pages.iter().filter(|page| makes_room(page));
        let mut lying: Vec<_> = makes_room.filter_map(|page| Some((page.lies()?, page.id, page))).collect();
        lying.sort_unstable_by_key(|(lies, id, _)| (*lies, *id));
        let mut freed = 0;
        for (_, _, page) in lying {
            if freed >= units {
                break;
            }
            freed += page.take_away();
        }
    }

    fn pages(&self) -> MutexGuard<'_, HashMap<u64, Weak<Page>>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Page {
    pub(super) fn take(&self) -> Taken {
        self.take_if(|_| true)
    }

    /// Its first event, which is not to be told, if that has this number.
    pub(super) fn known(&self, seq: u64) -> Taken {
        self.take_if(|event| event.seq == seq)
    }

    fn take_if(&self, is_meant: impl Fn(&SessionEvent) -> bool) -> Taken {
        match &mut *self.left() {
            Left::Here { events, since, .. } => {
                *since = Instant::now();
                match events.pop_front_if(|event| is_meant(event)) {
                    Some(event) => Taken::Event(Box::new(event), events.len()),
                    None => Taken::Empty,
                }
            }
            Left::TakenAway => Taken::Away,
        }
    }

    /// `None` where it has no place, or may keep it.
    fn lies(&self) -> Option<Lies> {
        match &*self.left() {
            Left::Here { since, place: Some(_), .. } if since.elapsed() >= LIES_MAX => Some(Lies::Unread(*since)),
            Left::Here { read_at, place: Some(_), .. } if read_at.elapsed() >= READ_MAX => Some(Lies::Slow(*read_at)),
            Left::Here { .. } | Left::TakenAway => None,
        }
    }

    /// The units that it had.
    fn take_away(&self) -> usize {
        match std::mem::replace(&mut *self.left(), Left::TakenAway) {
            Left::Here { place: Some([own, _]), .. } => own.num_permits(),
            Left::Here { place: None, .. } | Left::TakenAway => 0,
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
