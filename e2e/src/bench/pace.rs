//! Load at a rate, whatever becomes of it.

use std::thread;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc::{self, UnboundedReceiver};
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
        let mut moments = self.moments();
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

    /// Each call's number at the moment at which it is due. A thread tells: the runtime's timers have a grain of a millisecond, by
    /// which ten calls of ten thousand a second would come at once.
    fn moments(self) -> UnboundedReceiver<(u32, Instant)> {
        let (tell, moments) = mpsc::unbounded_channel();
        let begun = Instant::now();
        thread::spawn(move || {
            for number in 0..self.count {
                let due = begun + Duration::from_secs(1) * number / self.per_second;
                thread::sleep(due.saturating_duration_since(Instant::now()));
                if tell.send((number, due)).is_err() {
                    return;
                }
            }
        });
        moments
    }
}

#[cfg(test)]
mod tests {
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
