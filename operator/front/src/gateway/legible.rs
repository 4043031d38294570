//! Events that this release can't tell as JSON.

use std::fmt::Display;

use croft_proto::v1::SessionEvent;

/// What is told in place of an event with a value of an enum that this release doesn't have, from a worker or front of another one: all but what
/// it says, so that who listens goes on behind its number, and does not come to it again for ever.
pub(super) fn number_alone(event: &SessionEvent, error: &impl Display) -> SessionEvent {
    let SessionEvent { session_id, seq, .. } = event;
    tracing::warn!(session = session_id, seq, %error, "an event says what this release has no JSON for, and is told without");
    SessionEvent { kind: None, ..event.clone() }
}
