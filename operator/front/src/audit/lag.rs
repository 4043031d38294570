//! How far what is stored of the audit log is behind what was recorded.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, IntGauge};
use tokio::time::{Duration, Instant};

/// Between two records of which is known when they came: the age that is told is off by so much at most.
const GRAIN: Duration = Duration::from_secs(1);
/// So many are known: more than a day. Of what comes after that is known that it is younger.
const KNOWN_MAX: usize = 100_000;

/// Counts records, in the order in which they came; cheap to clone. It is reckoned when prometheus asks, as nothing happens while
/// records wait.
#[derive(Debug, Clone)]
pub struct Lag {
    state: Arc<Mutex<State>>,
    seconds: Gauge,
    waiting: IntGauge,
}

#[derive(Debug, Default)]
struct State {
    given: u64,
    stored: u64,
    /// When some of those came that are not stored, oldest first.
    came: VecDeque<(u64, Instant)>,
}

impl Default for Lag {
    fn default() -> Self {
        let seconds = Gauge::new(
            "croft_audit_lag_seconds",
            "Age of the oldest audit record that this process was given and did not store",
        );
        let waiting =
            IntGauge::new("croft_audit_waiting", "Audit records that this process was given and did not store");
        let valid = "a fixed name is valid";
        Self { state: Arc::default(), seconds: seconds.expect(valid), waiting: waiting.expect(valid) }
    }
}

impl Lag {
    /// A record has come, the one with this number, from 1.
    pub(super) fn given(&self, number: u64) {
        let (mut state, now) = (self.lock(), Instant::now());
        state.given = number;
        if state.came.back().is_none_or(|(_, last)| now - *last >= GRAIN) && state.came.len() < KNOWN_MAX {
            state.came.push_back((number, now));
        }
    }

    /// All up to the one with this number are stored.
    pub(super) fn stored(&self, number: u64) {
        let mut state = self.lock();
        state.stored = number.max(state.stored);
        let stored = state.stored;
        // The last of those that are stored says at least how old those behind it are.
        while state.came.get(1).is_some_and(|(number, _)| *number <= stored + 1) || stored >= state.given {
            if state.came.pop_front().is_none() {
                return;
            }
        }
    }

    /// Records that are not stored.
    pub fn waiting(&self) -> u64 {
        let state = self.lock();
        state.given.saturating_sub(state.stored)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for Lag {
    fn desc(&self) -> Vec<&Desc> {
        [self.seconds.desc(), self.waiting.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.waiting.set(i64::try_from(self.waiting()).unwrap_or(i64::MAX));
        let state = self.lock();
        self.seconds.set(state.came.front().map_or(0.0, |(_, came)| came.elapsed().as_secs_f64()));
        [self.seconds.collect(), self.waiting.collect()].concat()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    impl Lag {
        /// Seconds, and records.
        fn told(&self) -> (f64, i64) {
            self.collect();
            (self.seconds.get(), self.waiting.get())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_that_is_not_stored_is_told() {
        let lag = Lag::default();
        assert_eq!(lag.told(), (0.0, 0));
        lag.given(1);
        advance(Duration::from_secs(3)).await;
        lag.given(2);
        advance(Duration::from_millis(500)).await;
        lag.given(3);
        assert_eq!(lag.told(), (3.5, 3));
        lag.stored(1);
        assert_eq!(lag.told(), (0.5, 2));
        lag.stored(2);
        assert_eq!(lag.told(), (0.5, 1), "within a second");
        advance(Duration::from_mins(1)).await;
        assert_eq!(lag.told(), (60.5, 1));
        lag.stored(3);
        assert_eq!(lag.told(), (0.0, 0));
        lag.given(4);
        advance(Duration::from_secs(1)).await;
        assert_eq!(lag.told(), (1.0, 1), "what is stored is forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn a_database_that_is_away_for_long_costs_no_more_memory() {
        let lag = Lag::default();
        for number in 1..=100_010 {
            lag.given(number);
            advance(GRAIN).await;
        }
        assert_eq!(lag.lock().came.len(), KNOWN_MAX);
        assert_eq!(lag.told(), (100_010.0, 100_010));
    }
}
