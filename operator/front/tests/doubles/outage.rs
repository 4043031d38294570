//! A store that is away, for some of its calls and for as long as a test will have it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use croft_front::Error;
use tokio::sync::Semaphore;

use super::hook::{Call, Hook, Made};

/// Over at first. All of its clones are one outage.
#[derive(Clone)]
pub(crate) struct Outage {
    /// How many calls are still to fail.
    left: Arc<AtomicUsize>,
    /// How many have failed, less those that somebody has heard of.
    failed: Arc<Semaphore>,
}

impl Default for Outage {
    fn default() -> Self {
        Self::of(0)
    }
}

impl Outage {
    /// Of so many calls, from now on.
    pub(crate) fn of(calls: usize) -> Self {
        Self { left: Arc::new(AtomicUsize::new(calls)), failed: Arc::new(Semaphore::new(0)) }
    }

    pub(crate) fn begin(&self) {
        self.left.store(usize::MAX, Ordering::SeqCst);
    }

    pub(crate) fn end(&self) {
        self.left.store(0, Ordering::SeqCst);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.left.load(Ordering::SeqCst) == 0
    }

    /// Until a call has failed of which nobody has heard yet.
    pub(crate) async fn met(&self) {
        self.failed.acquire().await.unwrap().forget();
    }

    /// Fails while it lasts; each time is one call of it.
    pub(crate) fn meet(&self) -> Result<(), Error> {
        if self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_err() {
            return Ok(());
        }
        self.failed.add_permits(1);
        Err(away())
    }

    /// Calls that are meant are not made.
    pub(crate) fn before(&self, is_meant: fn(&Call<'_>) -> bool) -> impl Hook + use<> {
        Away { outage: self.clone(), is_meant, is_made: false }
    }

    /// Calls that are meant are made, and nobody is told so.
    pub(crate) fn after(&self, is_meant: fn(&Call<'_>) -> bool) -> impl Hook + use<> {
        Away { outage: self.clone(), is_meant, is_made: true }
    }
}

/// What is told where nobody knows whether a call was made.
pub(crate) fn away() -> Error {
    Error::unavailable("postgres", anyhow::anyhow!("the connection was lost"))
}

struct Away {
    outage: Outage,
    is_meant: fn(&Call<'_>) -> bool,
    is_made: bool,
}

#[async_trait]
impl Hook for Away {
    async fn around(&self, call: Call<'_>, made: Made<'_>) -> Result<(), Error> {
        if !(self.is_meant)(&call) {
            return made.await;
        }
        if self.is_made {
            let made = made.await;
            return self.outage.meet().and(made);
        }
        self.outage.meet()?;
        made.await
    }
}
