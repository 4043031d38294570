//! The mirror of tenants in Postgres.

use async_trait::async_trait;
use croft_proto::id::TenantId;
use uuid::Uuid;

use super::{Postgres, failed};
use crate::error::Error;
use crate::tenants::TenantMirror;

#[async_trait]
impl TenantMirror for Postgres {
    async fn upsert(&self, tenant: TenantId, name: &str) -> Result<(), Error> {
        self.timed(async |server| {
            let mut tx = server.tenant(tenant).await?;
            sqlx::query(
                "insert into tenants (tenant_id, name) values ($1, $2)
                on conflict (tenant_id) do update set name = excluded.name, update_time = now()",
            )
            .bind(tenant.0)
            .bind(name)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
            tx.commit().await.map_err(failed)
        })
        .await
    }
}

pub(super) async fn named(postgres: &Postgres, name: &str) -> Result<Option<TenantId>, Error> {
    postgres
        .timed(async |server| {
            let mut tx = server.nobody().await?;
            let named = sqlx::query_scalar("select croft_tenant_named($1)").bind(name).fetch_one(&mut *tx).await;
            let tenant: Option<Uuid> = named.map_err(failed)?;
            Ok(tenant.map(TenantId))
        })
        .await
}
