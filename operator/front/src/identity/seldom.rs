//! What others can make happen as often as they like, and the log tells of now and then.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Between two lines.
const EVERY: Duration = Duration::from_secs(10);

/// Counts what happens between two lines of the log.
#[derive(Debug, Default)]
pub(super) struct Seldom {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    told_at: Option<Instant>,
    untold: u64,
}

impl Seldom {
    /// It has happened. How often since it was told last, if it is to be told now.
    pub(super) fn happened(&self) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.untold += 1;
        if state.told_at.is_some_and(|told_at| told_at.elapsed() < EVERY) {
            return None;
        }
        state.told_at = Some(Instant::now());
        Some(std::mem::take(&mut state.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_is_told_and_then_how_many_there_were() {
        let seldom = Seldom::default();
        assert_eq!(seldom.happened(), Some(1));
        for _ in 0..1_000 {
            assert_eq!(seldom.happened(), None);
        }
        tokio::time::advance(EVERY).await;
        assert_eq!(seldom.happened(), Some(1_001));
        assert_eq!(seldom.happened(), None);
    }
}
