//! What is asked of the server is bounded in time. A transaction begins only within a call that is given up, so that none of its
//! statements can be waited for for ever: a host that vanishes behind the first of them resets nothing.

use std::fmt::Display;

use croft_proto::id::{SessionId, TenantId};
use sqlx::{AssertSqlSafe, Transaction};

use super::at_once::is_left_open;
use super::{Postgres, failed, was_idle_too_long};
use crate::error::Error;

/// A transaction. What it had not committed is rolled back when it is dropped.
pub(super) type Tx = Transaction<'static, sqlx::Postgres>;

/// The server, within a call that is given up after [`CALL_MAX`](super::CALL_MAX). There is no other way to a transaction.
#[derive(Clone, Copy)]
pub(super) struct Timed<'p> {
    postgres: &'p Postgres,
}

impl Postgres {
    /// All that one call asks of the server, from its connection to the commit. Fails with [`Error::Unavailable`] when that takes too
    /// long; whether it was carried out nobody knows then.
    pub(super) async fn timed<'p, T, F>(&'p self, call: impl FnOnce(Timed<'p>) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.in_time(call(Timed { postgres: self })).await.unwrap_or_else(|silent| Err(failed(silent)))
    }
}

impl Timed<'_> {
    /// A transaction that sees this tenant alone.
    pub(super) async fn tenant(self, tenant: TenantId) -> Result<Tx, Error> {
        self.tenant_and(tenant, "").await
    }

    /// As [`Self::tenant`]; in the same round trip also runs statements whose rows nobody wants: locks. They come first, so
    /// that what follows sees all that was committed before them.
    pub(super) async fn tenant_and(self, tenant: TenantId, locks: impl Display) -> Result<Tx, Error> {
        // A UUID is hex and hyphens: there is nothing to escape.
        self.begin(format!("begin; set local role croft_request; set local croft.tenant = '{tenant}'; {locks}")).await
    }

    /// As [`Self::tenant_and`], for a statement whose plan is made once a connection: for one that looks rows up by key, to plan takes
    /// longer than to carry out. See `migrations/0023_one_call.sql`.
    pub(super) async fn planned(self, tenant: TenantId, locks: impl Display) -> Result<Tx, Error> {
        let once = "set local plan_cache_mode = force_generic_plan; set local enable_seqscan = off";
        self.tenant_and(tenant, format!("{once}; {locks}")).await
    }

    /// A transaction that holds the locks of those of these sessions that there are. What follows sees all that the last holders
    /// of the locks did. They are taken in the order of the ids, so that two who want several don't wait for each other.
    pub(super) async fn locking(
        self,
        tenant: TenantId,
        sessions: impl IntoIterator<Item = SessionId>,
    ) -> Result<Tx, Error> {
        let ids: Vec<_> = sessions.into_iter().map(|session| format!("'{session}'")).collect();
        let lock = format!(
            "select 1 from sessions where tenant_id = '{tenant}' and session_id in ({}) order by session_id for no key update",
            ids.join(", ")
        );
        self.planned(tenant, lock).await
    }

    /// A transaction of the request role that sees no tenant, for functions that look across them.
    pub(super) async fn nobody(self) -> Result<Tx, Error> {
        self.begin("begin; set local role croft_request".to_owned()).await
    }

    /// A transaction that may insert for any tenant, and read nothing.
    pub(super) async fn writer(self) -> Result<Tx, Error> {
        self.begin("begin; set local role croft_writer".to_owned()).await
    }

    /// A connection that went away while it was idle shows it here, where nothing has happened yet: the next one is tried. So it is with
    /// one on which somebody gave up while a transaction began, which is still open, or broken. At worst all of them are stale, and the
    /// last try is on a new one. Testing each before use would cost a round trip.
    async fn begin(self, statements: String) -> Result<Tx, Error> {
        let Postgres { warm, pool, connections_max, .. } = self.postgres;
        warm.give_way();
        let mut stale = 0;
        loop {
            match pool.begin_with(AssertSqlSafe(statements.as_str())).await {
                Err(error) if stale < *connections_max && (was_idle_too_long(&error) || is_left_open(&error)) => {
                    stale += 1;
                }
                result => return result.map_err(failed),
            }
        }
    }
}
