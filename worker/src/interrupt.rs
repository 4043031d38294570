//! What ends a step from outside, wherever it is.

use std::sync::{Arc, OnceLock};

use croft_proto::v1::StopReason;
use tokio_util::sync::CancellationToken;

/// Why a step must end now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// The turn ends with this reason, and the front wants to hear how.
    Stop(StopReason),
    /// Nobody listens any more: the front is gone, or a newer step of the session took over.
    HungUp,
}

/// A bell that rings once. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Interrupt {
    rung: CancellationToken,
    why: Arc<OnceLock<Why>>,
}

impl Interrupt {
    /// Ends the step. The first reason stands.
    pub(crate) fn raise(&self, why: Why) {
        // The reason first: whoever hears the bell looks for it.
        if self.why.set(why).is_ok() {
            self.rung.cancel();
        }
    }

    /// The reason, if the bell has rung.
    pub(crate) fn raised(&self) -> Option<Why> {
        self.why.get().copied()
    }

    /// Resolves when the bell rings.
    pub(crate) async fn wait(&self) -> Why {
        self.rung.cancelled().await;
        self.raised().unwrap_or(Why::HungUp)
    }

    /// What `future` comes to, unless the bell rings first.
    pub(crate) async fn or<T>(&self, future: impl Future<Output = T>) -> Result<T, Why> {
        tokio::select! {
            biased;
            why = self.wait() => Err(why),
            outcome = future => Ok(outcome),
        }
    }

    /// As [`Self::or`], but what is ready at once counts, though the bell has rung.
    pub(crate) async fn or_unready<T>(&self, future: impl Future<Output = T>) -> Result<T, Why> {
        tokio::select! {
            biased;
            outcome = future => Ok(outcome),
            why = self.wait() => Err(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn behind_the_bell_comes_only_what_was_ready() {
        let (interrupt, why) = (Interrupt::default(), Why::Stop(StopReason::Interrupted));
        interrupt.raise(why);
        assert_eq!(interrupt.or(ready(7)).await, Err(why));
        assert_eq!(interrupt.or_unready(ready(7)).await, Ok(7));
        assert_eq!(interrupt.or_unready(pending::<u8>()).await, Err(why));
    }
}
