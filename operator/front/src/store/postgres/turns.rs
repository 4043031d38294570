//! The first and the last word of turns in Postgres: appends that change the lease as well, stored in groups as all are.

use async_trait::async_trait;
use croft_proto::id::SessionId;
use croft_proto::v1::SessionEvent;
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::append::Prepared;
use super::grouped_log::GroupedLog;
use super::{events, leases, row};
use crate::error::Error;
use crate::events::log::{Append, Appended, NewEvent};
use crate::store::projection;
use crate::turn::store::{Begin, Begun, Ended, Opened, TurnStore};

/// What an append does to the lease.
pub(super) enum LeaseChange {
    Keep,
    Take {
        holder: String,
        ttl_micros: i64,
    },
    /// Unless a message waits.
    Release,
}

/// What became of an append.
pub(super) enum Stored {
    New {
        events: Vec<SessionEvent>,
        lease: LeaseNow,
    },
    Existing {
        first_seq: u64,
    },
    /// It was to take a lease that somebody holds.
    Busy,
}

/// How an append left the lease.
pub(super) enum LeaseNow {
    AsItWas,
    Taken(Box<Opened>),
    Released,
}

impl LeaseChange {
    pub(super) fn holder(&self) -> Option<&str> {
        match self {
            Self::Take { holder, .. } => Some(holder),
            Self::Keep | Self::Release => None,
        }
    }

    pub(super) fn ttl_micros(&self) -> Option<i64> {
        match self {
            Self::Take { ttl_micros, .. } => Some(*ttl_micros),
            Self::Keep | Self::Release => None,
        }
    }

    pub(super) fn releases(&self) -> bool {
        matches!(self, Self::Release)
    }

    /// Reads what the statement of an append says of it.
    pub(super) fn stored(self, session: SessionId, events: Vec<NewEvent>, row: &PgRow) -> Result<Stored, sqlx::Error> {
        let base: i64 = row.try_get("base")?;
        let epoch: Option<i64> = row.try_get("lease_epoch")?;
        let mut events = projection::number(session, base.cast_unsigned() + 1, events);
        let lease = match self {
            Self::Release if epoch.is_none() => LeaseNow::Released,
            Self::Keep | Self::Release => LeaseNow::AsItWas,
            Self::Take { .. } => {
                let newest: Option<i64> = row.try_get("checkpoint_seq")?;
                LeaseNow::Taken(Box::new(Opened {
                    epoch: epoch.unwrap_or_default().cast_unsigned(),
                    events: std::mem::take(&mut events),
                    session: row::session(row)?,
                    checkpoint: newest.map(|_| events::checkpoint(row, "checkpoint_seq")).transpose()?,
                }))
            }
        };
        Ok(Stored::New { events, lease })
    }
}

impl Stored {
    /// Of an append that changes no lease.
    pub(super) fn appended(self) -> Result<Appended, Error> {
        match self {
            Self::New { events, .. } => Ok(Appended::New(events)),
            Self::Existing { first_seq } => Ok(Appended::Existing { first_seq }),
            Self::Busy => Err(Error::internal(anyhow::anyhow!("an append that wants no lease was refused one"))),
        }
    }
}

#[async_trait]
impl TurnStore for GroupedLog {
    async fn begin(&self, begin: Begin) -> Result<Begun, Error> {
        let Begin { message, holder, ttl } = begin;
        let take = LeaseChange::Take { holder, ttl_micros: leases::micros(ttl) };
        match self.store(Prepared::with(message, take)?).await? {
            Stored::New { lease: LeaseNow::Taken(opened), .. } => Ok(Begun::New(opened)),
            Stored::New { .. } => Err(Error::internal(anyhow::anyhow!("a turn began without a lease"))),
            Stored::Existing { first_seq } => Ok(Begun::Existing { first_seq }),
            Stored::Busy => Ok(Begun::Busy),
        }
    }

    async fn end(&self, last: Append) -> Result<Ended, Error> {
        match self.store(Prepared::with(last, LeaseChange::Release)?).await? {
            Stored::New { events, lease } => Ok(Ended { events, released: matches!(lease, LeaseNow::Released) }),
            Stored::Existing { .. } | Stored::Busy => {
                Err(Error::internal(anyhow::anyhow!("the end of a turn has a key")))
            }
        }
    }
}
