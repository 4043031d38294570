//! Transactions of one call: a function of the database does all that there is to do, and the server begins and commits by itself.

use futures::TryStreamExt;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{Column, Row, TypeInfo, ValueRef};

use super::{Postgres, failed, was_idle_too_long};
use crate::error::Error;

/// Ends what somebody has left open, whatever state it is in.
const END_OF_LEFTOVER: &str = "rollback";

/// What a connection may have carried and be kept for the next call. One that carried more keeps buffers of that size, and goes back to the
/// pool, which shrinks them.
const CARRIED_MAX: usize = 64 * 1024;

/// A call with its arguments.
pub(super) type Call<'q> = Query<'q, sqlx::Postgres, PgArguments>;

impl Postgres {
    /// Calls, and waits for the commit. The rows that it told. `bytes` is how large the arguments are, roughly.
    ///
    /// A server that went while the connection was idle says so before anything else, and then nothing was done: the call is made
    /// again, on the next connection. So it is where somebody gave up while a transaction began: the pool takes the connection back
    /// with that transaction open, which is ended first. A server that is gone without a word may have committed; then nobody knows, and
    /// connections that have been idle since are looked at before their next use. So it is with one that says nothing for
    /// [`CALL_MAX`](super::CALL_MAX).
    pub(super) async fn at_once<'q>(&self, bytes: usize, call: impl Fn() -> Call<'q>) -> Result<Vec<PgRow>, Error> {
        let mut tries = 0;
        loop {
            let mut lent = self.warm.acquire().await.map_err(failed)?;
            let mut rows = Vec::new();
            let told = call().fetch(&mut *lent.connection).try_for_each(|row| {
                rows.push(row);
                futures::future::ready(Ok(()))
            });
            let told = self.in_time(told).await.flatten();
            let Err(error) = told else {
                if bytes.max(weight(&rows)) <= CARRIED_MAX {
                    self.warm.keep(lent);
                }
                return Ok(rows);
            };
            tries += 1;
            if rows.is_empty() && tries <= self.connections_max {
                if is_left_open(&error) {
                    let end = sqlx::raw_sql(END_OF_LEFTOVER).execute(&mut *lent.connection);
                    self.in_time(end).await.flatten().map_err(failed)?;
                    continue;
                }
                if matches!(error, sqlx::Error::Database(_)) && was_idle_too_long(&error) {
                    continue;
                }
            }
            if matches!(error, sqlx::Error::Io(_)) {
                self.doubts.raise();
            }
            return Err(failed(error));
        }
    }
}

/// How large the rows are: what is not of bytes is short.
fn weight(rows: &[PgRow]) -> usize {
    let Some(first) = rows.first() else { return 0 };
    let of_bytes = first.columns().iter().filter(|column| column.type_info().name() == "BYTEA");
    let places: Vec<_> = of_bytes.map(Column::ordinal).collect();
    let length = |row: &PgRow, place| match row.try_get_raw(place) {
        Ok(value) if !value.is_null() => value.as_bytes().map_or(0, <[u8]>::len),
        Ok(_) | Err(_) => 0,
    };
    rows.iter().flat_map(|row| places.iter().map(move |place| length(row, *place))).sum()
}

/// The connection's transaction is somebody else's, good or broken.
pub(super) fn is_left_open(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(refusal) => refusal.code().is_some_and(|code| code == "25001" || code == "25P02"),
        _ => false,
    }
}
