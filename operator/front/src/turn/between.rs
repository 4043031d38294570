//! The moments around the beginning of a turn, in which it runs and does not listen yet.

use std::time::Duration;

use croft_proto::id::{SessionId, TenantId, TurnId};
use croft_proto::v1::SessionState;

use super::Turns;
use crate::error::Error;
use crate::events::relay::Frame;

/// When a turn is told again to stop. It may have begun a moment ago, or be on its way to another replica, and not listen yet.
const TELL_AGAIN_MS: [u64; 4] = [50, 100, 200, 400];

impl Turns {
    /// The turn that is running as the session is stored now.
    pub(super) async fn at_hand(&self, tenant: TenantId, session: SessionId) -> Result<Option<TurnId>, Error> {
        let now = self.core.stores.sessions.get(tenant, session).await?;
        Ok(now.filter(|now| now.state == SessionState::Running).and_then(|now| now.turn_id.parse().ok()))
    }

    /// Tells a turn to stop, wherever it runs, until it does: at once, and for a while again in a task of its own.
    pub(super) fn stop(&self, tenant: TenantId, session: SessionId, turn: TurnId) {
        let turns = self.clone();
        let tell = move |turns: &Self| {
            turns.core.hub.control(tenant, session, Frame::Interrupt { turn: Some(turn) });
        };
        tell(self);
        self.core.tasks.spawn("interrupt", async move {
            for pause in TELL_AGAIN_MS {
                tokio::time::sleep(Duration::from_millis(pause)).await;
                match turns.at_hand(tenant, session).await {
                    Ok(Some(at_hand)) if at_hand == turn => tell(&turns),
                    Ok(_) => return,
                    Err(error) => tracing::debug!(%session, %error, "cannot see whether the turn goes on"),
                }
            }
        });
    }
}
