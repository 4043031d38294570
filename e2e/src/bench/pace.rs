//! Load at a rate, whatever becomes of it.

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::time::Instant;

use super::metronome::Metronome;

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
        let mut moments = Metronome::start().ticks(self.per_second, self.count);
        let (mut calls, mut made) = (FuturesUnordered::new(), Vec::new());
        loop {
            // Each is begun at its moment: to make all of them before would take the time of the first ones.
            tokio::select! {
                biased;
                moment = moments.recv() => {
                    let Some((number, due)) = moment else { break };
                    let call = act(number);
                    calls.push(async move { (due, call.await) });
                }
                Some(call) = calls.next(), if !calls.is_empty() => made.push(call),
            }
        }
        made.extend(calls.collect::<Vec<_>>().await);
        made
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_slow_call_delays_no_other_and_none_comes_early() {
        let slow = Duration::from_millis(500);
        let begun = Instant::now();
        let act = async |number| {
            let made = Instant::now();
            tokio::time::sleep(slow).await;
            (number, made)
        };
        let mut calls = Pace { per_second: 100, count: 20 }.run(act).await;
        assert!(begun.elapsed() < 20 * slow, "side by side");
        calls.sort_unstable();
        assert_eq!(calls.iter().map(|(_, (number, _))| *number).collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
        assert!(calls.iter().all(|(due, (_, made))| due <= made));
        let first = calls[0].0;
        assert_eq!(calls[19].0 - first, Duration::from_millis(190));
    }
}
