//! API keys in Postgres.

use async_trait::async_trait;
use croft_proto::id::TenantId;
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::{Postgres, failed, is_foreign_key};
use crate::error::Error;
use crate::identity::api_key::{KeyStore, StoredKey};

#[async_trait]
impl KeyStore for Postgres {
    async fn insert(&self, key: &StoredKey) -> Result<(), Error> {
        let mut tx = self.tenant(key.tenant).await?;
        sqlx::query("insert into api_keys (prefix, tenant_id, secret_hash, role) values ($1, $2, $3, $4)")
            .bind(&key.prefix)
            .bind(key.tenant.0)
            .bind(key.secret_hash)
            .bind(key.role.as_str())
            .execute(&mut *tx)
            .await
            .map_err(|error| match &error {
                sqlx::Error::Database(refusal) if refusal.is_unique_violation() => Error::invalid("prefix", "is taken"),
                _ if is_foreign_key(&error) => Error::invalid("tenant", "does not exist"),
                _ => failed(error),
            })?;
        tx.commit().await.map_err(failed)
    }

    async fn find(&self, prefix: &str) -> Result<Option<StoredKey>, Error> {
        let mut tx = self.nobody().await?;
        let row = sqlx::query("select prefix, tenant_id, tenant_name, secret_hash, role from croft_api_key($1)")
            .bind(prefix)
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed)?;
        row.as_ref().map(key).transpose().map_err(failed)
    }
}

fn key(row: &PgRow) -> Result<StoredKey, sqlx::Error> {
    Ok(StoredKey {
        prefix: row.try_get("prefix")?,
        tenant: TenantId(row.try_get("tenant_id")?),
        tenant_name: row.try_get("tenant_name")?,
        secret_hash: row.try_get("secret_hash")?,
        role: row.try_get::<&str, _>("role")?.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
    })
}
