//! Calls that wait for room which running calls hold: what those reserved is more than what they will have used, and a sum of the
//! ledger may count one that is still reserved. Of each budget one call at a time looks whether it fits by now, so that a thousand
//! that wait ask no more often than one does.

use std::sync::Arc;
use std::time::Duration;

use croft_proto::id::TenantId;
use moka::future::Cache;
use tokio::sync::{Mutex, Notify, OwnedMutexGuard};
use tokio::time::{Instant, timeout_at};

/// Between two looks, at first and at most. What is settled by this replica ends a pause at once; of what others settle nobody tells.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// Budgets that are waited for. At the bound one's newcomers no longer stand behind those who came before them, which costs looks.
const QUEUES_MAX: u64 = 10_000;

/// The queue of each budget, by its tenant and [`super::Account::key`]; cheap to clone.
#[derive(Clone)]
pub(super) struct Queues {
    queues: Cache<(TenantId, String), Arc<Queue>>,
}

#[derive(Default)]
struct Queue {
    head: Arc<Mutex<()>>,
    settled: Notify,
}

/// The head of a queue, which looks. Dropped, the next one's turn has come.
pub(super) struct Head {
    key: String,
    queue: Arc<Queue>,
    pause: Duration,
    _turn: OwnedMutexGuard<()>,
}

impl Default for Queues {
    fn default() -> Self {
        Self { queues: Cache::builder().max_capacity(QUEUES_MAX).time_to_idle(Duration::from_mins(10)).build() }
    }
}

impl Queues {
    /// Waits until it is time to look again at this budget: behind all that wait for it already, or, for the head of them, after a
    /// pause. `None` when the time is over before.
    pub(super) async fn wait(&self, tenant: TenantId, key: &str, head: Option<Head>, until: Instant) -> Option<Head> {
        if let Some(mut head) = head.filter(|head| head.key == key) {
            return head.pause(until).await.then_some(head);
        }
        let queue = self.queues.get_with((tenant, key.to_owned()), async { Arc::default() }).await;
        let turn = timeout_at(until, Arc::clone(&queue.head).lock_owned()).await.ok()?;
        Some(Head { key: key.to_owned(), queue, pause: PAUSE_MIN, _turn: turn })
    }

    /// A call under this budget was settled here.
    pub(super) async fn settled(&self, tenant: TenantId, key: String) {
        if let Some(queue) = self.queues.get(&(tenant, key)).await {
            queue.settled.notify_one();
        }
    }
}

impl Head {
    async fn pause(&mut self, until: Instant) -> bool {
        let now = Instant::now();
        let settled = timeout_at(until.min(now + self.pause), self.queue.settled.notified()).await;
        self.pause = (2 * self.pause).min(PAUSE_MAX);
        settled.is_ok() || Instant::now() < until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn one_looks_and_the_next_when_it_is_done() {
        let (queues, tenant) = (Queues::default(), TenantId::generate());
        let until = Instant::now() + SOON;
        let first = queues.wait(tenant, "day", None, until).await.expect("nobody else waits");
        assert!(queues.wait(tenant, "month", None, until).await.is_some(), "another budget's queue is another");
        let second = queues.wait(tenant, "day", None, until);
        tokio::pin!(second);
        assert!(timeout_at(Instant::now() + SOON / 2, &mut second).await.is_err(), "it stands behind the first");
        drop(first);
        let second = second.await.expect("its turn has come");
        assert!(queues.wait(tenant, "day", None, until).await.is_none(), "the time is over");
        drop(second);
    }

    #[tokio::test(start_paused = true)]
    async fn the_head_looks_when_something_was_settled_and_now_and_then() {
        let (queues, tenant) = (Queues::default(), TenantId::generate());
        let began = Instant::now();
        let until = began + SOON;
        let mut head = queues.wait(tenant, "day", None, until).await;
        // Told of before anybody pauses, it is not lost.
        queues.settled(tenant, "day".into()).await;
        head = queues.wait(tenant, "day", head, until).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        let mut looks = 0;
        while head.is_some() {
            head = queues.wait(tenant, "day", head, until).await;
            looks += 1;
        }
        assert_eq!(began.elapsed().as_millis() / 10, SOON.as_millis() / 10, "to the end, and no further");
        assert!((10..30).contains(&looks), "{looks} looks in {SOON:?}");
    }
}
