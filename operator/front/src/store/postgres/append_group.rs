//! Many appends of one tenant in one transaction.

use std::sync::Arc;

use croft_proto::id::{SessionId, TenantId};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::append::{self, Prepared, refused};
use super::at_once::Call;
use super::row::{state_word, stop_reason_word};
use super::time::Time;
use super::turns::{LeaseChange, Stored};
use super::usage::{self, Reported};
use super::{Postgres, failed, signed};
use crate::error::Error;
use crate::events::log::Authority;

/// What `APPEND` does for one append, for all of a group, and all that its transaction does besides. Each append is of another session.
/// See `migrations/0023_one_call.sql`, `0024_by_key.sql`, `0025_one_look.sql`, `0026_service_tiers.sql`,
/// `0034_turns_broken_off.sql` and `0035_usage_by_sender.sql`.
const APPEND_GROUP: &str =
    "select * from croft_append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18,
    $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, $35, $36, $37, $38, $39, $40, $41)";

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
    waits: Vec<bool>,
    places: Vec<i64>,
    within: Vec<i64>,
    events: append::Columns,
}

impl Columns {
    fn add(&mut self, place: i64, prepared: &mut Prepared) {
        self.waits.push(prepared.may_wait());
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
            // The others are never part of a group.
            Authority::Caller
            | Authority::During { .. }
            | Authority::Behind { .. }
            | Authority::Fence
            | Authority::AtRest
            | Authority::Overdue { .. } => None,
        });
        self.checkpoints.push(append.checkpoint.as_ref().map(prost::Message::encode_to_vec));
        self.holders.push(lease.holder().map(str::to_owned));
        self.ttls.push(lease.ttl_micros());
        self.releases.push(lease.releases());
        self.within.extend((1..).take(append.events.len()));
        self.events.append(columns);
        self.places.resize(self.events.kinds.len(), place);
    }

    /// Of the columns that may be large.
    fn bytes(&self) -> usize {
        self.events.bytes() + self.checkpoints.iter().flatten().map(Vec::len).sum::<usize>()
    }

    /// The arguments from the sessions to the payloads.
    fn bind<'q>(&'q self, call: Call<'q>) -> Call<'q> {
        call.bind(&self.sessions)
            .bind(&self.counts)
            .bind(&self.states)
            .bind(&self.workers)
            .bind(&self.turn_ids)
            .bind(&self.stop_reasons)
            .bind(&self.newest_inputs)
            .bind(&self.input_seqs)
            .bind(&self.update_times)
            .bind(&self.epochs)
            .bind(&self.checkpoints)
            .bind(&self.holders)
            .bind(&self.ttls)
            .bind(&self.releases)
            .bind(&self.waits)
            .bind(&self.places)
            .bind(&self.within)
            .bind(&self.events.kinds)
            .bind(&self.events.turns)
            .bind(&self.events.times)
            .bind(&self.events.payloads)
    }
}

impl Postgres {
    /// Stores appends of one tenant, each of another session, without keys and without ends. One outcome an append, in
    /// their order: what refuses one of them does not touch the others.
    pub(super) async fn append_group(&self, tenant: TenantId, mut group: Vec<Prepared>) -> Vec<Result<Stored, Error>> {
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
                None => self.why_refused(tenant, session, append.authority, &lease).await,
            });
        }
        outcomes
    }

    async fn why_refused(
        &self,
        tenant: TenantId,
        session: SessionId,
        authority: Authority,
        lease: &LeaseChange,
    ) -> Result<Stored, Error> {
        self.timed(async |server| {
            let mut tx = server.tenant(tenant).await?;
            refused(&mut tx, tenant, session, authority, lease, None).await
        })
        .await
    }

    async fn append_each(&self, group: Vec<Prepared>) -> Vec<Result<Stored, Error>> {
        let mut outcomes = Vec::with_capacity(group.len());
        for prepared in group {
            outcomes.push(match Prepared::with(prepared.append, prepared.lease) {
                Ok(prepared) => self.append_alone(prepared).await,
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
        let reported =
            group.iter().map(|Prepared { append, .. }| Reported { session: append.session, events: &append.events });
        let used = usage::Columns::of(reported);
        let bytes = columns.bytes();
        let call = || used.bind(columns.bind(sqlx::query(APPEND_GROUP).bind(tenant.0)));
        let mut rows: Vec<_> = group.iter().map(|_| None).collect();
        for row in self.at_once(bytes, call).await? {
            let place: i64 = row.try_get("place").map_err(failed)?;
            let index = usize::try_from(place - 1).map_err(Error::internal)?;
            rows[index] = Some(row);
        }
        Ok(rows)
    }
}

/// The database is away, for each of a group.
pub(super) fn all_fail<T>(error: Error, jobs: usize) -> Vec<Result<T, Error>> {
    let shared = Arc::new(error);
    (0..jobs).map(|_| Err(Error::unavailable("postgres", anyhow::Error::new(Arc::clone(&shared))))).collect()
}
