//! One append in a transaction of its own.

use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::SessionEvent;
use prost::Message;
use sqlx::Row;
use uuid::Uuid;

use super::row::{select_session, state_word, stop_reason_word};
use super::time::Time;
use super::timed::{Timed, Tx};
use super::turns::{LeaseChange, Stored};
use super::usage::{self, Reported};
use super::{Postgres, failed, sessions, signed};
use crate::error::Error;
use crate::events::log::{Append, Authority, EventLog, IdempotencyKey, NewEvent};
use crate::store::projection::{self, Change};

/// One statement for all that every append does. The update takes the session's lock, and with it the next numbers; it
/// checks the state and the lease's epoch on the row as it stands once the lock is ours. The rest hangs on its result: when
/// it finds no row to update, nothing happens.
///
/// A turn's first append takes the lease and its last gives it up; for those the session's lock is ours by now, so that what is
/// read beside the update stands as it is read.
const APPEND: &str = concat!(
    "
    with taken as (
        insert into leases as old (tenant_id, session_id, epoch, holder, expire_time)
        select $1, $2, 1, $23, clock_timestamp() + $24 * interval '1 microsecond'
        from sessions where $23::text is not null and tenant_id = $1 and session_id = $2 and state <> 'terminated'
            and ($28::bigint is null or newest_input_seq = $28)
        on conflict (tenant_id, session_id) do update
            set epoch = old.epoch + 1, holder = excluded.holder, expire_time = excluded.expire_time
            where old.holder is null or old.expire_time <= clock_timestamp()
        returning epoch
    ), given as (
        update leases set holder = null, expire_time = null
        where $25 and tenant_id = $1 and session_id = $2 and epoch = $13 and exists (
            select 1 from sessions s
            where s.tenant_id = $1 and s.session_id = $2 and s.state <> 'terminated' and s.lease_epoch = $13
                and coalesce(s.last_seq + $9, s.newest_input_seq) <= greatest(s.input_seq, $10)
        )
        returning 1
    ), numbered as (
        update sessions set
            last_seq = last_seq + $3,
            state = coalesce($4, state),
            worker = coalesce($5, worker),
            turn_id = case when $23::text is not null and state = 'running' then turn_id else coalesce($6, turn_id) end,
            last_stop_reason = coalesce($7, last_stop_reason),
            terminate_reason = coalesce($8, terminate_reason),
            newest_input_seq = coalesce(last_seq + $9, newest_input_seq),
            input_seq = greatest(input_seq, $10),
            update_time = $11,
            lease_epoch = case
                when $12 or exists (select 1 from given) then null
                else coalesce((select epoch from taken), lease_epoch)
            end
        where tenant_id = $1 and session_id = $2 and state <> 'terminated'
            and ($13::bigint is null or lease_epoch = $13) and ($22::timestamptz is null or due_time <= $22)
            and ($23::text is null or exists (select 1 from taken))
            and ($26::text is null or (state = 'running' and turn_id = $26)) and not ($27 and state = 'running')
            and ($28::bigint is null or newest_input_seq = $28)
        returning last_seq - $3 as base, lease_epoch
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
    select n.base, n.lease_epoch, (select count(*) from keyed) as keyed,
        c.seq as checkpoint_seq, c.checkpoint, s.*
    from numbered n
    left join (
",
    select_session!(),
    "
        where $23::text is not null and s.tenant_id = $1 and s.session_id = $2
    ) s on true
    left join checkpoints c on $23::text is not null and c.tenant_id = $1 and c.session_id = $2
"
);

impl Postgres {
    /// One append in a transaction of its own.
    pub(super) async fn append_alone(&self, prepared: Prepared) -> Result<Stored, Error> {
        self.timed(|server| Box::pin(self.append_prepared(server, prepared))).await
    }

    async fn append_prepared(&self, server: Timed<'_>, prepared: Prepared) -> Result<Stored, Error> {
        let waits = prepared.may_wait();
        let Prepared { append, change, columns, lease } = prepared;
        let Append { tenant, session, authority, events, checkpoint, idempotency_key, input_seq } = append;
        let fences = authority.fences() || change.terminates();
        let (epoch, as_of, during) = match authority {
            Authority::Lease { epoch } => (Some(signed(epoch)), None, None),
            Authority::Overdue { as_of } => (None, Some(Time(as_of)), None),
            Authority::During { turn } => (None, None, Some(turn.to_string())),
            Authority::Caller | Authority::Behind { .. } | Authority::Fence | Authority::AtRest => (None, None, None),
        };
        let behind = if let Authority::Behind { input_seq } = authority { Some(signed(input_seq)) } else { None };
        let (key, scope) = (idempotency_key.as_ref(), scope(session));

        // The order of locks is session, then lease, here as anywhere.
        let mut tx = match &lease {
            LeaseChange::Keep => server.planned(tenant, "").await?,
            LeaseChange::Take { .. } | LeaseChange::Release => server.locking(tenant, [session]).await?,
        };
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
            .bind(lease.holder())
            .bind(lease.ttl_micros())
            .bind(lease.releases())
            .bind(during)
            .bind(authority == Authority::AtRest)
            .bind(behind)
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed)?;

        let Some(numbered) = numbered else {
            return refused(&mut tx, tenant, session, authority, &lease, key).await;
        };
        if let Some(key) = key
            && numbered.get::<i64, _>("keyed") == 0
        {
            tx.rollback().await.map_err(failed)?;
            let first_seq = self.find_sent(tenant, session, key).await?;
            return first_seq.map(|first_seq| Stored::Existing { first_seq }).ok_or_else(|| {
                // It has just turned a day old.
                Error::unavailable("the idempotency key", anyhow::anyhow!("it was forgotten between two looks"))
            });
        }
        if fences {
            fence(&mut tx, tenant, session).await?;
        } else if waits {
            abandon_if_free(&mut tx, tenant, session).await?;
        }
        usage::meter(&mut tx, tenant, Reported { session, events: &events }).await?;
        tx.commit().await.map_err(failed)?;
        lease.stored(session, events, &numbered).map_err(failed)
    }
}

/// Why an append found no session to change. A request that was carried out before is told so, whatever happened since.
pub(super) async fn refused(
    tx: &mut Tx,
    tenant: TenantId,
    session: SessionId,
    authority: Authority,
    lease: &LeaseChange,
    key: Option<&IdempotencyKey>,
) -> Result<Stored, Error> {
    if let Some(key) = key
        && let Some((_, first_seq)) = sessions::used(tx, tenant, &scope(session), key).await?
    {
        return Ok(Stored::Existing { first_seq });
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
        (Some(_), _) if matches!(lease, LeaseChange::Take { .. }) => return Ok(Stored::Busy),
        (Some(_), Authority::Lease { epoch }) => Error::LeaseLost { epoch },
        (
            Some(_),
            Authority::Overdue { .. } | Authority::During { .. } | Authority::Behind { .. } | Authority::AtRest,
        ) => Error::SessionBusy { session_id },
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

/// A message that comes when nobody holds the lease any more is an abandoned turn from the start, or it would wait for ever if its
/// sender were lost now. The session's lock is ours, so that nobody takes or gives up its lease meanwhile.
async fn abandon_if_free(tx: &mut Tx, tenant: TenantId, session: SessionId) -> Result<(), Error> {
    sqlx::query(
        "update leases set epoch = epoch + 1, holder = '', expire_time = clock_timestamp()
        where tenant_id = $1 and session_id = $2 and holder is null",
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
    pub lease: LeaseChange,
}

impl Prepared {
    /// Fails with [`Error::Internal`] when there are no events, or one that is not durable.
    pub(super) fn of(append: Append) -> Result<Self, Error> {
        Self::with(append, LeaseChange::Keep)
    }

    /// As [`Self::of`], of a turn's first or last append.
    pub(super) fn with(append: Append, lease: LeaseChange) -> Result<Self, Error> {
        let (change, columns) = (Change::of(&append.events)?, Columns::of(&append.events)?);
        Ok(Self { append, change, columns, lease })
    }

    /// A user's message beside the turn at hand, if there is still one.
    pub(super) fn may_wait(&self) -> bool {
        let begins = matches!(self.lease, LeaseChange::Take { .. });
        self.append.authority == Authority::Caller && self.change.newest_input.is_some() && !begins
    }

    /// Never part of a group: a key may turn out to be taken, an end takes more locks, and a turn may be over.
    pub(super) fn stands_alone(&self) -> bool {
        let depends = matches!(self.append.authority, Authority::During { .. } | Authority::Behind { .. });
        self.append.idempotency_key.is_some() || self.fences() || depends
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
#[derive(Default)]
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

    /// Of the payloads.
    pub(super) fn bytes(&self) -> usize {
        self.payloads.iter().map(Vec::len).sum()
    }

    /// Takes over the events of others.
    pub(super) fn append(&mut self, others: &mut Self) {
        self.kinds.append(&mut others.kinds);
        self.turns.append(&mut others.turns);
        self.times.append(&mut others.times);
        self.payloads.append(&mut others.payloads);
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
