//! When to make a call again: exponential back-off with jitter, unless the provider says how long to wait.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};

use crate::error::Error;

/// Bounds on repeating one call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policy {
    /// Attempts in all, the first included. At the bound the last error stands.
    pub attempts_max: usize,
    pub first_delay: Duration,
    pub delay_max: Duration,
    /// A provider that asks for a longer wait than this gets no further attempt: the turn would look hung.
    pub retry_after_max: Duration,
    /// Tests turn it off.
    pub jitter: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            attempts_max: 3,
            first_delay: Duration::from_millis(500),
            delay_max: Duration::from_secs(8),
            retry_after_max: Duration::from_mins(1),
            jitter: true,
        }
    }
}

impl Policy {
    /// The waits of one call that is about to be made.
    pub fn start(&self) -> Schedule {
        let builder = ExponentialBuilder::default()
            .with_min_delay(self.first_delay)
            .with_max_delay(self.delay_max)
            .with_factor(2.0)
            .with_max_times(self.attempts_max.saturating_sub(1));
        let builder = if self.jitter { builder.with_jitter() } else { builder };
        Schedule { delays: builder.build(), retry_after_max: self.retry_after_max }
    }
}

/// What is left of a [`Policy`] for one call.
#[derive(Debug)]
pub struct Schedule {
    delays: ExponentialBackoff,
    retry_after_max: Duration,
}

impl Schedule {
    /// How long to wait before the next attempt after `error`; `None` when there must be none.
    pub fn after(&mut self, error: &Error) -> Option<Duration> {
        if !error.is_retryable() {
            return None;
        }
        let delay = self.again()?;
        match error.retry_after {
            Some(asked) if asked > self.retry_after_max => None,
            Some(asked) => Some(asked.max(delay)),
            None => Some(delay),
        }
    }

    /// How long to wait before the next attempt where the one before was no error and yet came to nothing; `None` when there
    /// must be none.
    pub fn again(&mut self) -> Option<Duration> {
        self.delays.next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Class;

    fn policy() -> Policy {
        Policy { jitter: false, ..Policy::default() }
    }

    #[test]
    fn waits_grow_and_end() {
        let mut schedule = policy().start();
        let overload = Error::new("test", Class::Overload, "busy");
        assert_eq!(schedule.after(&overload), Some(Duration::from_millis(500)));
        assert_eq!(schedule.after(&overload), Some(Duration::from_secs(1)));
        assert_eq!(schedule.after(&overload), None);
    }

    #[test]
    fn what_cannot_get_better_is_not_repeated() {
        for class in [Class::Auth, Class::Quota, Class::Invalid, Class::Context, Class::Content] {
            assert_eq!(policy().start().after(&Error::new("test", class, "no")), None, "{class:?}");
        }
    }

    #[test]
    fn the_providers_wait_is_obeyed_up_to_the_bound() {
        let mut error = Error::new("test", Class::Rate, "slow down");
        error.retry_after = Some(Duration::from_secs(7));
        assert_eq!(policy().start().after(&error), Some(Duration::from_secs(7)));
        error.retry_after = Some(Duration::from_secs(61));
        assert_eq!(policy().start().after(&error), None);
    }

    #[test]
    fn jitter_stays_within_twice_the_delay() {
        let overload = Error::new("test", Class::Overload, "busy");
        for _ in 0..100 {
            let delay = Policy::default().start().after(&overload).unwrap();
            assert!(delay >= Duration::from_millis(500) && delay <= Duration::from_secs(1), "{delay:?}");
        }
    }
}
