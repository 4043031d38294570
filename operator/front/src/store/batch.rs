//! How much is asked of a store at a time, where it may turn out to be too much.

use std::error::Error as _;

use crate::error::Error;

/// So many transactions in a row must fit before one is made twice as large again: one that is too large takes all the time that a statement has.
const FIT_MIN: u32 = 8;
/// SQLSTATE of who waited for a lock for too long.
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// Rows, or sessions, of one transaction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Batch {
    size: u32,
    size_max: u32,
    /// In a row, since the size changed.
    fit: u32,
}

impl Batch {
    pub(crate) fn of(size: u32) -> Self {
        Self { size, size_max: size, fit: 0 }
    }

    pub(crate) fn size(self) -> u32 {
        self.size
    }

    /// Whether half as much is worth a try after this error: what takes the store longer than it gives a statement would fail for ever,
    /// as the next try begins with the same rows. Who waited for a lock waits no shorter with fewer rows.
    pub(crate) fn halves_for(&mut self, error: &Error) -> bool {
        let halves = self.size > 1 && matches!(error, Error::Unavailable { .. }) && !is_lock_timeout(error);
        if halves {
            self.size /= 2;
            self.fit = 0;
        }
        halves
    }

    /// A transaction of this size came to its end. After some of them the next are twice as large, up to the size at the beginning.
    pub(crate) fn fitted(&mut self) {
        self.fit += 1;
        if self.fit >= FIT_MIN {
            self.size = self.size.saturating_mul(2).min(self.size_max);
            self.fit = 0;
        }
    }
}

fn is_lock_timeout(error: &Error) -> bool {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(sqlx::Error::Database(refusal)) = error.downcast_ref() {
            return refusal.code().is_some_and(|code| code == LOCK_NOT_AVAILABLE);
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_too_much_once_is_tried_again_when_less_has_fitted_for_a_while() {
        let mut batch = Batch::of(10);
        assert!(batch.halves_for(&Error::unavailable("postgres", anyhow::anyhow!("statement timeout"))));
        assert!(batch.halves_for(&Error::unavailable("postgres", anyhow::anyhow!("statement timeout"))));
        let mut sizes = Vec::new();
        for _ in 0..4 * FIT_MIN {
            sizes.push(batch.size());
            batch.fitted();
        }
        sizes.dedup();
        assert_eq!(sizes, [2, 4, 8, 10]);
        assert!(!batch.halves_for(&Error::invalid("records", "are refused")));
        assert_eq!(batch.size(), 10);
    }
}
