//! What is counted across replicas while it happens: what was let through in the last while, and what is spent and reserved of each
//! budget. One call asks for all of it, and gets all of it or nothing.
//!
//! The ledger in PostgreSQL is what counts; here is a copy of its sums that is quick to ask, and what is not in it yet: the
//! reservations of calls that are running. A sum comes with its version, which grows with every change of the ledger, and an older
//! one takes the place of a newer one only where a replica insists. So it does not matter in which order replicas tell what they
//! read, whether they tell it twice, or not at all: the next one makes up for it.

pub mod guard;
pub mod memory;
pub mod redis;

use std::time::Duration;

use async_trait::async_trait;
use croft_proto::id::TenantId;

use crate::error::Error;

/// The largest number that every store of counters holds exactly; what is beyond is taken for it. In billionths of a dollar, nine
/// million dollars.
pub const LARGEST: i64 = (1 << 53) - 1;

/// A sliding window: in each stretch of time as long as `span`, at most `limit` is let through. Exact to a millisecond, which also
/// bounds what is kept: 60,000 moments for a minute.
///
/// An amount that is larger than the limit is let through when there is nothing else in the window: else it never could be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Unique in the tenant; no white space.
    pub name: String,
    pub limit: i64,
    pub span: Duration,
    pub amount: i64,
    /// The amount is an estimate, which [`Counters::settle`] corrects.
    pub settles: bool,
}

/// A budget in one stretch of time, of which an ask reserves its cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// Unique in the tenant; no white space.
    pub key: String,
    /// What spent and reserved together must not pass; `None` counts without a limit.
    pub nano_usd: Option<i64>,
    pub tokens: Option<i64>,
    /// How long the copy is kept when nobody asks for it.
    pub keep: Duration,
    /// What the ledger says, if it was asked.
    pub ledger: Option<Ledger>,
    /// Where a newer word is known, and in doubt, this one holds all the same: the ledger has gone back.
    pub insists: bool,
}

/// The ledger's sum of one [`Bound`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Grows with every change: of two, the one with the larger version is the newer.
    pub version: i64,
    pub nano_usd: i64,
    pub tokens: i64,
}

/// What a call wants before it may begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    pub tenant: TenantId,
    /// Unique for all time; no white space. Asked again, it is answered as before.
    pub id: String,
    /// The reservation is given up when nobody has said a word about it for so long.
    pub ttl: Duration,
    pub nano_usd: i64,
    pub tokens: i64,
    pub windows: Vec<Window>,
    pub bounds: Vec<Bound>,
}

/// What is spent and reserved of a [`Bound`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    pub spent: Amount,
    /// By calls that are running, the one that asks included.
    pub reserved: Amount,
}

/// Money and tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    pub nano_usd: i64,
    pub tokens: i64,
}

/// What an [`Ask`] is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// All windows and bounds have taken it. The standings are in the order of the bounds.
    Granted(Vec<Standing>),
    /// This window is full, and has room again after so long at the earliest; of several, the one that takes longest.
    Full { window: usize, retry_after: Duration },
    /// This bound has no room for it.
    Spent { bound: usize, standing: Standing },
    /// What the ledger says of these bounds is not known, or may be out of date: ask again with it.
    Unknown(Vec<usize>),
}

/// A verdict, and when it was given by the clock that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub at_ms: i64,
    pub verdict: Verdict,
}

/// A call that is over, and what it has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    pub tenant: TenantId,
    /// Of the ask.
    pub id: String,
    /// What it used; `None` when nothing is known of it, and the estimate stands.
    pub tokens: Option<i64>,
    /// With the ledger's word since, where it could be had.
    pub bounds: Vec<Bound>,
}

/// The counters.
#[async_trait]
pub trait Counters: Send + Sync {
    /// Takes an amount in each window and a reservation in each bound, or does nothing.
    async fn admit(&self, ask: &Ask) -> Result<Answer, Error>;

    /// Says that a granted ask is still running, and takes its reservation again should it be gone; also in bounds that it did not
    /// have when it was granted. Answers [`Verdict::Granted`] or [`Verdict::Unknown`].
    async fn hold(&self, ask: &Ask) -> Result<Answer, Error>;

    /// Gives the reservation up, if it is still there, and takes the ledger's word over. Of its bounds that the settlement does not
    /// tell the ledger's word of, that is asked for anew. Safe to repeat. The standings are in the order of the bounds.
    async fn settle(&self, settlement: &Settlement) -> Result<Vec<Standing>, Error>;

    /// Whether they answer, for whoever has nothing to ask. Counters of this process always do.
    async fn ping(&self) -> Result<(), Error> {
        Ok(())
    }
}
