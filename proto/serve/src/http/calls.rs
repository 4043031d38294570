//! The calls of a port that are under way, and whom each of them waits for: us, or its caller.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How often they are looked at, by who waits for them.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Of a state: the call waits for us, for its answer or for the next part of that.
const IS_OURS: u64 = 1;

/// Of one port. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Calls {
    ledger: Arc<Mutex<Ledger>>,
}

#[derive(Default)]
struct Ledger {
    next_id: u64,
    states: HashMap<u64, Arc<AtomicU64>>,
}

/// A call, until it is dropped.
pub(crate) struct UnderWay {
    calls: Calls,
    id: u64,
    /// How often its answer was asked for more, above [`IS_OURS`].
    state: Arc<AtomicU64>,
}

impl Calls {
    /// One more, which waits for its answer.
    pub(crate) fn begin(&self) -> UnderWay {
        let state = Arc::new(AtomicU64::new(IS_OURS));
        let mut ledger = self.ledger();
        let id = ledger.next_id;
        ledger.next_id += 1;
        ledger.states.insert(id, Arc::clone(&state));
        drop(ledger);
        UnderWay { calls: self.clone(), id, state }
    }

    /// Resolves once none of the calls has asked for more of its answer for so long, though there is more, or there has been no call for so long:
    /// what is left waits for callers who take nothing. What waits for a caller's window is not even asked:
    /// <https://datatracker.ietf.org/doc/html/rfc9113#section-5.2>. A frame is one part of an answer, and behind it no more is asked for
    /// until nearly all of it is sent: `unread_max` is above what a slow caller takes for a large one.
    pub(crate) async fn stuck(&self, unread_max: Duration) {
        let mut seen: HashMap<u64, (u64, Instant)> = HashMap::new();
        let mut last_at = Instant::now();
        loop {
            let now = Instant::now();
            seen = self
                .states()
                .map(|(id, state)| match seen.get(&id) {
                    Some((before, since)) if *before == state => (id, (state, *since)),
                    _ => (id, (state, now)),
                })
                .collect();
            let is_stuck = |(state, since): &(u64, Instant)| state & IS_OURS == 0 && now - *since >= unread_max;
            if !seen.is_empty() {
                last_at = now;
            }
            if seen.values().all(is_stuck) && (!seen.is_empty() || now - last_at >= unread_max) {
                return;
            }
            sleep(LOOK_EVERY).await;
        }
    }

    fn states(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        let states: Vec<_> =
            self.ledger().states.iter().map(|(id, state)| (*id, state.load(Ordering::Relaxed))).collect();
        states.into_iter()
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UnderWay {
    /// There is an answer for the caller to take.
    pub(crate) fn answered(&self) {
        self.state.store(0, Ordering::Relaxed);
    }

    /// The answer was asked for more, and had some or not.
    pub(crate) fn polled(&self, is_pending: bool) {
        // Nobody else writes it.
        let polls = (self.state.load(Ordering::Relaxed) | IS_OURS) + 1;
        self.state.store(polls | u64::from(is_pending), Ordering::Relaxed);
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.calls.ledger().states.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const UNREAD_MAX: Duration = Duration::from_secs(5);

    async fn are_stuck(calls: &Calls) -> bool {
        timeout(2 * UNREAD_MAX, calls.stuck(UNREAD_MAX)).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_left_when_no_call_is_waits_for_callers_who_take_nothing() {
        let (calls, began) = (Calls::default(), Instant::now());
        let last = async {
            sleep(UNREAD_MAX / 2).await;
            let call = calls.begin();
            sleep(UNREAD_MAX).await;
            drop(call);
        };
        tokio::join!(last, calls.stuck(UNREAD_MAX));
        // By the look before it ended.
        assert!(began.elapsed() + LOOK_EVERY >= UNREAD_MAX * 5 / 2, "after {:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn calls_are_stuck_when_each_has_something_that_its_caller_does_not_take() {
        let calls = Calls::default();
        let (running, stuck) = (calls.begin(), calls.begin());
        stuck.answered();
        assert!(!are_stuck(&calls).await, "one runs");
        running.answered();
        assert!(are_stuck(&calls).await);
        running.polled(true);
        assert!(!are_stuck(&calls).await, "one has nothing for its caller");
        running.polled(false);
        assert!(are_stuck(&calls).await);
        let reading = async {
            loop {
                sleep(UNREAD_MAX / 2).await;
                running.polled(false);
            }
        };
        tokio::select! {
            stuck = are_stuck(&calls) => assert!(!stuck, "one is slow"),
            () = reading => {}
        }
        drop(running);
        assert!(are_stuck(&calls).await);
    }
}
