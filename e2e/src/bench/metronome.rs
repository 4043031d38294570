//! Ticks that come when they are due. The runtime's timers have a grain of a millisecond: by those, ten calls of ten thousand a second
//! would come at once, and so would the tokens of ten streams.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::Instant;

/// A thread that keeps the time for many. It ends with the last of its users and their ticks.
#[derive(Clone)]
pub struct Metronome {
    join: Sender<Beat>,
}

/// What is done at a tick, with its number and the moment at which it was due. False ends it.
type Act = Box<dyn FnMut(u32, Instant) -> bool + Send>;

/// The next tick of somebody: they are in the order in which they are due.
struct Beat {
    due: Instant,
    number: u32,
    begun: Instant,
    per_second: u32,
    count: u32,
    act: Act,
}

impl Metronome {
    pub fn start() -> Self {
        let (join, joining) = mpsc::channel();
        thread::spawn(move || keep_time(&joining));
        Self { join }
    }

    /// So many ticks, at a rate, from now on: each with its number, at the moment at which it is due.
    pub fn ticks(&self, per_second: u32, count: u32) -> UnboundedReceiver<(u32, Instant)> {
        let (tell, ticks) = unbounded_channel();
        // One that is not listened to any more ends.
        self.each(per_second, count, move |number, due| tell.send((number, due)).is_ok());
        ticks
    }

    /// Does something at each of so many ticks, on the thread itself: to wake another one for it may cost more than it does. Short, then.
    pub fn each(&self, per_second: u32, count: u32, act: impl FnMut(u32, Instant) -> bool + Send + 'static) {
        let begun = Instant::now();
        if count > 0 {
            // The thread is there for as long as this is.
            let _ = self.join.send(Beat { due: begun, number: 0, begun, per_second, count, act: Box::new(act) });
        }
    }
}

fn keep_time(joining: &Receiver<Beat>) {
    let mut beats: BinaryHeap<Reverse<Beat>> = BinaryHeap::new();
    loop {
        let joined = match beats.peek() {
            Some(Reverse(next)) => joining.recv_timeout(next.due.saturating_duration_since(Instant::now())),
            None => joining.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match joined {
            Ok(beat) => beats.push(Reverse(beat)),
            Err(RecvTimeoutError::Disconnected) if beats.is_empty() => return,
            // Nobody can join any more: those that are there are still waited for.
            Err(RecvTimeoutError::Disconnected) => {
                if let Some(Reverse(next)) = beats.peek() {
                    thread::sleep(next.due.saturating_duration_since(Instant::now()));
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        while let Some(Reverse(beat)) = beats.peek()
            && beat.due <= Instant::now()
            && let Some(Reverse(mut beat)) = beats.pop()
        {
            if (beat.act)(beat.number, beat.due) && beat.number + 1 < beat.count {
                beat.number += 1;
                beat.due = beat.begun + Duration::from_secs(1) * beat.number / beat.per_second;
                beats.push(Reverse(beat));
            }
        }
    }
}

impl Ord for Beat {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.due.cmp(&other.due)
    }
}

impl PartialOrd for Beat {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Beat {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}

impl Eq for Beat {}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_hears_its_own_ticks_and_none_comes_early() {
        let metronome = Metronome::start();
        let (mut quick, mut slow) = (metronome.ticks(1_000, 30), metronome.ticks(100, 3));
        drop(metronome);
        let (mut quick_heard, mut slow_heard) = (Vec::new(), Vec::new());
        loop {
            tokio::select! {
                Some(tick) = quick.recv() => quick_heard.push((tick, Instant::now())),
                Some(tick) = slow.recv() => slow_heard.push((tick, Instant::now())),
                else => break,
            }
        }
        for (heard, count, apart) in [(quick_heard, 30, 1), (slow_heard, 3, 10)] {
            assert_eq!(
                heard.iter().map(|((number, _), _)| *number).collect::<Vec<_>>(),
                (0..count).collect::<Vec<_>>()
            );
            assert!(heard.iter().all(|((_, due), at)| at >= due));
            let ((_, first), ((_, last), _)) = (heard[0].0, heard[heard.len() - 1]);
            assert_eq!(last - first, Duration::from_millis(u64::from(count - 1) * apart));
        }
    }

    #[tokio::test]
    async fn who_does_not_listen_any_more_is_forgotten() {
        let metronome = Metronome::start();
        drop(metronome.ticks(1_000, u32::MAX));
        let mut other = metronome.ticks(1_000, 5);
        let mut heard = 0;
        while other.recv().await.is_some() {
            heard += 1;
        }
        assert_eq!(heard, 5);
    }
}
