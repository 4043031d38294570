//! Whether a connection that was idle, or that a call has left half way, is still one.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::{Connection as _, PgConnection};
use tokio::time::{Instant, timeout};

/// A connection that was idle for so long is looked at before its next use. To look at each would cost every transaction a round trip;
/// in a front that has something to do none is idle for so long.
const IDLE_MAX: Duration = Duration::from_secs(1);

/// How long a look may take. A server whose host has vanished never answers, and a pool that waits for it has one connection fewer.
const PING_MAX: Duration = Duration::from_secs(1);

/// When a connection was last found to be lost. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Doubts {
    raised_at: Arc<Mutex<Option<Instant>>>,
}

impl Doubts {
    /// A connection was lost: so may be all that have not been used since.
    pub(super) fn raise(&self) {
        *self.raised_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether a connection that was idle for so long is to be looked at.
    pub(super) fn doubt(&self, idle_for: Duration) -> bool {
        let raised_at = *self.raised_at.lock().unwrap_or_else(PoisonError::into_inner);
        idle_for >= IDLE_MAX || raised_at.is_some_and(|at| at.elapsed() <= idle_for)
    }
}

/// Looks whether the server is there, for [`PING_MAX`]. What an unfinished call has left on its way is read first.
pub(super) async fn ping(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let silent = |_| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
    timeout(PING_MAX, connection.ping()).await.unwrap_or_else(|elapsed| Err(silent(elapsed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_idle_when_another_was_lost_is_doubted_and_what_was_used_since_is_not() {
        let doubts = Doubts::default();
        assert!(!doubts.doubt(Duration::from_millis(300)));
        doubts.raise();
        tokio::time::advance(Duration::from_millis(200)).await;
        assert!(doubts.doubt(Duration::from_millis(300)));
        assert!(!doubts.doubt(Duration::from_millis(100)));
        assert!(doubts.doubt(IDLE_MAX));
    }
}
