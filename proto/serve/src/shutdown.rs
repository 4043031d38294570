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

/// Not ready first, so that nobody new is sent here; then no more intake; then waits for what has begun, `grace` at
/// most. Returns how many tasks are left.
pub async fn in_order(readiness: &Readiness, tasks: &Tasks, grace: Duration) -> usize {
    readiness.check("shutdown").not_ready("shutting down");
    tasks.shutdown(grace).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_is_sent_here_any_more_by_the_time_intake_stops() {
        let (tasks, readiness) = (Tasks::new(), Readiness::new());
        let (stopping, seen) = (tasks.stopping(), readiness.clone());
        let intake = tasks.spawn("intake", async move {
            stopping.cancelled().await;
            seen.problems()
        });
        assert_eq!(in_order(&readiness, &tasks, Duration::from_mins(1)).await, 0);
        assert_eq!(intake.await.unwrap(), ["shutdown: shutting down"]);
    }

    #[test]
    fn exit_codes_are_the_shells() {
        assert_eq!(exit_code(SignalKind::terminate()), 143);
        assert_eq!(exit_code(SignalKind::interrupt()), 130);
    }
}
