//! Load at a rate, whatever becomes of it.

use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::time::Instant;

/// So many a second, for so long.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    pub per_second: u32,
    pub count: u32,
}

impl Pace {
    /// Calls `act` at its moments, each with its number. What is slow delays nothing that comes after it: the answers
    /// say when a call was due, so that time spent waiting for a turn counts too.
    pub async fn run<T>(self, act: impl AsyncFn(u32) -> T) -> Vec<(Instant, T)> {
        let begun = Instant::now();
        let (mut calls, mut made) = (FuturesUnordered::new(), Vec::new());
        for number in 0..self.count {
            let due = begun + Duration::from_secs(1) * number / self.per_second;
            // Each is begun at its moment: to make all of them before would take the time of the first ones.
            loop {
                tokio::select! {
                    biased;
                    () = tokio::time::sleep_until(due) => break,
                    Some(call) = calls.next(), if !calls.is_empty() => made.push(call),
                }
            }
            let call = act(number);
            calls.push(async move { (due, call.await) });
        }
        made.extend(calls.collect::<Vec<_>>().await);
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_slow_call_delays_no_other() {
        let begun = Instant::now();
        let calls = Pace { per_second: 10, count: 20 }.run(async |_| tokio::time::sleep(Duration::from_secs(5)).await);
        let due: Vec<_> = calls.await.into_iter().map(|(due, ())| due - begun).collect();
        assert_eq!(due.len(), 20);
        assert_eq!(due[19], Duration::from_millis(1_900));
        assert_eq!(begun.elapsed(), Duration::from_millis(6_900));
    }
}
