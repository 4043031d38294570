//! The end of what is kept, in Postgres.

use async_trait::async_trait;
use croft_proto::Timestamp;
use croft_proto::id::TenantId;
use sqlx::Row;

use super::time::Time;
use super::{Postgres, audit, failed};
use crate::error::Error;
use crate::session::retention::store::{Erased, RetentionStore};

#[async_trait]
impl RetentionStore for Postgres {
    async fn erase_ended(
        &self,
        tenant: TenantId,
        before: Timestamp,
        sessions_max: u32,
        events_max: u32,
    ) -> Result<Erased, Error> {
        self.timed(async |server| {
            let mut tx = server.tenant(tenant).await?;
            let erased = sqlx::query("select sessions_erased, events_erased from croft_erase_ended($1, $2, $3, true)")
                .bind(Time(before))
                .bind(i64::from(sessions_max))
                .bind(i64::from(events_max))
                .fetch_one(&mut *tx)
                .await
                .map_err(audit::refused)?;
            tx.commit().await.map_err(failed)?;
            let count = |column| erased.try_get::<i64, _>(column).map(i64::cast_unsigned).map_err(failed);
            Ok(Erased { sessions: count("sessions_erased")?, events: count("events_erased")? })
        })
        .await
    }
}
