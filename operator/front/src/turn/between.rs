//! The moments in which a turn runs and does not listen: around its beginning, and while it is nobody's.

use std::time::Duration;

use croft_proto::id::{SessionId, TenantId, TurnId};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{SessionEvent, SessionState};
use tokio::time::Instant;

use super::{Accepted, Turns};
use crate::error::Error;
use crate::events::log::is_last_page;
use crate::events::relay::Frame;

/// When a turn is told again to stop. It may have begun a moment ago, or be on its way to another replica, and not listen yet.
const TELL_AGAIN_MS: [u64; 4] = [50, 100, 200, 400];
/// And then, until it stops: its front may have been lost, and whoever takes it over listens once its lease has run out; or the relay is
/// away, and comes back.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// So many lease times, and so much more for the relay to come back.
const TELL_FOR_LEASES: u32 = 3;
const TELL_FOR_RELAY: Duration = Duration::from_secs(15);
/// Events that are read at a time while looking for the beginning of a turn.
const PAGE: u32 = 500;

impl Turns {
    /// The turn that is running as the session is stored now.
    pub(super) async fn at_hand(&self, tenant: TenantId, session: SessionId) -> Result<Option<TurnId>, Error> {
        let now = self.core.stores.sessions.get(tenant, session).await?;
        Ok(now.filter(|now| now.state == SessionState::Running).and_then(|now| now.turn_id.parse().ok()))
    }

    /// Stops the turn that runs before that of a message which is to interrupt it. In a task of its own: the message is stored, and whoever
    /// sent it is told so, whatever becomes of this.
    pub(super) fn make_way(&self, tenant: TenantId, session: SessionId, accepted: Accepted) {
        let turns = self.clone();
        self.core.tasks.spawn("interrupt", async move {
            for pause in std::iter::once(0).chain(TELL_AGAIN_MS).map(Duration::from_millis) {
                tokio::time::sleep(pause).await;
                match turns.in_the_way(tenant, session, accepted).await {
                    Ok(before) => {
                        if let Some(before) = before {
                            turns.stop(tenant, session, before);
                        }
                        return;
                    }
                    Err(error) => tracing::debug!(%session, %error, "cannot see which turn is to be interrupted"),
                }
            }
        });
    }

    /// The turn that runs and began before this message came. One that began behind it, of a message that had waited, is none that it was to
    /// interrupt: whoever repeats it would.
    async fn in_the_way(
        &self,
        tenant: TenantId,
        session: SessionId,
        accepted: Accepted,
    ) -> Result<Option<TurnId>, Error> {
        let Some(now) = self.core.stores.sessions.get(tenant, session).await? else { return Ok(None) };
        if now.state != SessionState::Running || now.input_seq >= accepted.seq {
            return Ok(None);
        }
        let Some(turn) = now.turn_id.parse().ok().filter(|turn| *turn != accepted.turn) else { return Ok(None) };
        // From the message on: seldom much is behind it, and before it may be all of a long turn.
        let mut after = accepted.seq;
        loop {
            let page = self.core.stores.events.read(tenant, session, after, PAGE).await?;
            let begins = |event: &SessionEvent| {
                event.turn_id == now.turn_id && matches!(event.kind, Some(Kind::SessionRunning(_)))
            };
            if page.iter().any(begins) {
                return Ok(None);
            }
            if is_last_page(&page, PAGE) {
                return Ok(Some(turn));
            }
            after = page.last().map_or(after, |event| event.seq);
        }
    }

    /// Tells a turn to stop, wherever it runs, until it does: at once, and for a while again in a task of its own. What nobody has heard
    /// of by the end of that, or when this front goes, is forgotten.
    pub(super) fn stop(&self, tenant: TenantId, session: SessionId, turn: TurnId) {
        let turns = self.clone();
        let tell = move |turns: &Self| {
            turns.core.hub.control(tenant, session, Frame::Interrupt { turn: Some(turn) });
        };
        tell(self);
        let (stopping, patience) =
            (self.core.tasks.stopping(), TELL_FOR_LEASES * self.core.options.lease_ttl + TELL_FOR_RELAY);
        self.core.tasks.spawn("interrupt", async move {
            let until = Instant::now() + patience;
            let pauses = TELL_AGAIN_MS.into_iter().map(Duration::from_millis).chain(std::iter::repeat(TELL_EVERY));
            for pause in pauses.take_while(|_| Instant::now() < until) {
                tokio::select! {
                    () = stopping.cancelled(), if pause >= TELL_EVERY => return,
                    () = tokio::time::sleep(pause) => {}
                }
                match turns.at_hand(tenant, session).await {
                    Ok(Some(at_hand)) if at_hand == turn => tell(&turns),
                    Ok(_) => return,
                    Err(error) => tracing::debug!(%session, %error, "cannot see whether the turn goes on"),
                }
            }
        });
    }
}
