//! Carries events between the replicas of the front, as they happen. Nothing depends on it but speed: what is durable is
//! in the log, and whoever misses a number reads it there.

pub mod memory;
pub mod redis;
mod wire;

use async_trait::async_trait;
use croft_proto::id::{SessionId, TenantId, TurnId};
use croft_proto::v1::SessionEvent;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::error::Error;

/// Frames that wait for one receiver at most; one that is full is closed.
pub const FRAMES_MAX: usize = 1_024;

/// A frame with what the receiving replica needs to place it.
#[derive(Debug, Clone, PartialEq)]
pub struct Envelope {
    /// The replica that sent it, which has handed the frame to its own subscribers already: it drops what comes back.
    pub origin: Uuid,
    /// The newest durable event that the sender knew of before this frame. A preview that comes after a newer event of the
    /// turn is out of date.
    pub after_seq: u64,
    /// Previews of this session that the sender dropped before this frame.
    pub dropped_previews: u64,
    pub frame: Frame,
}

/// What one replica tells the others about a session.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    /// Durable events that are stored, and previews, in the order in which they happened.
    Events(Vec<SessionEvent>),
    /// To whichever replica runs this turn, or, from an older release, whichever turn runs: stop it.
    Interrupt { turn: Option<TurnId> },
    /// To whichever replica runs the turn: the session has ended.
    Terminated,
    /// To whichever replica runs the turn: a person has decided; the `ApprovalResolved` event is in the log.
    ApprovalResolved { seq: u64 },
    /// To whichever replica runs the turn: there are subscribers at this one who want to see previews.
    Listening,
}

/// The way between replicas. A replica also receives what it published itself.
#[async_trait]
pub trait Relay: Send + Sync {
    /// Tells every replica that listens to the session, and returns how many did, this one included. Loss is possible and is not
    /// reported; an error means that the relay is down.
    async fn publish(&self, tenant: TenantId, session: SessionId, envelope: &Envelope) -> Result<u64, Error>;

    /// Frames from now on: subscribed when this returns; an error means that the relay is down.
    ///
    /// The receiver is closed when frames may have been lost: it fell behind by its bound, or the relay went away. Its owner
    /// then subscribes anew and reads the log. Dropping it unsubscribes.
    async fn subscribe(&self, tenant: TenantId, session: SessionId) -> Result<mpsc::Receiver<Envelope>, Error>;
}
