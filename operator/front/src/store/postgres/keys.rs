//! API keys in Postgres.

use async_trait::async_trait;
use croft_proto::Timestamp;
use croft_proto::id::TenantId;
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::time::Time;
use super::{Postgres, failed};
use crate::error::Error;
use crate::identity::api_key::{KeyRecord, KeyStore, StoredKey};
use crate::identity::role::Role;

#[async_trait]
impl KeyStore for Postgres {
    async fn insert(&self, key: &StoredKey, expire_time: Option<Timestamp>) -> Result<(), Error> {
        self.timed(async |server| {
            let mut tx = server.tenant(key.tenant).await?;
            // Its credentials go with a tenant, and none comes behind them.
            let inserted = sqlx::query(
                "with there as (
                    select tenant_id from tenants where tenant_id = $2 and remove_time is null for key share
                )
                insert into api_keys (prefix, tenant_id, secret_hash, role, expire_time)
                select $1, tenant_id, $3, $4, $5 from there",
            )
            .bind(&key.prefix)
            .bind(key.tenant.0)
            .bind(key.secret_hash)
            .bind(key.role.as_str())
            .bind(expire_time.map(Time))
            .execute(&mut *tx)
            .await
            .map_err(|error| match &error {
                sqlx::Error::Database(refusal) if refusal.is_unique_violation() => Error::invalid("prefix", "is taken"),
                _ => failed(error),
            })?;
            if inserted.rows_affected() == 0 {
                return Err(Error::invalid("tenant", "does not exist, or is being removed"));
            }
            tx.commit().await.map_err(failed)
        })
        .await
    }

    async fn list(&self, tenant: TenantId) -> Result<Vec<KeyRecord>, Error> {
        self.timed(async |server| {
            let mut tx = server.tenant(tenant).await?;
            let rows = sqlx::query(
                "select prefix, role, create_time, expire_time, revoke_time from api_keys where tenant_id = $1
                order by create_time desc, prefix",
            )
            .bind(tenant.0)
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
            rows.iter().map(record).collect::<Result<_, _>>().map_err(failed)
        })
        .await
    }

    async fn revoke(&self, tenant: TenantId, prefix: &str) -> Result<bool, Error> {
        self.timed(async |server| {
            let mut tx = server.tenant(tenant).await?;
            let revoked = sqlx::query(
                "update api_keys set revoke_time = coalesce(revoke_time, now()) where tenant_id = $1 and prefix = $2",
            )
            .bind(tenant.0)
            .bind(prefix)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
            tx.commit().await.map_err(failed)?;
            Ok(revoked.rows_affected() > 0)
        })
        .await
    }

    async fn find(&self, prefix: &str) -> Result<Option<StoredKey>, Error> {
        self.timed(async |server| {
            let mut tx = server.nobody().await?;
            let row = sqlx::query("select prefix, tenant_id, tenant_name, secret_hash, role from croft_api_key($1)")
                .bind(prefix)
                .fetch_optional(&mut *tx)
                .await
                .map_err(failed)?;
            row.as_ref().map(key).transpose().map_err(failed)
        })
        .await
    }
}

fn key(row: &PgRow) -> Result<StoredKey, sqlx::Error> {
    Ok(StoredKey {
        prefix: row.try_get("prefix")?,
        tenant: TenantId(row.try_get("tenant_id")?),
        tenant_name: row.try_get("tenant_name")?,
        secret_hash: row.try_get("secret_hash")?,
        role: role(row)?,
    })
}

fn record(row: &PgRow) -> Result<KeyRecord, sqlx::Error> {
    let time = |column| Ok::<_, sqlx::Error>(row.try_get::<Option<Time>, _>(column)?.map(|Time(time)| time));
    Ok(KeyRecord {
        prefix: row.try_get("prefix")?,
        role: role(row)?,
        create_time: row.try_get::<Time, _>("create_time")?.0,
        expire_time: time("expire_time")?,
        revoke_time: time("revoke_time")?,
    })
}

fn role(row: &PgRow) -> Result<Role, sqlx::Error> {
    row.try_get::<&str, _>("role")?.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))
}
