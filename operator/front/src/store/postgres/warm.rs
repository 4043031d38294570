//! The connections that were used last, for the next call. The pool hands out the one that has rested longest, so that each of a front
//! with little to do is cold when its turn comes: what its server process knows has left the caches of the processor. See BENCHMARKS.md.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::PgPool;
use sqlx::pool::PoolConnection;
use tokio::time::Instant;

use super::doubts::{self, Doubts};

/// One in so many of the pool's connections may be kept, and so many at most: nobody else can use them meanwhile.
const SHARE: u32 = 4;
const KEPT_MAX: u32 = 4;
/// How long one may stay away from the pool, which ends those that are old.
const AWAY_MAX: Duration = Duration::from_mins(1);

/// Clones share it.
#[derive(Clone)]
pub(super) struct Warm {
    pool: PgPool,
    doubts: Doubts,
    kept_max: usize,
    waiting: Arc<Stack>,
}

#[derive(Default)]
struct Stack(Mutex<Vec<Waiting>>);

/// What is left when nobody is there to use it is closed where it is: on its way back to the pool it would need a runtime.
impl Drop for Stack {
    fn drop(&mut self) {
        for waiting in self.lock().drain(..) {
            drop(waiting.connection.connection.detach());
        }
    }
}

impl Stack {
    fn lock(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Waiting {
    connection: Lent,
    used_at: Instant,
}

/// A connection, and since when it is away from the pool. Dropped, it goes back there.
pub(super) struct Lent {
    pub(super) connection: PoolConnection<sqlx::Postgres>,
    since: Instant,
}

impl Warm {
    pub(super) fn new(pool: PgPool, connections_max: u32, doubts: Doubts) -> Self {
        let kept_max = (connections_max / SHARE).min(KEPT_MAX) as usize;
        Self { pool, doubts, kept_max, waiting: Arc::default() }
    }

    /// The connection that was used last, or one of the pool's.
    pub(super) async fn acquire(&self) -> Result<Lent, sqlx::Error> {
        while let Some(Waiting { connection: mut lent, used_at }) = self.take() {
            if !self.doubts.doubt(used_at.elapsed()) || doubts::ping(&mut lent.connection).await.is_ok() {
                return Ok(lent);
            }
            // On its way back to the pool it would be waited for.
            lent.connection.close_on_drop();
        }
        Ok(Lent { connection: self.pool.acquire().await?, since: Instant::now() })
    }

    /// Keeps one on which all went well.
    pub(super) fn keep(&self, connection: Lent) {
        let now = Instant::now();
        let is_short = self.is_short();
        let mut waiting = self.waiting.lock();
        if !is_short && waiting.len() < self.kept_max && now - connection.since < AWAY_MAX {
            waiting.push(Waiting { connection, used_at: now });
        }
    }

    /// How many are away from the pool, and at rest.
    pub(super) fn kept(&self) -> usize {
        self.waiting.lock().len()
    }

    /// For whoever is about to take one of the pool's: when it has none that rests, those that are kept go back to it.
    pub(super) fn give_way(&self) {
        if self.is_short() {
            for Waiting { mut connection, used_at } in self.waiting.lock().drain(..) {
                if self.doubts.doubt(used_at.elapsed()) {
                    connection.connection.close_on_drop();
                }
            }
        }
    }

    /// Others may wait for a connection: then nobody overtakes them, and none is kept from them.
    fn is_short(&self) -> bool {
        self.pool.num_idle() == 0
    }

    fn take(&self) -> Option<Waiting> {
        self.give_way();
        self.waiting.lock().pop()
    }
}

impl fmt::Debug for Warm {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Warm").field("kept_max", &self.kept_max).finish_non_exhaustive()
    }
}
