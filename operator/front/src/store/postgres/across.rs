//! Looks across tenants, in Postgres: by functions that tell ids and no more. See the migrations.

use async_trait::async_trait;
use croft_proto::Timestamp;
use croft_proto::id::{SessionId, TenantId};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::time::Time;
use super::{Postgres, failed, signed};
use crate::error::Error;
use crate::session::across::{AcrossTenants, Changed, Horizon};

#[async_trait]
impl AcrossTenants for Postgres {
    async fn due(&self, now: Timestamp, limit: u32) -> Result<Vec<(TenantId, SessionId)>, Error> {
        self.timed(async |server| {
            let mut tx = server.nobody().await?;
            let rows = sqlx::query("select tenant_id, session_id from croft_due_sessions($1, $2)")
                .bind(Time(now))
                .bind(i64::from(limit))
                .fetch_all(&mut *tx)
                .await
                .map_err(failed)?;
            rows.iter().map(ids).collect::<Result<_, _>>().map_err(failed)
        })
        .await
    }

    async fn orphaned(&self, limit: u32) -> Result<Vec<(TenantId, SessionId)>, Error> {
        self.timed(async |server| {
            let mut tx = server.nobody().await?;
            let rows = sqlx::query("select tenant_id, session_id from croft_orphaned_sessions($1)")
                .bind(i64::from(limit))
                .fetch_all(&mut *tx)
                .await
                .map_err(failed)?;
            rows.iter().map(ids).collect::<Result<_, _>>().map_err(failed)
        })
        .await
    }

    async fn erasing(&self, limit: u32) -> Result<Vec<TenantId>, Error> {
        self.timed(async |server| {
            let mut tx = server.nobody().await?;
            let tenants = sqlx::query_scalar("select croft_erasing_tenants($1)")
                .bind(i64::from(limit))
                .fetch_all(&mut *tx)
                .await
                .map_err(failed)?;
            Ok(tenants.into_iter().map(TenantId).collect())
        })
        .await
    }

    /// That of a snapshot: <https://www.postgresql.org/docs/15/functions-info.html#FUNCTIONS-PG-SNAPSHOT>.
    async fn horizon(&self) -> Result<Horizon, Error> {
        self.timed(async |server| {
            let mut tx = server.nobody().await?;
            let row = sqlx::query(
                "select pg_snapshot_xmax(now)::text::bigint as next,
                    array(select open::text::bigint from pg_snapshot_xip(now) as open) as open
                from pg_current_snapshot() as now",
            )
            .fetch_one(&mut *tx)
            .await
            .map_err(failed)?;
            let next = row.try_get::<i64, _>("next").map_err(failed)?.cast_unsigned();
            let open = row.try_get::<Vec<i64>, _>("open").map_err(failed)?;
            Ok(Horizon { next, open: open.into_iter().map(i64::cast_unsigned).collect() })
        })
        .await
    }

    async fn changed(
        &self,
        since: &Horizon,
        (number, session): (u64, SessionId),
        limit: u32,
    ) -> Result<Vec<Changed>, Error> {
        self.timed(async |server| {
            let mut tx = server.nobody().await?;
            let open: Vec<_> = since.open.iter().map(|number| signed(*number)).collect();
            let rows = sqlx::query(
                "select tenant_id, session_id, change_number from croft_session_changes($1, $2, $3, $4, $5)",
            )
            .bind(signed(since.next))
            .bind(open)
            .bind(signed(number))
            .bind(session.0)
            .bind(i64::from(limit))
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
            rows.iter()
                .map(|row| {
                    let ((tenant, session), number) =
                        (ids(row)?, row.try_get::<i64, _>("change_number")?.cast_unsigned());
                    Ok(Changed { tenant, session, number })
                })
                .collect::<Result<_, _>>()
                .map_err(failed)
        })
        .await
    }
}

fn ids(row: &PgRow) -> Result<(TenantId, SessionId), sqlx::Error> {
    Ok((TenantId(row.try_get("tenant_id")?), SessionId(row.try_get("session_id")?)))
}
