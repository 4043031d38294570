//! The end of what is kept, in Postgres.

use async_trait::async_trait;
use croft_proto::Timestamp;
use croft_proto::id::TenantId;

use super::time::Time;
use super::{Postgres, failed};
use crate::error::Error;
use crate::session::retention::RetentionStore;

#[async_trait]
impl RetentionStore for Postgres {
    async fn erase_ended(&self, tenant: TenantId, before: Timestamp, sessions_max: u32) -> Result<u64, Error> {
        let mut tx = self.tenant(tenant).await?;
        let erased: i64 = sqlx::query_scalar("select croft_erase_ended_sessions($1, $2)")
            .bind(Time(before))
            .bind(i64::from(sessions_max))
            .fetch_one(&mut *tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(erased.cast_unsigned())
    }
}
