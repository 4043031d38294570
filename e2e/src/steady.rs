//! Tests whose bounds are parts of a second, on a machine that may stand still for longer.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::thread;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::time::{Instant, timeout};

/// How often it is looked whether time goes on.
const TICK: Duration = Duration::from_millis(10);
/// A scenario that fails so often fails whatever the machine does.
const TRIES_MAX: usize = 5;

/// Plays the scenario, which panics where it fails. One that failed while this process stood still for longer than `limit` proves
/// nothing: it is played again, five times at most in all. A failure without such a gap is final.
pub async fn steady<T>(limit: Duration, mut scenario: impl AsyncFnMut() -> T) -> T {
    let mut tries = 1;
    loop {
        let (outcome, gap) = watched(scenario()).await;
        match outcome {
            Ok(result) => return result,
            Err(_) if gap > limit && tries < TRIES_MAX => {
                eprintln!("the machine stood still for {gap:?}: try {tries} does not count");
                tries += 1;
            }
            Err(panic) => resume_unwind(panic),
        }
    }
}

/// How the scenario ended, with what it panicked where it failed, and the longest time in which nothing of this task ran.
pub async fn watched<T>(scenario: impl Future<Output = T>) -> (thread::Result<T>, Duration) {
    let mut scenario = Box::pin(AssertUnwindSafe(scenario).catch_unwind());
    let (mut looked, mut longest) = (Instant::now(), Duration::ZERO);
    loop {
        let outcome = timeout(TICK, &mut scenario).await;
        longest = longest.max(looked.elapsed());
        looked = Instant::now();
        if let Ok(outcome) = outcome {
            return (outcome, longest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL: Duration = Duration::from_millis(50);

    /// Plays a scenario that fails so often, each time after so long a stall; how often it was played, and whether it came out well.
    async fn played(failures: usize, stall: Duration, limit: Duration) -> (usize, bool) {
        let mut plays = 0;
        let play = steady(limit, async || {
            plays += 1;
            thread::sleep(stall);
            assert!(plays > failures, "play {plays} fails");
        });
        let is_fine = AssertUnwindSafe(play).catch_unwind().await.is_ok();
        (plays, is_fine)
    }

    #[tokio::test]
    async fn what_fails_while_the_machine_stands_still_is_played_again() {
        assert_eq!(played(2, STALL, STALL / 2).await, (3, true));
    }

    #[tokio::test]
    async fn what_fails_for_no_such_reason_has_failed() {
        assert_eq!(played(1, Duration::ZERO, Duration::from_hours(1)).await, (1, false));
    }

    #[tokio::test]
    async fn what_always_fails_has_failed() {
        assert_eq!(played(usize::MAX, STALL, STALL / 2).await, (TRIES_MAX, false));
    }

    #[tokio::test]
    async fn what_comes_out_well_is_played_once_whatever_the_machine_does() {
        assert_eq!(played(0, STALL, STALL / 2).await, (1, true));
    }
}
