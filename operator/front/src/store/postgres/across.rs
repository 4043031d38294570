//! Looks across tenants, in Postgres: by functions that tell ids and no more. See the migrations.

use async_trait::async_trait;
use croft_proto::Timestamp;
use croft_proto::id::{SessionId, TenantId};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::time::Time;
use super::{Postgres, failed, signed};
use crate::error::Error;
use crate::session::across::{AcrossTenants, Changed};

#[async_trait]
impl AcrossTenants for Postgres {
    async fn due(&self, now: Timestamp, limit: u32) -> Result<Vec<(TenantId, SessionId)>, Error> {
        let mut tx = self.nobody().await?;
        let rows = sqlx::query("select tenant_id, session_id from croft_due_sessions($1, $2)")
            .bind(Time(now))
            .bind(i64::from(limit))
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
        rows.iter().map(ids).collect::<Result<_, _>>().map_err(failed)
    }

    async fn orphaned(&self, limit: u32) -> Result<Vec<(TenantId, SessionId)>, Error> {
        let mut tx = self.nobody().await?;
        let rows = sqlx::query("select tenant_id, session_id from croft_orphaned_sessions($1)")
            .bind(i64::from(limit))
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
        rows.iter().map(ids).collect::<Result<_, _>>().map_err(failed)
    }

    /// The oldest transaction that still runs: those before it can be seen, or never were.
    async fn horizon(&self) -> Result<u64, Error> {
        let mut tx = self.nobody().await?;
        let oldest: i64 = sqlx::query_scalar("select pg_snapshot_xmin(pg_current_snapshot())::text::bigint")
            .fetch_one(&mut *tx)
            .await
            .map_err(failed)?;
        Ok(oldest.cast_unsigned())
    }

    async fn changed(&self, (number, session): (u64, SessionId), limit: u32) -> Result<Vec<Changed>, Error> {
        let mut tx = self.nobody().await?;
        let rows = sqlx::query("select tenant_id, session_id, change_number from croft_changed_sessions($1, $2, $3)")
            .bind(signed(number))
            .bind(session.0)
            .bind(i64::from(limit))
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
        rows.iter()
            .map(|row| {
                let ((tenant, session), number) = (ids(row)?, row.try_get::<i64, _>("change_number")?.cast_unsigned());
                Ok(Changed { tenant, session, number })
            })
            .collect::<Result<_, _>>()
            .map_err(failed)
    }
}

fn ids(row: &PgRow) -> Result<(TenantId, SessionId), sqlx::Error> {
    Ok((TenantId(row.try_get("tenant_id")?), SessionId(row.try_get("session_id")?)))
}
