//! The event log. What happens in a session is an event, and changes its state with it: here, as its first and last ones
//! ([`SessionStore::insert`](crate::session::store::SessionStore::insert)) and as those that begin and end a turn
//! ([`TurnStore`](crate::turn::store::TurnStore)). Only what was used behind its end, or at a worker that its turn
//! left, is added without one ([`UsageStore::add_behind_end`](crate::usage::UsageStore::add_behind_end)).

use async_trait::async_trait;
use croft_proto::Timestamp;
use croft_proto::id::{SessionId, TenantId, TurnId};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{SessionCheckpoint, SessionEvent};
use prost::Message;

use crate::clock::now;
use crate::error::Error;

/// A durable event that has no number yet.
#[derive(Debug, Clone, PartialEq)]
pub struct NewEvent {
    pub kind: Kind,
    /// The turn it belongs to, if any.
    pub turn: Option<TurnId>,
    /// Since the turn began; 0 outside a turn.
    pub elapsed_ms: i64,
    pub create_time: Timestamp,
}

impl NewEvent {
    /// Outside a turn, as of now.
    pub fn now(kind: Kind) -> Self {
        Self::at(kind, now())
    }

    /// Outside a turn, as of then.
    pub fn at(kind: Kind, create_time: Timestamp) -> Self {
        Self { kind, turn: None, elapsed_ms: 0, create_time }
    }

    /// The same in a turn, at its very beginning.
    #[must_use]
    pub fn of_turn(self, turn: TurnId) -> Self {
        Self { turn: Some(turn), ..self }
    }
}

/// By what right an append is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authority {
    /// The turn that holds the session's lease under this epoch; refused with [`Error::LeaseLost`] once it is stale or
    /// has been released.
    Lease { epoch: u64 },
    /// Anyone of the tenant, beside whatever turn is running: a user's message, the resolution of an approval.
    Caller,
    /// As a caller, while this turn runs: a word to it; refused with [`Error::SessionBusy`] when it is over, or not at hand.
    During { turn: TurnId },
    /// As a caller, as long as no user message has come behind the one of this number; refused with [`Error::SessionBusy`] once one has.
    Behind { input_seq: u64 },
    /// As a caller, and the lease's epoch moves on, so that the turn at hand can write nothing more: termination.
    Fence,
    /// As [`Self::Fence`], of a session without a turn at hand; refused with [`Error::SessionBusy`] while there is one.
    AtRest,
    /// As [`Self::Fence`], of a session whose time is up as of then; refused with [`Error::SessionBusy`] when it is not, since
    /// the session was heard from.
    Overdue { as_of: Timestamp },
}

impl Authority {
    /// The turn at hand can write nothing more.
    pub(crate) fn fences(self) -> bool {
        matches!(self, Self::Fence | Self::AtRest | Self::Overdue { .. })
    }
}

/// The caller's word that two requests are one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// At most 255 characters.
    pub key: String,
    /// SHA-256 of the request without the key.
    pub body_hash: [u8; 32],
}

/// One atomic change of a session: all of it is stored, or none.
#[derive(Debug, Clone)]
pub struct Append {
    pub tenant: TenantId,
    pub session: SessionId,
    pub authority: Authority,
    /// At least one; in this order.
    pub events: Vec<NewEvent>,
    /// Replaces the session's checkpoint; it stands for all events up to the last one of this append.
    pub checkpoint: Option<SessionCheckpoint>,
    /// Of a `SendMessage`.
    pub idempotency_key: Option<IdempotencyKey>,
    /// The turn takes up the user messages up to this number.
    pub input_seq: Option<u64>,
}

impl Append {
    /// Of these events alone: with no checkpoint and no key, and no message is taken up.
    pub fn of(tenant: TenantId, session: SessionId, authority: Authority, events: Vec<NewEvent>) -> Self {
        Self { tenant, session, authority, events, checkpoint: None, idempotency_key: None, input_seq: None }
    }
}

/// Bytes of events, as they are stored, at which a page ends. It has at least one event, however large.
pub const PAGE_BYTES: u32 = 512 << 10;

/// Whether nothing stood behind a page when it was read.
pub fn is_last_page(page: &[SessionEvent], limit: u32) -> bool {
    is_last(page.len(), bytes(page), limit)
}

/// As [`is_last_page`], of a page of so many events and [`bytes`].
pub(crate) fn is_last(events: usize, bytes: usize, limit: u32) -> bool {
    // As they are told they are a little larger than as they are stored: at worst an empty page is read behind the last one.
    events < limit as usize && bytes < PAGE_BYTES as usize
}

pub(crate) fn bytes(page: &[SessionEvent]) -> usize {
    page.iter().map(SessionEvent::encoded_len).sum()
}

/// What [`EventLog::append`] did.
#[derive(Debug, Clone, PartialEq)]
pub enum Appended {
    /// The events, with their numbers.
    New(Vec<SessionEvent>),
    /// The idempotency key had appended before, from this number on; nothing was stored.
    Existing { first_seq: u64 },
}

/// A checkpoint and the number of the last event that it stands for.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredCheckpoint {
    pub checkpoint: SessionCheckpoint,
    pub seq: u64,
}

/// The durable events of sessions. Numbers are contiguous from 1 in each session, whatever fails and whoever races.
///
/// The session's state follows in the same transaction: `SessionReady`, `SessionRunning`, `SessionIdle` and
/// `SessionTerminated` set it (with worker, turn, stop reason, reason); `StepStarted` sets the worker; `ModelAttempt` writes
/// one usage row by its `attempt_id` (a second one of the same id writes none) and adds to the session's totals.
#[async_trait]
pub trait EventLog: Send + Sync {
    /// Numbers and stores events.
    ///
    /// Fails with [`Error::SessionNotFound`]; with [`Error::SessionTerminated`] when the session had ended before;
    /// with [`Error::LeaseLost`], [`Error::SessionBusy`] and [`Error::IdempotencyKeyReused`] as said above.
    ///
    /// Whatever ends the session also ends its lease: nothing is left to take over. A key that appended before is told so even
    /// to a session that has ended since, and to a turn that has lost its lease. Previews and notices are refused.
    async fn append(&self, append: Append) -> Result<Appended, Error>;

    /// The number of the first event that this idempotency key of `SendMessage` appended within 24 hours, if it did.
    ///
    /// Fails with [`Error::IdempotencyKeyReused`] when the body was another.
    async fn find_sent(&self, tenant: TenantId, session: SessionId, key: &IdempotencyKey)
    -> Result<Option<u64>, Error>;

    /// Events with numbers above `after_seq`, in order, at most `limit`, and no more once they have [`PAGE_BYTES`]: see [`is_last_page`].
    /// None for a session that the tenant doesn't have, or that is being erased.
    async fn read(
        &self,
        tenant: TenantId,
        session: SessionId,
        after_seq: u64,
        limit: u32,
    ) -> Result<Vec<SessionEvent>, Error>;

    /// How many messages of the session no turn has taken up, `max` at most. None of a session that the tenant doesn't have.
    async fn waiting(&self, tenant: TenantId, session: SessionId, max: u32) -> Result<u32, Error>;

    /// The newest checkpoint, if one was taken.
    async fn checkpoint(&self, tenant: TenantId, session: SessionId) -> Result<Option<StoredCheckpoint>, Error>;
}
