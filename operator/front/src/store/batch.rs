//! How much is asked of a store at a time, where it may turn out to be too much.

use crate::error::Error;

/// Rows, or sessions, of one transaction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Batch {
    size: u32,
}

impl Batch {
    pub(crate) fn of(size: u32) -> Self {
        Self { size }
    }

    pub(crate) fn size(self) -> u32 {
        self.size
    }

    /// Whether half as much is worth a try after this error: what takes the store longer than it gives a statement would fail for ever,
    /// as the next try begins with the same rows.
    pub(crate) fn halves_for(&mut self, error: &Error) -> bool {
        let halves = self.size > 1 && matches!(error, Error::Unavailable { .. });
        if halves {
            self.size /= 2;
        }
        halves
    }
}
