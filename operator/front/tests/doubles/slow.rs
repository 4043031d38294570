//! A store that takes its time.

use std::time::Duration;

use async_trait::async_trait;
use croft_front::Error;

use super::hook::{Call, Hook, Made};

/// Calls that are meant take so much longer.
pub(crate) struct Slow {
    pub(crate) is_meant: fn(&Call<'_>) -> bool,
    pub(crate) by: Duration,
}

#[async_trait]
impl Hook for Slow {
    async fn around(&self, call: Call<'_>, made: Made<'_>) -> Result<(), Error> {
        if (self.is_meant)(&call) {
            tokio::time::sleep(self.by).await;
        }
        made.await
    }
}
