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
mod turns;
mod usage;
mod warm;

use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use croft_proto::id::{SessionId, TenantId};
use croft_serve::Tasks;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection as _, PgPool, Transaction};
use tokio::time::timeout;

pub(crate) use models::{add as add_models, apply as apply_models};

use doubts::Doubts;
use grouped_log::GroupedLog;
use grouped_sessions::GroupedSessions;
use warm::Warm;

use super::Stores;
use crate::error::Error;
use crate::migrate;

/// How long a call waits for a connection; then it is refused as unavailable.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// What the server ends by itself, so that a stuck call holds neither locks nor a connection.
const SERVER_TIMEOUTS: [(&str, &str); 3] =
    [("statement_timeout", "10s"), ("lock_timeout", "5s"), ("idle_in_transaction_session_timeout", "15s")];
/// How long a call waits for the server: longer than the server lets any take. One whose host has vanished says nothing at all, and TCP
/// waits for a quarter of an hour, or for ever.
const CALL_MAX: Duration = Duration::from_secs(20);
/// A server that offers TLS is reached by TLS or not at all, unless the URL says otherwise.
const HANDSHAKE_FAILED: &str = "the TLS handshake with PostgreSQL failed; `sslmode` in the URL says what is asked of the server's certificate, and \
     `sslmode=disable` connects without TLS";

/// All stores over one pool of connections; cheap to clone.
#[derive(Debug, Clone)]
pub struct Postgres {
    pool: PgPool,
    connections_max: u32,
    append_lanes: usize,
    call_max: Duration,
    doubts: Doubts,
    warm: Warm,
}

impl Postgres {
    /// Opens a pool, and one connection to see that it works. At `connections_max` calls wait for a free one.
    ///
    /// Fails with [`Error::Invalid`] when the URL is none, else with [`Error::Unavailable`].
    pub async fn connect(url: &str, connections_max: u32) -> Result<Self, Error> {
        let doubts = Doubts::default();
        let pool = connect(url, connections_max, doubts.clone())?;
        pool.acquire().await.map_err(unreached)?;
        let warm = Warm::new(pool.clone(), connections_max, doubts.clone());
        Ok(Self { pool, connections_max, append_lanes: groups::LANES, call_max: CALL_MAX, doubts, warm })
    }

    /// For tests of what never comes to a connection.
    #[cfg(test)]
    fn unconnected() -> Self {
        let doubts = Doubts::default();
        let pool = connect("postgres://nobody@localhost/none", 1, doubts.clone()).unwrap();
        let warm = Warm::new(pool.clone(), 1, doubts.clone());
        Self { pool, connections_max: 1, append_lanes: groups::LANES, call_max: CALL_MAX, doubts, warm }
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

    /// The database answers, and its schema is the one that this program was built for.
    pub async fn check(&self) -> Result<(), Error> {
        if migrate::is_current(&self.pool).await? {
            Ok(())
        } else {
            Err(Error::unavailable("a current database schema", anyhow::anyhow!("`croft-front migrate` has not run")))
        }
    }

    /// The tenant of this name; of those that had it, the newest.
    pub async fn tenant_named(&self, name: &str) -> Result<Option<TenantId>, Error> {
        tenants::named(self, name).await
    }

    /// A transaction that sees this tenant alone.
    async fn tenant(&self, tenant: TenantId) -> Result<Tx, Error> {
        self.tenant_and(tenant, "").await
    }

    /// As [`Self::tenant`]; in the same round trip also runs statements whose rows nobody wants: locks. They come first, so
    /// that what follows sees all that was committed before them.
    async fn tenant_and(&self, tenant: TenantId, locks: impl Display) -> Result<Tx, Error> {
        // A UUID is hex and hyphens: there is nothing to escape.
        self.begin(format!("begin; set local role croft_request; set local croft.tenant = '{tenant}'; {locks}")).await
    }

    /// As [`Self::tenant_and`], for a statement whose plan is made once a connection: for one that looks rows up by key, to plan takes
    /// longer than to carry out. See `migrations/0023_one_call.sql`.
    async fn planned(&self, tenant: TenantId, locks: impl Display) -> Result<Tx, Error> {
        let once = "set local plan_cache_mode = force_generic_plan; set local enable_seqscan = off";
        self.tenant_and(tenant, format!("{once}; {locks}")).await
    }

    /// A transaction that holds the locks of those of these sessions that there are. What follows sees all that the last holders
    /// of the locks did. They are taken in the order of the ids, so that two who want several don't wait for each other.
    async fn locking(&self, tenant: TenantId, sessions: impl IntoIterator<Item = SessionId>) -> Result<Tx, Error> {
        let ids: Vec<_> = sessions.into_iter().map(|session| format!("'{session}'")).collect();
        let lock = format!(
            "select 1 from sessions where tenant_id = '{tenant}' and session_id in ({}) order by session_id for no key update",
            ids.join(", ")
        );
        self.planned(tenant, lock).await
    }

    /// A transaction of the request role that sees no tenant, for functions that look across them.
    async fn nobody(&self) -> Result<Tx, Error> {
        self.begin("begin; set local role croft_request".to_owned()).await
    }

    /// A transaction that may insert for any tenant, and read nothing.
    async fn writer(&self) -> Result<Tx, Error> {
        self.begin("begin; set local role croft_writer".to_owned()).await
    }

    /// A connection that went away while it was idle shows it here, where nothing has happened yet: the next one is tried. At
    /// worst all of them are stale, and the last try is on a new one. Testing each before use would cost a round trip.
    async fn begin(&self, statements: String) -> Result<Tx, Error> {
        self.warm.give_way();
        let mut stale = 0;
        loop {
            match self.in_time(self.pool.begin_with(AssertSqlSafe(statements.as_str()))).await.flatten() {
                Err(error) if stale < self.connections_max && was_idle_too_long(&error) => stale += 1,
                result => return result.map_err(failed),
            }
        }
    }

    /// A call of the server, for as long as one may take. Whether one that was given up was carried out nobody knows; its connection is
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

type Tx = Transaction<'static, sqlx::Postgres>;

/// A pool that connects when it is first used.
fn connect(url: &str, connections_max: u32, doubts: Doubts) -> Result<PgPool, Error> {
    // The parser's complaint may quote the URL, and with it a password.
    let options = PgConnectOptions::from_str(url).map_err(|_| Error::invalid("the PostgreSQL URL", "can't be read"))?;
    // Compiling a statement takes longer than running any of ours.
    let options = options.application_name("croft-front").options(SERVER_TIMEOUTS).options([("jit", "off")]);
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
    if is_handshake(&error) { Error::unavailable("postgres", explained(error)) } else { failed(error) }
}

/// Why there is no connection. Where TLS failed, who reads it is told how to have it otherwise.
pub(crate) fn explained(error: sqlx::Error) -> anyhow::Error {
    let is_handshake = is_handshake(&error);
    let error = anyhow::Error::from(error);
    if is_handshake { error.context(HANDSHAKE_FAILED) } else { error }
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
