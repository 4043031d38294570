//! How a turn begins and ends in the stores: the lease and the events in one change each, so that a turn costs few transactions.

use std::time::Duration;

use async_trait::async_trait;
use croft_proto::v1::{SessionEvent, SessionState};

use crate::error::Error;
use crate::events::log::{Append, StoredCheckpoint};
use crate::session::Session;

/// A turn that is about to begin.
#[derive(Debug, Clone)]
pub struct Begin {
    /// What begins it, by the caller's right.
    pub message: Append,
    /// Who drives it, and how long until the lease must be renewed: see [`crate::lease::LeaseStore::acquire`].
    pub holder: String,
    pub ttl: Duration,
}

/// What [`TurnStore::begin`] did.
#[derive(Debug, Clone, PartialEq)]
pub enum Begun {
    /// The lease is the holder's, and the message is stored.
    New(Box<Opened>),
    /// The idempotency key had appended before, from this number on; nothing was stored, and no lease taken.
    Existing { first_seq: u64 },
    /// Somebody holds the lease, or a message has come that [`Authority::Behind`](crate::events::log::Authority::Behind) rules out; nothing was
    /// stored.
    Busy,
}

/// A turn that has begun, with all that its driver needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Opened {
    pub epoch: u64,
    /// The message, numbered.
    pub events: Vec<SessionEvent>,
    /// As it was before.
    pub session: Session,
    /// The newest, if one was taken.
    pub checkpoint: Option<StoredCheckpoint>,
}

impl Opened {
    /// Nothing is to be done before the message: no turn was broken off, and no earlier message waits.
    pub(crate) fn is_next(&self) -> bool {
        let Session { state, input_seq, newest_input_seq, .. } = self.session;
        state != SessionState::Running && newest_input_seq <= input_seq
    }
}

/// What [`TurnStore::end`] did.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    pub events: Vec<SessionEvent>,
    /// False when a message waits: the lease is kept for its turn.
    pub released: bool,
}

/// The first and the last word of a turn.
#[async_trait]
pub trait TurnStore: Send + Sync {
    /// Takes the lease and appends, or does neither. Fails as an append of a caller's does. Over a turn that was broken off, the session
    /// goes on to say that it runs that one.
    async fn begin(&self, begin: Begin) -> Result<Begun, Error>;

    /// Appends under the lease, and gives it up unless a message waits that no turn has taken up. Fails as an append does.
    ///
    /// A message that comes later finds the lease free, one that came before finds its turn: none is left lying.
    async fn end(&self, last: Append) -> Result<Ended, Error>;
}
