//! Carries events between the replicas of the front, as they happen. Nothing depends on it but speed: what is durable is
//! in the log, and whoever misses a number reads it there.

use async_trait::async_trait;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::SessionEvent;
use tokio::sync::mpsc;

use crate::error::Error;

/// What one replica tells the others about a session.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    /// Durable events that are stored, and previews, in the order in which they happened.
    Events(Vec<SessionEvent>),
    /// To whichever replica runs the turn: stop it.
    Interrupt,
    /// To whichever replica runs the turn: the session has ended.
    Terminated,
    /// To whichever replica runs the turn: a person has decided; the ApprovalResolved event is in the log.
    ApprovalResolved { seq: u64 },
}

/// The way between replicas. A replica also receives what it published itself.
#[async_trait]
pub trait Relay: Send + Sync {
    /// Tells every replica that listens to the session. Loss is possible and is not reported; an error means that the relay is
    /// down.
    async fn publish(&self, tenant: TenantId, session: SessionId, frame: &Frame) -> Result<(), Error>;

    /// Frames from now on: subscribed when this returns. The channel is bounded; a receiver that falls behind by its
    /// bound loses the oldest frames or is closed, and then reads the log. Dropping the receiver unsubscribes.
    async fn subscribe(&self, tenant: TenantId, session: SessionId) -> Result<mpsc::Receiver<Frame>, Error>;
}
