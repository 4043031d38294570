//! The stores in Postgres.
//!
//! The login role can do nothing by itself: every transaction begins by taking on a role, and, but for batches, one
//! tenant. Row security, forced on every table of tenants, holds it to that.

mod across;
mod append;
mod append_group;
mod at_once;
mod audit;
mod budgets;
pub mod connections;
mod doubts;
mod events;
mod grouped_log;
mod grouped_sessions;
mod groups;
mod keys;
mod leases;
mod models;
mod removal;
mod retention;
mod row;
mod sessions;
mod tenants;
mod time;
mod timed;
mod turns;
mod usage;
mod warm;

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use croft_proto::id::TenantId;
use croft_serve::Tasks;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection as _, PgPool};
use tokio::time::timeout;

pub(crate) use models::{SharedName, add as add_models, apply as apply_models, shared_name};

use doubts::Doubts;
use grouped_log::GroupedLog;
use grouped_sessions::GroupedSessions;
use warm::Warm;

use super::Stores;
use crate::error::Error;
use crate::migrate;

/// How long a call waits for a connection; then it is refused as unavailable.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a statement waits for a lock.
pub(crate) const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// What the server ends by itself, so that a stuck call holds neither locks nor a connection.
const SERVER_TIMEOUTS: [(&str, Duration); 3] = [
    ("statement_timeout", Duration::from_secs(10)),
    ("lock_timeout", LOCK_TIMEOUT),
    ("idle_in_transaction_session_timeout", Duration::from_secs(15)),
];
/// How long a call waits for the server: longer than the server lets any take. One whose host has vanished says nothing at all, and TCP
/// waits for a quarter of an hour, or for ever.
const CALL_MAX: Duration = Duration::from_secs(20);
/// A server that offers TLS is reached by TLS or not at all, unless the URL says otherwise.
const HANDSHAKE_FAILED: &str = "the TLS handshake with PostgreSQL failed; `sslmode` in the URL says what is asked of the server's certificate, and \
     `sslmode=disable` connects without TLS";

/// The code of what poolers say to a startup parameter that they don't keep apart for each client:
/// <https://www.postgresql.org/docs/15/errcodes-appendix.html>.
const PROTOCOL_VIOLATION: &str = "08P01";
const THROUGH_A_POOLER: &str = "PostgreSQL must be reached directly, or through a pooler that keeps a session's connection and passes on the startup \
     parameter `options`: what answers at this URL refuses it";

/// All stores over one pool of connections; cheap to clone.
#[derive(Debug, Clone)]
pub struct Postgres {
    pool: PgPool,
    /// Of one connection, for looks at whether the database is there. It is made with the first of them.
    looks: PgPool,
    connections_max: u32,
    append_lanes: usize,
    call_max: Duration,
    doubts: Doubts,
    warm: Warm,
}

impl Postgres {
    /// Opens a pool, and one connection to see that it works. At `connections_max` calls wait for a free one; [`Postgres::check`] has one more
    /// to itself.
    ///
    /// Fails with [`Error::Invalid`] when the URL is none, else with [`Error::Unavailable`].
    pub async fn connect(url: &str, connections_max: u32) -> Result<Self, Error> {
        let postgres = Self::lazy(url, connections_max)?;
        postgres.pool.acquire().await.map_err(unreached)?;
        Ok(postgres)
    }

    fn lazy(url: &str, connections_max: u32) -> Result<Self, Error> {
        let doubts = Doubts::default();
        let (pool, looks) = (connect(url, connections_max, doubts.clone())?, connect(url, 1, doubts.clone())?);
        let warm = Warm::new(pool.clone(), connections_max, doubts.clone());
        Ok(Self { pool, looks, connections_max, append_lanes: groups::LANES, call_max: CALL_MAX, doubts, warm })
    }

    /// For tests of what never comes to a connection.
    #[cfg(test)]
    fn unconnected() -> Self {
        Self::lazy("postgres://nobody@localhost/none", 1).unwrap()
    }

    /// With so many transactions of one tenant that append at a time, at least one: for benchmarks.
    #[must_use]
    pub fn with_append_lanes(self, lanes: usize) -> Self {
        Self { append_lanes: lanes.max(1), ..self }
    }

    /// With another bound of how long a call waits for the server: for tests of servers that are silent.
    #[must_use]
    pub fn with_call_max(self, call_max: Duration) -> Self {
        Self { call_max, ..self }
    }

    /// The database answers, and its schema is the one that this program was built for. Asked on a connection of its own: a front whose
    /// calls have all others is busy, and if it were away for that, its calls would keep the next front busy.
    pub async fn check(&self) -> Result<(), Error> {
        let is_current = self.in_time(migrate::is_current(&self.looks)).await;
        if is_current.unwrap_or_else(|silent| Err(failed(silent)))? {
            Ok(())
        } else {
            Err(Error::unavailable("a current database schema", anyhow::anyhow!("`croft-front migrate` has not run")))
        }
    }

    /// The tenant of this name; of those that had it, the newest.
    pub async fn tenant_named(&self, name: &str) -> Result<Option<TenantId>, Error> {
        tenants::named(self, name).await
    }

    /// What is asked of the server, for as long as a call may take. Whether one that was given up was carried out nobody knows; its connection is
    /// looked at on its way back to the pool, and those that have been idle since before their next use.
    async fn in_time<T>(&self, call: impl Future<Output = T>) -> Result<T, sqlx::Error> {
        timeout(self.call_max, call).await.map_err(|_| {
            self.doubts.raise();
            sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer in time"))
        })
    }
}

impl Stores {
    /// Stores in this database. `tasks` owns what they do for several callers at once.
    pub fn postgres(postgres: &Postgres, tasks: &Tasks) -> Self {
        let postgres = Arc::new(postgres.clone());
        let log = Arc::new(GroupedLog::new(postgres.clone(), tasks));
        Self {
            sessions: Arc::new(GroupedSessions::new(postgres.clone(), tasks)),
            events: log.clone(),
            turns: log,
            leases: postgres.clone(),
            usage: postgres.clone(),
            audit: postgres.clone(),
            models: postgres.clone(),
            budgets: postgres.clone(),
            keys: postgres.clone(),
            tenants: postgres.clone(),
            across: postgres.clone(),
            removal: postgres.clone(),
            retention: postgres,
        }
    }
}

/// A pool that connects when it is first used.
fn connect(url: &str, connections_max: u32, doubts: Doubts) -> Result<PgPool, Error> {
    // The parser's complaint may quote the URL, and with it a password.
    let options = PgConnectOptions::from_str(url).map_err(|_| Error::invalid("the PostgreSQL URL", "can't be read"))?;
    // Compiling a statement takes longer than running any of ours.
    let timeouts = SERVER_TIMEOUTS.map(|(name, max)| (name, format!("{}ms", max.as_millis())));
    let options = options.application_name("croft-front").options(timeouts).options([("jit", "off")]);
    Ok(PgPoolOptions::new()
        .max_connections(connections_max)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .test_before_acquire(false)
        .before_acquire(move |connection, about| {
            let doubted = doubts.doubt(about.idle_for);
            Box::pin(async move {
                if doubted {
                    doubts::ping(connection).await?;
                }
                Ok(true)
            })
        })
        // The pool itself pings each that comes back, and waits for the answer for ever: of a server that is silent it would never have
        // another connection in the place of this one. What comes back from a call that was given up is read to its end here.
        .after_release(|connection, _| {
            Box::pin(async move {
                // Its buffers keep the size of the largest message that they ever had. What this frees for reading goes with the next
                // answer, which is the ping's: <https://docs.rs/sqlx-core/0.9.0/src/sqlx_core/net/socket/buffered.rs.html>.
                connection.shrink_buffers();
                doubts::ping(connection).await?;
                Ok(true)
            })
        })
        .connect_lazy_with(options))
}

/// As [`failed`], of the first connection.
fn unreached(error: sqlx::Error) -> Error {
    if is_handshake(&error) || is_pooler(&error) {
        Error::unavailable("postgres", explained(error))
    } else {
        failed(error)
    }
}

/// Why there is no connection. Where TLS failed, or a pooler is in the way, who reads it is told how to have it otherwise.
pub(crate) fn explained(error: sqlx::Error) -> anyhow::Error {
    let (is_handshake, is_pooler) = (is_handshake(&error), is_pooler(&error));
    let error = anyhow::Error::from(error);
    match (is_handshake, is_pooler) {
        (true, _) => error.context(HANDSHAKE_FAILED),
        (false, true) => error.context(THROUGH_A_POOLER),
        (false, false) => error,
    }
}

/// `PgBouncer` and its kin refuse the startup parameters that they would have to keep apart for each client:
/// <https://www.pgbouncer.org/config.html#ignore_startup_parameters>.
fn is_pooler(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(refusal) = error else { return false };
    refusal.code().as_deref() == Some(PROTOCOL_VIOLATION) && refusal.message().contains("startup parameter")
}

/// What the TLS library says of a handshake comes as data that are not valid.
fn is_handshake(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Tls(_))
        || matches!(error, sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData)
}

/// What a failure of the database means to a caller: whether another try, later, may work.
pub(crate) fn failed(error: sqlx::Error) -> Error {
    let passes = match &error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::BeginFailed => true,
        sqlx::Error::Database(refusal) => refusal.code().is_some_and(|code| is_passing(&code)),
        _ => false,
    };
    if passes { Error::unavailable("postgres", error) } else { Error::internal(error) }
}

/// SQLSTATEs of a database that is away, full or in each other's way, not of one that disagrees:
/// <https://www.postgresql.org/docs/15/errcodes-appendix.html>.
fn is_passing(code: &str) -> bool {
    const CLASSES: [&str; 5] = ["08", "28", "3D", "53", "57"];
    const CODES: [&str; 4] = ["40001", "40P01", "55P03", "25P03"];
    CLASSES.iter().any(|class| code.starts_with(class)) || CODES.contains(&code)
}

fn was_idle_too_long(error: &sqlx::Error) -> bool {
    match error {
        // One that says nothing may be at it.
        sqlx::Error::Io(error) => error.kind() != std::io::ErrorKind::TimedOut,
        // The server said why it went, before it went.
        sqlx::Error::Database(refusal) => refusal.code().is_some_and(|code| code.starts_with("57P")),
        _ => false,
    }
}

/// A refusal by a foreign key.
fn is_foreign_key(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(refusal) if refusal.is_foreign_key_violation())
}

/// Postgres has no unsigned integers; numbers beyond its own are beyond any that it holds.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_url_is_refused_without_being_quoted() {
        let error = connect("postgres://croft:hunter2@:port/", 1, Doubts::default()).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }));
        assert!(!format!("{error:?}").contains("hunter2"));
    }

    #[test]
    fn a_restart_passes_and_a_broken_rule_does_not() {
        assert!(is_passing("57P01"));
        assert!(is_passing("40P01"));
        assert!(!is_passing("23505"));
        assert!(!is_passing("42501"));
    }
}
