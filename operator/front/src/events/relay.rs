//! Carries events between the replicas of the front, as they happen. Nothing depends on it but speed: what is durable is
//! in the log, and whoever misses a number reads it there.

pub mod memory;

use async_trait::async_trait;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::SessionEvent;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::error::Error;

/// Frames that wait for one receiver at most. One that is full is closed, and its owner subscribes anew and reads the log.
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
    ///
    /// None at all is the relay's own word that frames may have been lost: read the log. See [`Envelope::missed`].
    Events(Vec<SessionEvent>),
    /// To whichever replica runs the turn: stop it.
    Interrupt,
    /// To whichever replica runs the turn: the session has ended.
    Terminated,
    /// To whichever replica runs the turn: a person has decided; the `ApprovalResolved` event is in the log.
    ApprovalResolved { seq: u64 },
}

impl Envelope {
    /// What a relay hands to its receivers when the link between replicas broke, every second until it is back, and once more
    /// then: whoever reads the log on it misses nothing durable, even while the relay is down.
    pub fn missed() -> Self {
        Self { origin: Uuid::nil(), after_seq: 0, dropped_previews: 0, frame: Frame::Events(Vec::new()) }
    }

    /// Frames before this one may have been lost.
    pub fn is_missed(&self) -> bool {
        matches!(&self.frame, Frame::Events(events) if events.is_empty())
    }
}

/// The way between replicas. A replica also receives what it published itself.
#[async_trait]
pub trait Relay: Send + Sync {
    /// Tells every replica that listens to the session. Loss is possible and is not reported; an error means that the relay
    /// is down.
    async fn publish(&self, tenant: TenantId, session: SessionId, envelope: &Envelope) -> Result<(), Error>;

    /// Frames from now on: subscribed when this returns, or, while the relay is down, as soon as it is back. The channel is
    /// bounded; a receiver that falls behind by its bound is closed, and then subscribes anew and reads the log. Dropping
    /// the receiver unsubscribes.
    async fn subscribe(&self, tenant: TenantId, session: SessionId) -> Result<mpsc::Receiver<Envelope>, Error>;
}
