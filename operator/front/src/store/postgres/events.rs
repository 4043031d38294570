//! The event log in Postgres.

use async_trait::async_trait;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::{SessionCheckpoint, SessionEvent};
use prost::Message;
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::append::{Prepared, scope};
use super::row::unreadable;
use super::{Postgres, failed, sessions, signed};
use crate::error::Error;
use crate::events::log::{Append, Appended, EventLog, IdempotencyKey, PAGE_BYTES, StoredCheckpoint};

#[async_trait]
impl EventLog for Postgres {
    async fn append(&self, append: Append) -> Result<Appended, Error> {
        self.append_alone(Prepared::of(append)?).await?.appended()
    }

    async fn find_sent(
        &self,
        tenant: TenantId,
        session: SessionId,
        key: &IdempotencyKey,
    ) -> Result<Option<u64>, Error> {
        self.timed(async |server| {
            let mut tx = server.tenant(tenant).await?;
            let used = sessions::used(&mut tx, tenant, &scope(session), key).await?;
            Ok(used.map(|(_, first_seq)| first_seq))
        })
        .await
    }

    async fn read(
        &self,
        tenant: TenantId,
        session: SessionId,
        after_seq: u64,
        limit: u32,
    ) -> Result<Vec<SessionEvent>, Error> {
        self.timed(async |server| {
            let mut tx = server.tenant(tenant).await?;
            let rows = sqlx::query(
                "select seq, payload from (
                    select seq, payload,
                        sum(octet_length(payload)) over (order by seq rows unbounded preceding) - octet_length(payload) as before
                    from events where tenant_id = $1 and session_id = $2 and seq > $3
                        -- One that is being erased still has some, and shows none.
                        and exists (select from sessions where tenant_id = $1 and session_id = $2)
                    order by seq limit $4
                ) page
                where before < $5 order by seq",
            )
            .bind(tenant.0)
            .bind(session.0)
            .bind(signed(after_seq))
            .bind(i64::from(limit))
            .bind(i64::from(PAGE_BYTES))
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
            let session_id = session.to_string();
            rows.iter().map(|row| event(&session_id, row)).collect::<Result<_, _>>().map_err(failed)
        })
        .await
    }

    async fn waiting(&self, tenant: TenantId, session: SessionId, max: u32) -> Result<u32, Error> {
        self.timed(async |server| {
            let mut tx = server.tenant(tenant).await?;
            let waiting: i64 = sqlx::query_scalar(
                "select count(*) from (
                    select from sessions s
                    join events e on e.tenant_id = $1 and e.session_id = $2 and e.kind = 'user_message'
                        and e.seq > s.input_seq and e.seq <= s.newest_input_seq
                    where s.tenant_id = $1 and s.session_id = $2
                    limit $3
                ) waiting",
            )
            .bind(tenant.0)
            .bind(session.0)
            .bind(i64::from(max))
            .fetch_one(&mut *tx)
            .await
            .map_err(failed)?;
            Ok(u32::try_from(waiting).unwrap_or(max))
        })
        .await
    }

    async fn checkpoint(&self, tenant: TenantId, session: SessionId) -> Result<Option<StoredCheckpoint>, Error> {
        self.timed(async |server| {
            let mut tx = server.tenant(tenant).await?;
            let row = sqlx::query("select seq, checkpoint from checkpoints where tenant_id = $1 and session_id = $2")
                .bind(tenant.0)
                .bind(session.0)
                .fetch_optional(&mut *tx)
                .await
                .map_err(failed)?;
            row.as_ref().map(|row| checkpoint(row, "seq")).transpose().map_err(failed)
        })
        .await
    }
}

/// Of a row of number and payload. By their places: to find a column by its name takes longer than to read it, and there are many rows.
fn event(session_id: &str, row: &PgRow) -> Result<SessionEvent, sqlx::Error> {
    let (seq, payload): (i64, &[u8]) = (row.try_get(0)?, row.try_get(1)?);
    let event = SessionEvent::decode(payload).map_err(unreadable)?;
    Ok(SessionEvent { session_id: session_id.to_owned(), seq: seq.cast_unsigned(), ..event })
}

/// The columns `checkpoint` and `seq`, or however that one is named here.
pub(super) fn checkpoint(row: &PgRow, seq: &str) -> Result<StoredCheckpoint, sqlx::Error> {
    let checkpoint: &[u8] = row.try_get("checkpoint")?;
    let seq: i64 = row.try_get(seq)?;
    let checkpoint = SessionCheckpoint::decode(checkpoint).map_err(unreadable)?;
    Ok(StoredCheckpoint { checkpoint, seq: seq.cast_unsigned() })
}
