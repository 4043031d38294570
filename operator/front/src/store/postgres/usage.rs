//! The ledger of usage in Postgres.

use std::collections::HashMap;

use async_trait::async_trait;
use croft_proto::Timestamp;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::{UsageDimension, UsageEvent, UsageSummary, UsageTotals};
use sqlx::{AssertSqlSafe, Row};

use super::time::Time;
use super::{Postgres, Tx, failed, row};
use crate::error::Error;
use crate::events::log::NewEvent;
use crate::store::projection;
use crate::usage::UsageStore;

/// Adds the rows that are new to the ledger, and to their sessions' totals.
const METER: &str = "
    with metered as (
        insert into llm_usage_events (
            tenant_id, session_id, agent, attempt_id, provider, model, input_uncached_tokens, cache_read_tokens,
            cache_write_5m_tokens, cache_write_1h_tokens, output_tokens, reasoning_tokens, cost_nano_usd, latency_ms,
            finish_reason, error_class, usage_estimated, create_time, mode
        )
        select $1, new.*
        from unnest(
            $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::bigint[], $9::bigint[],
            $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[], $15::text[], $16::text[],
            $17::boolean[], $18::timestamptz[], $19::text[]
        ) as new
        on conflict (tenant_id, attempt_id) do nothing
        returning *
    ), counted as (
        insert into usage_counters as c (tenant_id, scope, subject, period, slot, changes, nano_usd, tokens)
        select $1, s.scope, s.subject, p.period, pg_backend_pid() % 16, count(*),
            coalesce(sum(m.cost_nano_usd), 0)::bigint,
            sum(m.input_uncached_tokens + m.cache_read_tokens + m.cache_write_5m_tokens + m.cache_write_1h_tokens
                + m.output_tokens)::bigint
        from metered m
        cross join lateral (
            select 'tenant' as scope, '' as subject
            union all select 'agent', m.agent
            union all
            select 'session', above.value ->> 'session'
            from sessions o, jsonb_array_elements(o.lineage) as above
            where o.tenant_id = $1 and o.session_id = m.session_id
        ) as s
        cross join lateral unnest(croft_periods(m.create_time)) as p (period)
        group by s.scope, s.subject, p.period
        -- In one order, so that two transactions don't wait for each other.
        order by s.scope, s.subject, p.period
        on conflict (tenant_id, scope, subject, period, slot) do update set changes = c.changes + excluded.changes,
            nano_usd = c.nano_usd + excluded.nano_usd, tokens = c.tokens + excluded.tokens
    ), total as (
        select session_id, count(*) as attempts, count(*) filter (where cost_nano_usd is null) as unpriced_attempts,
            coalesce(sum(input_uncached_tokens), 0)::bigint as input_uncached_tokens,
            coalesce(sum(cache_read_tokens), 0)::bigint as cache_read_tokens,
            coalesce(sum(cache_write_5m_tokens), 0)::bigint as cache_write_5m_tokens,
            coalesce(sum(cache_write_1h_tokens), 0)::bigint as cache_write_1h_tokens,
            coalesce(sum(output_tokens), 0)::bigint as output_tokens,
            coalesce(sum(reasoning_tokens), 0)::bigint as reasoning_tokens,
            coalesce(sum(cost_nano_usd), 0)::bigint as cost_nano_usd
        from metered group by session_id
    )
    update sessions s set
        attempts = s.attempts + total.attempts,
        unpriced_attempts = s.unpriced_attempts + total.unpriced_attempts,
        input_uncached_tokens = s.input_uncached_tokens + total.input_uncached_tokens,
        cache_read_tokens = s.cache_read_tokens + total.cache_read_tokens,
        cache_write_5m_tokens = s.cache_write_5m_tokens + total.cache_write_5m_tokens,
        cache_write_1h_tokens = s.cache_write_1h_tokens + total.cache_write_1h_tokens,
        output_tokens = s.output_tokens + total.output_tokens,
        reasoning_tokens = s.reasoning_tokens + total.reasoning_tokens,
        cost_nano_usd = s.cost_nano_usd + total.cost_nano_usd
    from total
    where s.tenant_id = $1 and s.session_id = total.session_id
    returning s.session_id, s.attempts, s.unpriced_attempts, s.input_uncached_tokens, s.cache_read_tokens, s.cache_write_5m_tokens,
        s.cache_write_1h_tokens, s.output_tokens, s.reasoning_tokens, s.cost_nano_usd
";

/// Events of one session, of which some may report attempts at models.
pub(super) struct Reported<'a> {
    pub session: SessionId,
    pub agent: &'a str,
    pub events: &'a [NewEvent],
}

/// Writes the usage that these events report, in a transaction that holds the sessions' locks. The new totals of the sessions
/// that it changed.
pub(super) async fn meter(
    tx: &mut Tx,
    tenant: TenantId,
    reported: &[Reported<'_>],
) -> Result<HashMap<SessionId, UsageTotals>, Error> {
    let mut sessions = Vec::new();
    let mut rows = Vec::new();
    for Reported { session, agent, events } in reported {
        rows.extend(projection::usage_rows(*session, agent, events));
        sessions.resize(rows.len(), session.0);
    }
    if rows.is_empty() {
        return Ok(HashMap::new());
    }
    let tokens: Vec<_> = rows.iter().map(|row| row.tokens.unwrap_or_default()).collect();
    let totals = sqlx::query(METER)
        .bind(tenant.0)
        .bind(sessions)
        .bind(rows.iter().map(|row| row.agent.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.attempt_id.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.provider.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.model.as_str()).collect::<Vec<_>>())
        .bind(tokens.iter().map(|tokens| tokens.input_uncached_tokens).collect::<Vec<_>>())
        .bind(tokens.iter().map(|tokens| tokens.cache_read_tokens).collect::<Vec<_>>())
        .bind(tokens.iter().map(|tokens| tokens.cache_write_5m_tokens).collect::<Vec<_>>())
        .bind(tokens.iter().map(|tokens| tokens.cache_write_1h_tokens).collect::<Vec<_>>())
        .bind(tokens.iter().map(|tokens| tokens.output_tokens).collect::<Vec<_>>())
        .bind(tokens.iter().map(|tokens| tokens.reasoning_tokens).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.cost_nano_usd).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.latency_ms).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.finish_reason.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.error_class.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.usage_estimated).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| Time(row.create_time.unwrap_or_default())).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row::mode_word(row.mode())).collect::<Vec<_>>())
        .fetch_all(&mut **tx)
        .await
        .map_err(failed)?;
    totals
        .iter()
        .map(|row| Ok((SessionId(row.try_get("session_id")?), row::totals(row)?)))
        .collect::<Result<_, _>>()
        .map_err(failed)
}

#[async_trait]
impl UsageStore for Postgres {
    async fn list(
        &self,
        tenant: TenantId,
        session: Option<SessionId>,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<UsageEvent>, Error> {
        let mut tx = self.tenant(tenant).await?;
        // An unknown cursor compares as null, and so has nothing after it.
        let rows = sqlx::query(
            "select attempt_id, session_id, agent, provider, model, input_uncached_tokens, cache_read_tokens,
                cache_write_5m_tokens, cache_write_1h_tokens, output_tokens, reasoning_tokens, cost_nano_usd, latency_ms,
                finish_reason, error_class, create_time, usage_estimated, mode
            from llm_usage_events
            where tenant_id = $1 and ($2::uuid is null or session_id = $2) and (
                $3::text is null or (create_time, attempt_id) < (
                    select create_time, attempt_id from llm_usage_events where tenant_id = $1 and attempt_id = $3
                )
            )
            order by create_time desc, attempt_id desc limit $4",
        )
        .bind(tenant.0)
        .bind(session.map(|session| session.0))
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        rows.iter().map(row::usage_event).collect::<Result<_, _>>().map_err(failed)
    }

    async fn summarize(
        &self,
        tenant: TenantId,
        start: Option<Timestamp>,
        end: Option<Timestamp>,
        group_by: &[UsageDimension],
    ) -> Result<Vec<UsageSummary>, Error> {
        let keys = group_by.iter().copied().map(expression).collect::<Result<Vec<_>, _>>()?.join(", ");
        // Without a dimension there is one total, even of nothing.
        let grouping = if group_by.is_empty() { "" } else { "group by keys order by keys" };
        let mut tx = self.tenant(tenant).await?;
        let rows = sqlx::query(AssertSqlSafe(format!(
            "select array[{keys}]::text[] as keys, count(*) as attempts,
                count(*) filter (where cost_nano_usd is null) as unpriced_attempts,
                coalesce(sum(input_uncached_tokens), 0)::bigint as input_uncached_tokens,
                coalesce(sum(cache_read_tokens), 0)::bigint as cache_read_tokens,
                coalesce(sum(cache_write_5m_tokens), 0)::bigint as cache_write_5m_tokens,
                coalesce(sum(cache_write_1h_tokens), 0)::bigint as cache_write_1h_tokens,
                coalesce(sum(output_tokens), 0)::bigint as output_tokens,
                coalesce(sum(reasoning_tokens), 0)::bigint as reasoning_tokens,
                coalesce(sum(cost_nano_usd), 0)::bigint as cost_nano_usd
            from llm_usage_events
            where tenant_id = $1 and ($2::timestamptz is null or create_time >= $2)
                and ($3::timestamptz is null or create_time < $3)
            {grouping}"
        )))
        .bind(tenant.0)
        .bind(start.map(Time))
        .bind(end.map(Time))
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        rows.iter()
            .map(|row| Ok(UsageSummary { keys: row.try_get("keys")?, totals: Some(row::totals(row)?) }))
            .collect::<Result<_, _>>()
            .map_err(failed)
    }
}

/// What a row's value in this dimension is. The collation is that of bytes, so that every store orders alike.
fn expression(dimension: UsageDimension) -> Result<&'static str, Error> {
    Ok(match dimension {
        UsageDimension::Unspecified => return Err(Error::invalid("group_by", "holds an unspecified dimension")),
        UsageDimension::Agent => r#"agent collate "C""#,
        UsageDimension::Model => r#"model collate "C""#,
        UsageDimension::Provider => r#"provider collate "C""#,
        UsageDimension::Session => r#"session_id::text collate "C""#,
        UsageDimension::Mode => r#"mode collate "C""#,
        UsageDimension::Day => r#"to_char(create_time at time zone 'utc', 'YYYY-MM-DD') collate "C""#,
    })
}
