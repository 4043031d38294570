//! A place where calls are held up until a test lets them go on.

use std::sync::Arc;

use async_trait::async_trait;
use croft_front::Error;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::hook::{Call, Hook, Made};

/// Shut at first. All of its clones are one gate.
#[derive(Clone)]
pub(crate) struct Gate {
    /// How many have come, less those that somebody has heard of.
    came: Arc<Semaphore>,
    opened: CancellationToken,
}

impl Default for Gate {
    fn default() -> Self {
        Self { came: Arc::new(Semaphore::new(0)), opened: CancellationToken::new() }
    }
}

impl Gate {
    /// Waits until it is open.
    pub(crate) async fn pass(&self) {
        self.came.add_permits(1);
        self.opened.cancelled().await;
    }

    /// Until one has come to it, of whom nobody has heard yet.
    pub(crate) async fn reached(&self) {
        self.came.acquire().await.unwrap().forget();
    }

    /// Lets all go on, also those who come later.
    pub(crate) fn open(&self) {
        self.opened.cancel();
    }

    /// Stands before each call that is meant.
    pub(crate) fn before(&self, is_meant: fn(&Call<'_>) -> bool) -> impl Hook + use<> {
        Held { gate: self.clone(), is_meant, is_made: false }
    }

    /// Stands between each call that is meant and its answer.
    pub(crate) fn after(&self, is_meant: fn(&Call<'_>) -> bool) -> impl Hook + use<> {
        Held { gate: self.clone(), is_meant, is_made: true }
    }
}

struct Held {
    gate: Gate,
    is_meant: fn(&Call<'_>) -> bool,
    is_made: bool,
}

#[async_trait]
impl Hook for Held {
    async fn around(&self, call: Call<'_>, made: Made<'_>) -> Result<(), Error> {
        if !(self.is_meant)(&call) {
            return made.await;
        }
        if self.is_made {
            let made = made.await;
            self.gate.pass().await;
            return made;
        }
        self.gate.pass().await;
        made.await
    }
}
