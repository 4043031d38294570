//! What SSE and WebSocket do alike to begin: find the caller's session, and follow it from a number on.

use std::sync::Arc;

use croft_proto::id::SessionId;
use croft_proto::v1::{SessionEvent, SessionState};
use futures::StreamExt;
use futures::stream::BoxStream;

use super::Gateway;
use crate::error::Error;
use crate::events::replay;
use crate::identity::Identity;

/// What a client wants to see of a session.
pub(super) struct Wanted<'wanted> {
    pub(super) session_id: &'wanted str,
    /// The last number that the client has; 0 for none.
    pub(super) after_seq: u64,
    pub(super) durable_only: bool,
}

pub(super) enum Opened {
    Events(BoxStream<'static, Result<SessionEvent, Error>>),
    /// The session is terminated, and the client has seen it all.
    Over,
}

/// Follows one of the caller's sessions. One of another tenant does not exist.
pub(super) async fn open(gateway: &Gateway, identity: &Identity, wanted: Wanted<'_>) -> Result<Opened, Error> {
    let Wanted { session_id, after_seq, durable_only } = wanted;
    let not_found = || Error::SessionNotFound { session_id: session_id.chars().take(64).collect() };
    let id: SessionId = session_id.parse().map_err(|_| not_found())?;
    let session = gateway.sessions.get(identity.tenant, id).await?.ok_or_else(not_found)?;
    if after_seq > session.last_seq {
        return Err(Error::CursorBeyondEnd { after_seq, last_seq: session.last_seq });
    }
    if session.state == SessionState::Terminated && after_seq == session.last_seq {
        return Ok(Opened::Over);
    }
    let log = Arc::clone(&gateway.events);
    let events = replay::follow(log, &gateway.hub, identity.tenant, id, after_seq, durable_only).await?;
    Ok(Opened::Events(events.boxed()))
}
