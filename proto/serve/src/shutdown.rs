//! The end of a program: not ready, stop intake, drain within the grace, and no patience for a second signal.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{Readiness, Tasks};

/// SIGTERM and SIGINT.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on the signals no longer end the process by themselves.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// The next signal.
    pub async fn next(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
        }
    }
}

/// The exit code that a shell gives a process which died of this signal.
pub fn exit_code(signal: SignalKind) -> i32 {
    128 + signal.as_raw_value()
}

/// Not ready first, so that nobody new is sent here, and for `delay` whoever comes is served still: a Service's nodes hear of it only
/// after the pod has, and what they send to an address that is gone by then is never answered. Then no more intake; then waits for what
/// has begun, `grace` at most. Returns how many tasks are left.
pub async fn in_order(readiness: &Readiness, tasks: &Tasks, delay: Duration, grace: Duration) -> usize {
    readiness.check("shutdown").not_ready("shutting down");
    tokio::time::sleep(delay).await;
    tasks.shutdown(grace).await
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test]
    async fn nobody_is_sent_here_any_more_by_the_time_intake_stops() {
        let (tasks, readiness) = (Tasks::new(), Readiness::new());
        let (stopping, seen) = (tasks.stopping(), readiness.clone());
        let intake = tasks.spawn("intake", async move {
            stopping.cancelled().await;
            seen.problems()
        });
        assert_eq!(in_order(&readiness, &tasks, Duration::ZERO, Duration::from_mins(1)).await, 0);
        assert_eq!(intake.await.unwrap(), ["shutdown: shutting down"]);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_has_not_heard_of_the_end_is_served_for_the_delay() {
        let (tasks, readiness) = (Tasks::new(), Readiness::new());
        let (stopping, began) = (tasks.stopping(), Instant::now());
        let intake = tasks.spawn("intake", async move { stopping.cancelled().await });
        let delay = Duration::from_secs(5);
        let told = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            readiness.problems()
        };
        let (left, told) = tokio::join!(in_order(&readiness, &tasks, delay, Duration::from_mins(1)), told);
        intake.await.unwrap();
        assert_eq!((left, began.elapsed(), told), (0, delay, vec!["shutdown: shutting down".to_owned()]));
    }

    #[test]
    fn exit_codes_are_the_shells() {
        assert_eq!(exit_code(SignalKind::terminate()), 143);
        assert_eq!(exit_code(SignalKind::interrupt()), 130);
    }
}
