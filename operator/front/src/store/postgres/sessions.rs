//! Sessions in Postgres.

use async_trait::async_trait;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::SessionState;
use prost::Message;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::append::Columns;
use super::row::{self, SELECT_SESSION, state_word, stop_reason_word};
use super::time::Time;
use super::timed::Tx;
use super::usage::{self, Reported};
use super::{Postgres, failed, is_foreign_key, signed};
use crate::error::Error;
use crate::events::log::IdempotencyKey;
use crate::session::Session;
use crate::session::store::{Filter, Inserted, LOOKED_AT_MAX, NewSession, PAGE_BYTES, Page, SessionStore};
use crate::store::{being_removed, projection, unknown_tenant};

/// The scope of keys of `CreateSession`.
const SCOPE: &str = "sessions";

/// Everything in one statement: the key if there is one, the session unless the key is taken or the tenant is full, the
/// events with the session.
const INSERT: &str = "
    with forgotten as (
        delete from idempotency_keys
        where (tenant_id, scope, key) in (
            select tenant_id, scope, key from idempotency_keys
            where $4::text is not null and tenant_id = $1 and use_time <= now() - interval '24 hours'
                and not (scope = $3 and key = $4)
            order by use_time limit 2 for update skip locked
        )
    ), keyed as (
        insert into idempotency_keys as old (tenant_id, scope, key, body_hash, session_id, first_seq)
        select $1, $3, $4, $5, $2, 1 where $4 is not null
        on conflict (tenant_id, scope, key) do update
            set body_hash = excluded.body_hash, session_id = excluded.session_id, first_seq = 1,
                use_time = excluded.use_time
            where old.use_time <= now() - interval '24 hours'
        returning 1
    ), above as (
        -- Whoever ends the parent waits for this, and then finds its child; or has ended it before, and there is none.
        select 1 from sessions where tenant_id = $1 and session_id = $26 and state <> 'terminated' for share
    ), made as (
        insert into sessions (
            tenant_id, session_id, state, agent, agent_name, config_hash, labels, create_time, update_time, last_seq,
            newest_input_seq, turn_id, worker, terminate_reason, last_stop_reason, idle_timeout_ms, expire_time, parent_id,
            parent_turn, parent_call, lineage
        )
        select $1, $2, $7, $8, $9, $10, $11::text::jsonb, $12, $13, $14, $15, $16, $17, $18, $19, $24, $25, $26, $27, $28,
            $29::text::jsonb
        where ($26::uuid is null or exists (select 1 from above)) and ($4 is null or exists (select 1 from keyed)) and exists (
            select 1 from tenants where tenant_id = $1 and remove_time is null
        ) and (
            $6::bigint is null
            or (select coalesce(sum(sessions), 0) from open_sessions where tenant_id = $1) < $6
        )
        on conflict (tenant_id, parent_id, parent_call) where parent_id is not null do nothing
        returning 1
    ), logged as (
        insert into events (tenant_id, session_id, seq, kind, turn_id, create_time, payload)
        select $1, $2, new.place, new.kind, new.turn_id, new.create_time, new.payload
        from made, unnest($20::text[], $21::uuid[], $22::timestamptz[], $23::bytea[])
            with ordinality as new (kind, turn_id, create_time, payload, place)
    )
    select (select count(*) from keyed) as keyed, (select count(*) from made) as made,
        (select remove_time is not null from tenants where tenant_id = $1) as removing
";

/// Sessions that ask. Those at rest are found by an index of their own, whose order and conditions are all that is said of them: with more, the index of
/// all open sessions seems as good to the planner. Those that run are found by their leases, of which there are no more than turns at hand. With
/// `offset` the events of each are looked up from its message on; they would be joined, and all of its log looked at.
const ASKING: &str = "
    select s.session_id, octet_length(s.agent) + octet_length(s.labels::text) as bytes
    from (
        (
            select i.session_id from sessions i
            where i.tenant_id = $1 and i.state = 'idle' and i.last_stop_reason = 'requires_action'
                and ($2::uuid is null or i.session_id < $2)
            order by i.session_id desc limit $3 + 1
        )
        union all
        select r.session_id from leases l join sessions r on r.tenant_id = l.tenant_id and r.session_id = l.session_id
        where l.tenant_id = $1 and l.holder is not null and ($2::uuid is null or l.session_id < $2) and r.state = 'running' and exists (
            select from events e
            where e.tenant_id = $1 and e.session_id = r.session_id and e.seq > r.input_seq and e.kind = 'approval_required'
            offset 0
        )
        order by session_id desc limit $3 + 1
    ) asks
    join sessions s on s.tenant_id = $1 and s.session_id = asks.session_id
";

/// Those of the sessions `s` that a page has, of what a statement tells of them: their ids and bytes. `limit` and `bytes` are the parameters of its bounds.
/// Each row also tells how many were found: one more than there is room for, where there are others behind the page.
fn page_of(found: &str, limit: &str, bytes: &str) -> String {
    format!(
        "with page as (
            select session_id, row_number() over places as place, count(*) over () as found,
                sum(bytes) over places - bytes as before
            from ({found} order by s.session_id desc limit {limit} + 1) as found
            window places as (order by session_id desc rows unbounded preceding)
        )
        select p.found, s.* from page p
        join ({SELECT_SESSION} where s.tenant_id = $1) s on s.session_id = p.session_id
        where p.place <= {limit} and p.before < {bytes}
        order by p.place"
    )
}

/// The sessions of a page, and the last of its ids where others were found behind it. One that can't be read, as of a newer release, is left
/// out: those of the others are to be found all the same.
fn sessions_of(rows: &[PgRow]) -> Result<(Vec<Session>, Option<SessionId>), sqlx::Error> {
    let found = rows.first().map_or(Ok(0), |row| row.try_get::<i64, _>("found"))?;
    let (mut sessions, mut last) = (Vec::with_capacity(rows.len()), None);
    for row in rows {
        let id = SessionId(row.try_get("session_id")?);
        last = Some(id);
        match row::session(row) {
            Ok(session) => sessions.push(session),
            Err(error) => tracing::warn!(session = %id, %error, "a session that can't be read is left out of a page"),
        }
    }
    let has_more = i64::try_from(rows.len()).is_ok_and(|shown| shown < found);
    Ok((sessions, last.filter(|_| has_more)))
}

#[async_trait]
impl SessionStore for Postgres {
    async fn insert(&self, new: NewSession) -> Result<Inserted, Error> {
        self.timed(async |server| {
            let mut session = projection::begin(&new)?;
            let columns = Columns::of(&new.events)?;
            let mut tx = server.planned(new.tenant, tenant_lock(new.tenant, new.sessions_max.is_some())).await?;
            let (key, parent) = (new.idempotency_key.as_ref(), new.parent.as_ref());
            let lineage: Vec<_> = parent.iter().flat_map(|parent| &parent.lineage).collect();
            let outcome = sqlx::query(INSERT)
                .bind(new.tenant.0)
                .bind(new.id.0)
                .bind(SCOPE)
                .bind(key.map(|key| &key.key))
                .bind(key.map(|key| key.body_hash))
                .bind(new.sessions_max.map(i64::from))
                .bind(state_word(session.state))
                .bind(session.agent.encode_to_vec())
                .bind(&session.agent.name)
                .bind(&session.config_hash)
                .bind(serde_json::to_string(&session.labels).map_err(Error::internal)?)
                .bind(Time(session.create_time))
                .bind(Time(session.update_time))
                .bind(signed(session.last_seq))
                .bind(signed(session.newest_input_seq))
                .bind(&session.turn_id)
                .bind(&session.worker)
                .bind(&session.terminate_reason)
                .bind(stop_reason_word(session.last_stop_reason))
                .bind(columns.kinds)
                .bind(columns.turns)
                .bind(columns.times)
                .bind(columns.payloads)
                .bind(session.idle_timeout_ms)
                .bind(session.expire_time.map(Time))
                .bind(parent.map(|parent| parent.session.0))
                .bind(parent.map(|parent| parent.turn.0))
                .bind(parent.map(|parent| parent.tool_call_id.as_str()))
                .bind(serde_json::to_string(&lineage).map_err(Error::internal)?)
                .fetch_one(&mut *tx)
                .await
                .map_err(|error| if is_foreign_key(&error) { unknown_tenant() } else { failed(error) })?;

            if let Some(key) = key
                && outcome.get::<i64, _>("keyed") == 0
            {
                tx.rollback().await.map_err(failed)?;
                // It is there, unless it has just turned a day old.
                let existing = self.find_created(new.tenant, key).await?;
                return existing.map(Inserted::Existing).ok_or_else(|| {
                    Error::unavailable("the idempotency key", anyhow::anyhow!("it was forgotten between two looks"))
                });
            }
            if outcome.get::<i64, _>("made") == 0 {
                if let Some(parent) = parent {
                    tx.rollback().await.map_err(failed)?;
                    if let Some(existing) = self.child(new.tenant, parent.session, &parent.tool_call_id).await? {
                        return Ok(Inserted::Existing(existing));
                    }
                    let above = SessionStore::get(self, new.tenant, parent.session).await?;
                    if above.is_none_or(|above| above.state == SessionState::Terminated) {
                        return Err(Error::SessionTerminated { session_id: parent.session.to_string() });
                    }
                }
                return Err(not_made(outcome.try_get("removing").map_err(failed)?, new.sessions_max));
            }
            let reported = Reported { session: new.id, events: &new.events };
            if let Some(totals) = usage::meter(&mut tx, new.tenant, reported).await? {
                session.usage = totals;
            }
            tx.commit().await.map_err(failed)?;
            Ok(Inserted::New { session, events: projection::number(new.id, 1, new.events) })
        })
        .await
    }

    async fn get(&self, tenant: TenantId, id: SessionId) -> Result<Option<Session>, Error> {
        self.timed(async |server| {
            let mut tx = server.tenant(tenant).await?;
            get(&mut tx, tenant, id).await
        })
        .await
    }

    async fn list(
        &self,
        tenant: TenantId,
        filter: &Filter,
        after: Option<SessionId>,
        limit: u32,
    ) -> Result<Page, Error> {
        self.timed(async |server| {
            let states: Vec<_> = filter.states.iter().copied().map(state_word).collect();
            let labels = serde_json::to_string(&filter.labels).map_err(Error::internal)?;
            let ids = filter.ids.iter().map(|id| id.0).collect::<Vec<_>>();
            let parent = filter.parent.map(|parent| parent.0);
            // Said in words, so that the index of open sessions serves where it can.
            let only_open = !filter.states.is_empty() && !filter.states.contains(&SessionState::Terminated);
            let only_open = if only_open { "and s.state <> 'terminated'" } else { "" };
            let indexed = format!(
                "sessions s
                where s.tenant_id = $1 and ($2::uuid is null or s.session_id < $2) and ($3::uuid is null or s.parent_id = $3)
                    and (cardinality($4::uuid[]) = 0 or s.session_id = any($4)) {only_open}"
            );
            // No index has labels: it would cost each turn of each session more than the few lists by them are worth.
            let (source, locks) = if filter.labels.is_empty() {
                (indexed.clone(), "")
            } else {
                let looked_at = format!("(select s.* from {indexed} order by s.session_id desc limit {LOOKED_AT_MAX}) s where true");
                (looked_at, "set transaction isolation level repeatable read")
            };
            let mut tx = server.tenant_and(tenant, locks).await?;
            let found = format!(
                "select s.session_id, octet_length(s.agent) + octet_length(s.labels::text) as bytes
                from {source}
                    and (cardinality($5::text[]) = 0 or s.state = any($5)) and s.labels @> $6::text::jsonb"
            );
            let rows = sqlx::query(AssertSqlSafe(page_of(&found, "$7", "$8")))
            .bind(tenant.0)
            .bind(after.map(|after| after.0))
            .bind(parent)
            .bind(&ids)
            .bind(states)
            .bind(labels)
            .bind(i64::from(limit))
            .bind(i64::from(PAGE_BYTES))
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
            let (sessions, last) = sessions_of(&rows).map_err(failed)?;
            let next = if last.is_some() {
                last
            } else if filter.labels.is_empty() {
                None
            } else {
                // Of the same moment, so that none is passed over and none shown twice.
                let last_looked_at = format!(
                    "select s.session_id from {indexed} order by s.session_id desc offset {LOOKED_AT_MAX} - 1 limit 1"
                );
                let last: Option<Uuid> = sqlx::query_scalar(AssertSqlSafe(last_looked_at))
                    .bind(tenant.0)
                    .bind(after.map(|after| after.0))
                    .bind(parent)
                    .bind(&ids)
                    .fetch_optional(&mut *tx)
                    .await
                    .map_err(failed)?;
                last.map(SessionId)
            };
            Ok(Page { sessions, next })
        })
        .await
    }

    async fn asking(&self, tenant: TenantId, after: Option<SessionId>, limit: u32) -> Result<Page, Error> {
        self.timed(async |server| {
            let mut tx = server.tenant_and(tenant, "set local enable_seqscan = off").await?;
            let rows = sqlx::query(AssertSqlSafe(page_of(ASKING, "$3", "$4")))
                .bind(tenant.0)
                .bind(after.map(|after| after.0))
                .bind(i64::from(limit))
                .bind(i64::from(PAGE_BYTES))
                .fetch_all(&mut *tx)
                .await
                .map_err(failed)?;
            let (sessions, next) = sessions_of(&rows).map_err(failed)?;
            Ok(Page { sessions, next })
        })
        .await
    }

    async fn count_open(&self, tenant: TenantId) -> Result<u32, Error> {
        self.timed(async |server| {
            let mut tx = server.tenant(tenant).await?;
            let count: i64 =
                sqlx::query_scalar("select coalesce(sum(sessions), 0)::bigint from open_sessions where tenant_id = $1")
                    .bind(tenant.0)
                    .fetch_one(&mut *tx)
                    .await
                    .map_err(failed)?;
            Ok(u32::try_from(count).unwrap_or(u32::MAX))
        })
        .await
    }

    async fn child(&self, tenant: TenantId, parent: SessionId, tool_call_id: &str) -> Result<Option<Session>, Error> {
        self.timed(async |server| {
            let mut tx = server.tenant(tenant).await?;
            let row = sqlx::query(AssertSqlSafe(format!(
                "{SELECT_SESSION} where s.tenant_id = $1 and s.parent_id = $2 and s.parent_call = $3"
            )))
            .bind(tenant.0)
            .bind(parent.0)
            .bind(tool_call_id)
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed)?;
            row.as_ref().map(row::session).transpose().map_err(failed)
        })
        .await
    }

    async fn find_created(&self, tenant: TenantId, key: &IdempotencyKey) -> Result<Option<Session>, Error> {
        self.timed(async |server| {
            let mut tx = server.tenant(tenant).await?;
            match used(&mut tx, tenant, SCOPE, key).await? {
                Some((session, _)) => get(&mut tx, tenant, session).await,
                None => Ok(None),
            }
        })
        .await
    }
}

/// Creations under a limit go one by one in a tenant, or group by group, or two could take the last place. The others lock out
/// no more than the beginning of the tenant's removal.
fn tenant_lock(tenant: TenantId, is_limited: bool) -> String {
    let strength = if is_limited { "no key update" } else { "key share" };
    format!("select 1 from tenants where tenant_id = '{tenant}' for {strength}")
}

/// Why a session was not made, of a tenant that is being removed, or is not, or is not known.
pub(super) fn not_made(removing: Option<bool>, sessions_max: Option<u32>) -> Error {
    match removing {
        Some(false) => Error::SessionLimit { max: sessions_max.unwrap_or(0) },
        Some(true) => being_removed(),
        None => unknown_tenant(),
    }
}

/// The session as this transaction sees it.
pub(super) async fn get(tx: &mut Tx, tenant: TenantId, id: SessionId) -> Result<Option<Session>, Error> {
    let row = sqlx::query(AssertSqlSafe(format!("{SELECT_SESSION} where s.tenant_id = $1 and s.session_id = $2")))
        .bind(tenant.0)
        .bind(id.0)
        .fetch_optional(&mut **tx)
        .await
        .map_err(failed)?;
    row.as_ref().map(row::session).transpose().map_err(failed)
}

/// The session and the first number that this key stands for, if it is still remembered.
pub(super) async fn used(
    tx: &mut Tx,
    tenant: TenantId,
    scope: &str,
    key: &IdempotencyKey,
) -> Result<Option<(SessionId, u64)>, Error> {
    let row = sqlx::query(
        "select body_hash, session_id, first_seq from idempotency_keys
        where tenant_id = $1 and scope = $2 and key = $3 and use_time > now() - interval '24 hours'",
    )
    .bind(tenant.0)
    .bind(scope)
    .bind(&key.key)
    .fetch_optional(&mut **tx)
    .await
    .map_err(failed)?;
    let Some(row) = row else { return Ok(None) };
    if row.try_get::<&[u8], _>("body_hash").map_err(failed)? != key.body_hash {
        return Err(Error::IdempotencyKeyReused);
    }
    let session = SessionId(row.try_get("session_id").map_err(failed)?);
    let first_seq: i64 = row.try_get("first_seq").map_err(failed)?;
    Ok(Some((session, first_seq.cast_unsigned())))
}
