//! The removal of tenants in Postgres.

use std::time::Duration;

use async_trait::async_trait;
use croft_proto::id::TenantId;

use super::{Postgres, failed, leases};
use crate::error::Error;
use crate::tenants::removal::store::RemovalStore;

#[async_trait]
impl RemovalStore for Postgres {
    async fn begin(&self, tenant: TenantId, name: &str) -> Result<bool, Error> {
        self.timed(async |server| {
            let mut tx = server.tenant(tenant).await?;
            let begun = sqlx::query("select from tenants where tenant_id = $1 and remove_time is not null")
                .bind(tenant.0)
                .fetch_optional(&mut *tx)
                .await
                .map_err(failed)?;
            if begun.is_some() {
                return Ok(false);
            }
            tx.rollback().await.map_err(failed)?;
            // Waits for sessions that are being opened at this moment; those that come after see that they may not.
            let lock = format!("select 1 from tenants where tenant_id = '{tenant}' for update");
            let mut tx = server.tenant_and(tenant, lock).await?;
            let begun = sqlx::query(
                "insert into tenants as old (tenant_id, name, remove_time) values ($1, $2, now())
                on conflict (tenant_id) do update set remove_time = now() where old.remove_time is null",
            )
            .bind(tenant.0)
            .bind(name)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
            tx.commit().await.map_err(failed)?;
            Ok(begun.rows_affected() == 1)
        })
        .await
    }

    async fn count_cut_short(&self, tenant: TenantId, within: Duration) -> Result<u64, Error> {
        self.timed(async |server| {
            let mut tx = server.tenant(tenant).await?;
            // At rest, a session's last word is that it is.
            let sessions: i64 = sqlx::query_scalar(
                "select count(*) from sessions s
                join events e on e.tenant_id = $1 and e.session_id = s.session_id and e.seq = s.last_seq - 1
                where s.tenant_id = $1 and s.terminate_time > now() - $2 * interval '1 microsecond'
                    and e.kind not in ('session_ready', 'session_idle')",
            )
            .bind(tenant.0)
            .bind(leases::micros(within))
            .fetch_one(&mut *tx)
            .await
            .map_err(failed)?;
            Ok(sessions.cast_unsigned())
        })
        .await
    }

    async fn erase_credentials(&self, tenant: TenantId) -> Result<u64, Error> {
        self.timed(async |server| {
            let mut tx = server.tenant(tenant).await?;
            let erased: i64 =
                sqlx::query_scalar("select croft_erase_credentials()").fetch_one(&mut *tx).await.map_err(failed)?;
            tx.commit().await.map_err(failed)?;
            Ok(erased.cast_unsigned())
        })
        .await
    }

    async fn erase_rows(&self, tenant: TenantId, rows_max: u32) -> Result<u64, Error> {
        self.timed(async |server| {
            let mut tx = server.tenant(tenant).await?;
            let erased: i64 = sqlx::query_scalar("select croft_erase_tenant($1)")
                .bind(i64::from(rows_max))
                .fetch_one(&mut *tx)
                .await
                .map_err(failed)?;
            tx.commit().await.map_err(failed)?;
            Ok(erased.cast_unsigned())
        })
        .await
    }

    async fn count_rows(&self, tenant: TenantId, rows_max: u32) -> Result<u64, Error> {
        self.timed(async |server| {
            let mut tx = server.tenant(tenant).await?;
            let rows: i64 = sqlx::query_scalar("select croft_count_tenant_rows($1)")
                .bind(i64::from(rows_max))
                .fetch_one(&mut *tx)
                .await
                .map_err(failed)?;
            Ok(rows.cast_unsigned())
        })
        .await
    }
}
