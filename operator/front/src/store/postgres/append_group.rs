//! Many appends of one tenant in one transaction.

use std::sync::Arc;

use croft_proto::id::TenantId;
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::append::{self, Prepared, abandon_if_free, refused};
use super::row::{select_session, state_word, stop_reason_word};
use super::time::Time;
use super::turns::Stored;
use super::usage::{self, Reported};
use super::{Postgres, failed, signed};
use crate::error::Error;
use crate::events::log::Authority;

/// What `APPEND` does for one append, for all of a group. Each append is of another session, whose lock is ours by now; one whose
/// session is not to be changed has no row in `numbered`, and nothing of it is stored.
const APPEND_GROUP: &str = concat!(
    "
    with asked as materialized (
        select * from unnest(
            $2::uuid[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[], $8::bigint[], $9::bigint[],
            $10::timestamptz[], $11::bigint[], $12::bytea[], $19::text[], $20::bigint[], $21::boolean[]
        ) with ordinality as asked (
            session_id, events, state, worker, turn_id, stop_reason, newest_input, input_seq, update_time, epoch,
            checkpoint, holder, ttl, releases, place
        )
    ), taken as (
        insert into leases as old (tenant_id, session_id, epoch, holder, expire_time)
        select $1, asked.session_id, 1, asked.holder, clock_timestamp() + asked.ttl * interval '1 microsecond'
        from asked
        join sessions s on s.tenant_id = $1 and s.session_id = asked.session_id and s.state <> 'terminated'
        where asked.holder is not null
        on conflict (tenant_id, session_id) do update
            set epoch = old.epoch + 1, holder = excluded.holder, expire_time = excluded.expire_time
            where old.holder is null or old.expire_time <= clock_timestamp()
        returning session_id, epoch
    ), given as (
        update leases l set holder = null, expire_time = null
        from asked
        join sessions s on s.tenant_id = $1 and s.session_id = asked.session_id
        where asked.releases and l.tenant_id = $1 and l.session_id = asked.session_id and l.epoch = asked.epoch
            and s.state <> 'terminated' and s.lease_epoch = asked.epoch
            and coalesce(s.last_seq + asked.newest_input, s.newest_input_seq) <= greatest(s.input_seq, asked.input_seq)
        returning l.session_id
    ), numbered as (
        update sessions s set
            last_seq = s.last_seq + asked.events,
            state = coalesce(asked.state, s.state),
            worker = coalesce(asked.worker, s.worker),
            turn_id = coalesce(asked.turn_id, s.turn_id),
            last_stop_reason = coalesce(asked.stop_reason, s.last_stop_reason),
            newest_input_seq = coalesce(s.last_seq + asked.newest_input, s.newest_input_seq),
            input_seq = greatest(s.input_seq, asked.input_seq),
            update_time = asked.update_time,
            lease_epoch = case
                when given.session_id is not null then null
                else coalesce(taken.epoch, s.lease_epoch)
            end
        from asked
        left join taken on taken.session_id = asked.session_id
        left join given on given.session_id = asked.session_id
        where s.tenant_id = $1 and s.session_id = asked.session_id and s.state <> 'terminated'
            and (asked.epoch is null or s.lease_epoch = asked.epoch)
            and (asked.holder is null or taken.epoch is not null)
        returning asked.place, s.session_id, s.last_seq - asked.events as base, s.agent_name, s.lease_epoch,
            asked.events, asked.checkpoint, asked.holder
    ), logged as (
        insert into events (tenant_id, session_id, seq, kind, turn_id, create_time, payload)
        select $1, numbered.session_id, numbered.base + new.within, new.kind, new.turn_id, new.create_time, new.payload
        from unnest($13::bigint[], $14::bigint[], $15::text[], $16::uuid[], $17::timestamptz[], $18::bytea[])
            as new (place, within, kind, turn_id, create_time, payload)
        join numbered on numbered.place = new.place
    ), kept as (
        insert into checkpoints (tenant_id, session_id, seq, checkpoint)
        select $1, session_id, base + events, checkpoint from numbered where checkpoint is not null
        on conflict (tenant_id, session_id) do update
            set seq = excluded.seq, checkpoint = excluded.checkpoint, update_time = now()
    )
    select n.place, n.base, n.agent_name, n.lease_epoch, c.seq as checkpoint_seq, c.checkpoint, s.*
    from numbered n
    left join lateral (
",
    select_session!(),
    "
        where n.holder is not null and s.tenant_id = $1 and s.session_id = n.session_id
    ) s on true
    left join checkpoints c on n.holder is not null and c.tenant_id = $1 and c.session_id = n.session_id
"
);

/// The columns of a group's appends, and of all their events.
#[derive(Default)]
struct Columns {
    sessions: Vec<uuid::Uuid>,
    counts: Vec<i64>,
    states: Vec<Option<String>>,
    workers: Vec<Option<String>>,
    turn_ids: Vec<Option<String>>,
    stop_reasons: Vec<Option<String>>,
    newest_inputs: Vec<Option<i64>>,
    input_seqs: Vec<Option<i64>>,
    update_times: Vec<Time>,
    epochs: Vec<Option<i64>>,
    checkpoints: Vec<Option<Vec<u8>>>,
    holders: Vec<Option<String>>,
    ttls: Vec<Option<i64>>,
    releases: Vec<bool>,
    places: Vec<i64>,
    within: Vec<i64>,
    events: append::Columns,
}

impl Columns {
    fn add(&mut self, place: i64, prepared: &mut Prepared) {
        let Prepared { append, change, columns, lease } = prepared;
        self.sessions.push(append.session.0);
        self.counts.push(signed(append.events.len() as u64));
        self.states.push(change.state.map(state_word));
        self.workers.push(change.worker.take());
        self.turn_ids.push(change.turn_id.take());
        self.stop_reasons.push(change.stop_reason.map(stop_reason_word));
        self.newest_inputs.push(change.newest_input.map(signed));
        self.input_seqs.push(append.input_seq.map(signed));
        self.update_times.push(Time(change.update_time));
        self.epochs.push(match append.authority {
            Authority::Lease { epoch } => Some(signed(epoch)),
            // What fences is never part of a group.
            Authority::Caller | Authority::Fence | Authority::Overdue { .. } => None,
        });
        self.checkpoints.push(append.checkpoint.as_ref().map(prost::Message::encode_to_vec));
        self.holders.push(lease.holder().map(str::to_owned));
        self.ttls.push(lease.ttl_micros());
        self.releases.push(lease.releases());
        self.within.extend((1..).take(append.events.len()));
        self.events.append(columns);
        self.places.resize(self.events.kinds.len(), place);
    }
}

impl Postgres {
    /// Stores appends of one tenant, each of another session, without keys and without ends. One outcome an append, in
    /// their order: what refuses one of them does not touch the others.
    pub(super) async fn append_group(&self, tenant: TenantId, mut group: Vec<Prepared>) -> Vec<Result<Stored, Error>> {
        if group.len() == 1
            && let Some(single) = group.pop()
        {
            return vec![self.append_prepared(single).await];
        }
        let rows = match self.append_together(tenant, &mut group).await {
            Ok(rows) => rows,
            Err(error @ Error::Unavailable { .. }) => return all_fail(error, group.len()),
            // One of them is such that the database does not have it. The others shall not suffer from it.
            Err(_) => return self.append_each(group).await,
        };
        let mut outcomes = Vec::with_capacity(group.len());
        for (prepared, row) in group.into_iter().zip(rows) {
            let Prepared { append, lease, .. } = prepared;
            let session = append.session;
            outcomes.push(match row {
                Some(row) => lease.stored(session, append.events, &row).map_err(failed),
                None => match self.tenant(tenant).await {
                    Ok(mut tx) => refused(&mut tx, tenant, session, append.authority, &lease, None).await,
                    Err(error) => Err(error),
                },
            });
        }
        outcomes
    }

    async fn append_each(&self, group: Vec<Prepared>) -> Vec<Result<Stored, Error>> {
        let mut outcomes = Vec::with_capacity(group.len());
        for prepared in group {
            outcomes.push(match Prepared::with(prepared.append, prepared.lease) {
                Ok(prepared) => self.append_prepared(prepared).await,
                Err(error) => Err(error),
            });
        }
        outcomes
    }

    /// What the database told of each append; `None` for one that was not to be stored.
    async fn append_together(&self, tenant: TenantId, group: &mut [Prepared]) -> Result<Vec<Option<PgRow>>, Error> {
        let mut columns = Columns::default();
        for (place, prepared) in (1..).zip(group.iter_mut()) {
            columns.add(place, prepared);
        }
        let mut tx = self.locking(tenant, group.iter().map(|prepared| prepared.append.session)).await?;
        let numbered = sqlx::query(APPEND_GROUP)
            .bind(tenant.0)
            .bind(columns.sessions)
            .bind(columns.counts)
            .bind(columns.states)
            .bind(columns.workers)
            .bind(columns.turn_ids)
            .bind(columns.stop_reasons)
            .bind(columns.newest_inputs)
            .bind(columns.input_seqs)
            .bind(columns.update_times)
            .bind(columns.epochs)
            .bind(columns.checkpoints)
            .bind(columns.places)
            .bind(columns.within)
            .bind(columns.events.kinds)
            .bind(columns.events.turns)
            .bind(columns.events.times)
            .bind(columns.events.payloads)
            .bind(columns.holders)
            .bind(columns.ttls)
            .bind(columns.releases)
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
        let mut rows: Vec<_> = group.iter().map(|_| None).collect();
        for row in numbered {
            let place: i64 = row.try_get("place").map_err(failed)?;
            let index = usize::try_from(place - 1).map_err(Error::internal)?;
            rows[index] = Some(row);
        }
        let mut reported = Vec::with_capacity(group.len());
        let mut waiting = Vec::new();
        for (prepared, row) in group.iter().zip(&rows) {
            if let Some(row) = row {
                waiting.extend(prepared.may_wait().then_some(prepared.append.session.0));
                let (append, agent) = (&prepared.append, row.try_get("agent_name").map_err(failed)?);
                reported.push(Reported { session: append.session, agent, events: &append.events });
            }
        }
        abandon_if_free(&mut tx, tenant, &waiting).await?;
        usage::meter(&mut tx, tenant, &reported).await?;
        tx.commit().await.map_err(failed)?;
        Ok(rows)
    }
}

/// The database is away, for each of a group.
fn all_fail(error: Error, appends: usize) -> Vec<Result<Stored, Error>> {
    let shared = Arc::new(error);
    (0..appends).map(|_| Err(Error::unavailable("postgres", anyhow::Error::new(Arc::clone(&shared))))).collect()
}
