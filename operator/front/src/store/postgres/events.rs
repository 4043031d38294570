//! The event log in Postgres.

use async_trait::async_trait;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::{SessionCheckpoint, SessionEvent};
use prost::Message;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::row::{state_word, stop_reason_word, unreadable};
use super::time::Time;
use super::usage::{self, Reported};
use super::{Postgres, Tx, failed, sessions, signed};
use crate::error::Error;
use crate::events::log::{Append, Appended, Authority, EventLog, IdempotencyKey, NewEvent, StoredCheckpoint};
use crate::store::projection::{self, Change};

/// One statement for all that every append does. The update takes the session's lock, and with it the next numbers; it
/// checks the state and the lease's epoch on the row as it stands once the lock is ours. The rest hangs on its result: when
/// it finds no row to update, nothing happens.
const APPEND: &str = "
    with numbered as (
        update sessions set
            last_seq = last_seq + $3,
            state = coalesce($4, state),
            worker = coalesce($5, worker),
            turn_id = coalesce($6, turn_id),
            last_stop_reason = coalesce($7, last_stop_reason),
            terminate_reason = coalesce($8, terminate_reason),
            newest_input_seq = coalesce(last_seq + $9, newest_input_seq),
            input_seq = greatest(input_seq, $10),
            update_time = $11,
            lease_epoch = case when $12 then null else lease_epoch end
        where tenant_id = $1 and session_id = $2 and state <> 'terminated'
            and ($13::bigint is null or lease_epoch = $13) and ($22::timestamptz is null or due_time <= $22)
        returning last_seq - $3 as base, agent_name
    ), forgotten as (
        delete from idempotency_keys
        where (tenant_id, scope, key) in (
            select tenant_id, scope, key from idempotency_keys
            where $15::text is not null and tenant_id = $1 and use_time <= now() - interval '24 hours'
                and not (scope = $14 and key = $15)
            order by use_time limit 2 for update skip locked
        )
    ), keyed as (
        insert into idempotency_keys as old (tenant_id, scope, key, body_hash, session_id, first_seq)
        select $1, $14, $15, $16, $2, base + 1 from numbered where $15 is not null
        on conflict (tenant_id, scope, key) do update
            set body_hash = excluded.body_hash, first_seq = excluded.first_seq, use_time = excluded.use_time
            where old.use_time <= now() - interval '24 hours'
        returning 1
    ), logged as (
        insert into events (tenant_id, session_id, seq, kind, turn_id, create_time, payload)
        select $1, $2, base + new.place, new.kind, new.turn_id, new.create_time, new.payload
        from numbered, unnest($17::text[], $18::uuid[], $19::timestamptz[], $20::bytea[])
            with ordinality as new (kind, turn_id, create_time, payload, place)
    ), kept as (
        insert into checkpoints (tenant_id, session_id, seq, checkpoint)
        select $1, $2, base + $3, $21 from numbered where $21::bytea is not null
        on conflict (tenant_id, session_id) do update
            set seq = excluded.seq, checkpoint = excluded.checkpoint, update_time = now()
    )
    select base, agent_name, (select count(*) from keyed) as keyed from numbered
";

#[async_trait]
impl EventLog for Postgres {
    async fn append(&self, append: Append) -> Result<Appended, Error> {
        self.append_prepared(Prepared::of(append)?).await
    }

    async fn find_sent(
        &self,
        tenant: TenantId,
        session: SessionId,
        key: &IdempotencyKey,
    ) -> Result<Option<u64>, Error> {
        let mut tx = self.tenant(tenant).await?;
        let used = sessions::used(&mut tx, tenant, &scope(session), key).await?;
        Ok(used.map(|(_, first_seq)| first_seq))
    }

    async fn read(
        &self,
        tenant: TenantId,
        session: SessionId,
        after_seq: u64,
        limit: u32,
    ) -> Result<Vec<SessionEvent>, Error> {
        let mut tx = self.tenant(tenant).await?;
        let rows = sqlx::query(
            "select seq, payload from events where tenant_id = $1 and session_id = $2 and seq > $3 order by seq limit $4",
        )
        .bind(tenant.0)
        .bind(session.0)
        .bind(signed(after_seq))
        .bind(i64::from(limit))
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        rows.iter().map(|row| event(session, row)).collect::<Result<_, _>>().map_err(failed)
    }

    async fn checkpoint(&self, tenant: TenantId, session: SessionId) -> Result<Option<StoredCheckpoint>, Error> {
        let mut tx = self.tenant(tenant).await?;
        let row = sqlx::query("select seq, checkpoint from checkpoints where tenant_id = $1 and session_id = $2")
            .bind(tenant.0)
            .bind(session.0)
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed)?;
        row.as_ref().map(checkpoint).transpose().map_err(failed)
    }
}

impl Postgres {
    /// One append in a transaction of its own.
    pub(super) async fn append_prepared(&self, prepared: Prepared) -> Result<Appended, Error> {
        let Prepared { append, change, columns } = prepared;
        let Append { tenant, session, authority, events, checkpoint, idempotency_key, input_seq } = append;
        let fences = authority.fences() || change.terminates();
        let (epoch, as_of) = match authority {
            Authority::Lease { epoch } => (Some(signed(epoch)), None),
            Authority::Overdue { as_of } => (None, Some(Time(as_of))),
            Authority::Caller | Authority::Fence => (None, None),
        };
        let (key, scope) = (idempotency_key.as_ref(), scope(session));

        let mut tx = self.tenant(tenant).await?;
        let numbered = sqlx::query(APPEND)
            .bind(tenant.0)
            .bind(session.0)
            .bind(signed(events.len() as u64))
            .bind(change.state.map(state_word))
            .bind(change.worker)
            .bind(change.turn_id)
            .bind(change.stop_reason.map(stop_reason_word))
            .bind(change.terminate_reason)
            .bind(change.newest_input.map(signed))
            .bind(input_seq.map(signed))
            .bind(Time(change.update_time))
            .bind(fences)
            .bind(epoch)
            .bind(&scope)
            .bind(key.map(|key| &key.key))
            .bind(key.map(|key| key.body_hash))
            .bind(columns.kinds)
            .bind(columns.turns)
            .bind(columns.times)
            .bind(columns.payloads)
            .bind(checkpoint.map(|checkpoint| checkpoint.encode_to_vec()))
            .bind(as_of)
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed)?;

        let Some(numbered) = numbered else { return refused(&mut tx, tenant, session, authority, &scope, key).await };
        if let Some(key) = key
            && numbered.get::<i64, _>("keyed") == 0
        {
            tx.rollback().await.map_err(failed)?;
            let first_seq = self.find_sent(tenant, session, key).await?;
            return first_seq.map(|first_seq| Appended::Existing { first_seq }).ok_or_else(|| {
                // It has just turned a day old.
                Error::unavailable("the idempotency key", anyhow::anyhow!("it was forgotten between two looks"))
            });
        }
        if fences {
            fence(&mut tx, tenant, session).await?;
        }
        let agent = numbered.try_get("agent_name").map_err(failed)?;
        usage::meter(&mut tx, tenant, &[Reported { session, agent, events: &events }]).await?;
        tx.commit().await.map_err(failed)?;
        let base: i64 = numbered.try_get("base").map_err(failed)?;
        Ok(Appended::New(projection::number(session, base.cast_unsigned() + 1, events)))
    }
}

/// Why an append found no session to change. A request that was carried out before is told so, whatever happened since.
pub(super) async fn refused(
    tx: &mut Tx,
    tenant: TenantId,
    session: SessionId,
    authority: Authority,
    scope: &str,
    key: Option<&IdempotencyKey>,
) -> Result<Appended, Error> {
    if let Some(key) = key
        && let Some((_, first_seq)) = sessions::used(tx, tenant, scope, key).await?
    {
        return Ok(Appended::Existing { first_seq });
    }
    let state: Option<String> =
        sqlx::query_scalar("select state from sessions where tenant_id = $1 and session_id = $2")
            .bind(tenant.0)
            .bind(session.0)
            .fetch_optional(&mut **tx)
            .await
            .map_err(failed)?;
    let session_id = session.to_string();
    Err(match (state.as_deref(), authority) {
        (None, _) => Error::SessionNotFound { session_id },
        (Some("terminated"), _) => Error::SessionTerminated { session_id },
        (Some(_), Authority::Lease { epoch }) => Error::LeaseLost { epoch },
        (Some(_), Authority::Overdue { .. }) => Error::SessionBusy { session_id },
        (Some(state), Authority::Caller | Authority::Fence) => {
            Error::internal(anyhow::anyhow!("a {state} session took no events"))
        }
    })
}

/// Moves the lease on. Apart from the append, since a heartbeat may be changing the lease's row at this moment.
async fn fence(tx: &mut Tx, tenant: TenantId, session: SessionId) -> Result<(), Error> {
    sqlx::query(
        "update leases set epoch = epoch + 1, holder = null, expire_time = null where tenant_id = $1 and session_id = $2",
    )
    .bind(tenant.0)
    .bind(session.0)
    .execute(&mut **tx)
    .await
    .map_err(failed)?;
    Ok(())
}

/// An append that makes sense by itself, with all that can be said of it before the session is looked at.
pub(super) struct Prepared {
    pub append: Append,
    pub change: Change,
    pub columns: Columns,
}

impl Prepared {
    /// Fails with [`Error::Internal`] when there are no events, or one that is not durable.
    pub(super) fn of(append: Append) -> Result<Self, Error> {
        let (change, columns) = (Change::of(&append.events)?, Columns::of(&append.events)?);
        Ok(Self { append, change, columns })
    }

    /// Ends the turn at hand as well.
    pub(super) fn fences(&self) -> bool {
        self.append.authority.fences() || self.change.terminates()
    }
}

/// The scope of keys of `SendMessage`.
pub(super) fn scope(session: SessionId) -> String {
    format!("sessions/{session}")
}

/// Events as the columns of their table.
pub(super) struct Columns {
    pub kinds: Vec<&'static str>,
    pub turns: Vec<Option<Uuid>>,
    pub times: Vec<Time>,
    pub payloads: Vec<Vec<u8>>,
}

impl Columns {
    /// Fails with [`Error::Internal`] when one of the events is no durable one.
    pub(super) fn of(events: &[NewEvent]) -> Result<Self, Error> {
        Ok(Self {
            kinds: events.iter().map(|event| projection::kind_name(&event.kind)).collect::<Result<_, _>>()?,
            turns: events.iter().map(|event| event.turn.map(|turn| turn.0)).collect(),
            times: events.iter().map(|event| Time(event.create_time)).collect(),
            payloads: events.iter().map(payload).collect(),
        })
    }
}

/// The event as it will be read, but for the session and the number, which are columns.
fn payload(event: &NewEvent) -> Vec<u8> {
    SessionEvent {
        session_id: String::new(),
        seq: 0,
        create_time: Some(event.create_time),
        elapsed_ms: event.elapsed_ms,
        turn_id: event.turn.map(|turn| turn.to_string()).unwrap_or_default(),
        kind: Some(event.kind.clone()),
    }
    .encode_to_vec()
}

fn event(session: SessionId, row: &PgRow) -> Result<SessionEvent, sqlx::Error> {
    let payload: &[u8] = row.try_get("payload")?;
    let event = SessionEvent::decode(payload).map_err(unreadable)?;
    let seq: i64 = row.try_get("seq")?;
    Ok(SessionEvent { session_id: session.to_string(), seq: seq.cast_unsigned(), ..event })
}

fn checkpoint(row: &PgRow) -> Result<StoredCheckpoint, sqlx::Error> {
    let checkpoint: &[u8] = row.try_get("checkpoint")?;
    let seq: i64 = row.try_get("seq")?;
    let checkpoint = SessionCheckpoint::decode(checkpoint).map_err(unreadable)?;
    Ok(StoredCheckpoint { checkpoint, seq: seq.cast_unsigned() })
}
