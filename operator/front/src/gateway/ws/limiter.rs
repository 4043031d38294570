//! How many frames a client may send: so many a second over time, and so many at once.

use tokio::time::Instant;

/// A bucket that a frame takes a token out of and time fills.
#[derive(Debug)]
pub(super) struct Limiter {
    per_second: f64,
    at_once: f64,
    tokens: f64,
    filled_at: Instant,
}

/// What to do with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Take,
    Refuse,
    /// The client goes on although it is refused.
    HangUp,
}

impl Limiter {
    pub(super) fn new(per_second: u32, at_once: u32) -> Self {
        let (per_second, at_once) = (f64::from(per_second), f64::from(at_once));
        Self { per_second, at_once, tokens: at_once, filled_at: Instant::now() }
    }

    /// A refused frame costs too, down to as far below zero as the bucket is deep.
    pub(super) fn judge(&mut self) -> Verdict {
        let now = Instant::now();
        let filled = self.tokens + self.per_second * now.duration_since(self.filled_at).as_secs_f64();
        self.filled_at = now;
        self.tokens = filled.min(self.at_once) - 1.0;
        if self.tokens >= 0.0 {
            Verdict::Take
        } else if self.tokens >= -self.at_once {
            Verdict::Refuse
        } else {
            Verdict::HangUp
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Verdict::{HangUp, Refuse, Take};
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_taken_more_is_refused_and_much_more_hung_up_on() {
        let mut limiter = Limiter::new(2, 3);
        let verdicts: Vec<_> = (0..7).map(|_| limiter.judge()).collect();
        assert_eq!(verdicts, [Take, Take, Take, Refuse, Refuse, Refuse, HangUp]);
    }

    #[tokio::test(start_paused = true)]
    async fn time_fills_the_bucket_to_its_brim_and_no_further() {
        let mut limiter = Limiter::new(2, 3);
        assert_eq!((0..4).map(|_| limiter.judge()).last(), Some(Refuse));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(limiter.judge(), Take);
        tokio::time::advance(Duration::from_mins(10)).await;
        assert_eq!((0..4).map(|_| limiter.judge()).filter(|verdict| *verdict == Take).count(), 3);
    }
}
