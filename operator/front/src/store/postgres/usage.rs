//! The ledger of usage in Postgres.

use async_trait::async_trait;
use croft_proto::Timestamp;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::{UsageDimension, UsageEvent, UsageSummary, UsageTotals};
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::at_once::Call;
use super::time::Time;
use super::timed::Tx;
use super::{Postgres, failed, row};
use crate::error::Error;
use crate::events::log::NewEvent;
use crate::store::projection;
use crate::usage::{self, GROUPS_MAX, Selection, UsageStore};

/// Adds the rows that are new to the ledger, and to their sessions' totals. See `migrations/0023_one_call.sql`, `0024_by_key.sql`,
/// `0026_service_tiers.sql` and `0035_usage_by_sender.sql`.
const METER: &str = "select * from croft_meter($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20,
    $21)";

/// Events of one session, of which some may report attempts at models.
pub(super) struct Reported<'a> {
    pub session: SessionId,
    pub events: &'a [NewEvent],
}

/// What these events report that attempts have used, as `croft_meter` takes it.
#[derive(Default)]
pub(super) struct Columns {
    sessions: Vec<Uuid>,
    rows: Vec<UsageEvent>,
}

impl Columns {
    pub(super) fn of<'a>(reported: impl IntoIterator<Item = Reported<'a>>) -> Self {
        let mut columns = Self::default();
        for Reported { session, events } in reported {
            columns.rows.extend(projection::usage_rows(session, events));
            columns.sessions.resize(columns.rows.len(), session.0);
        }
        columns
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The arguments from the sessions of the attempts on.
    pub(super) fn bind<'q>(&'q self, call: Call<'q>) -> Call<'q> {
        let rows = &self.rows;
        let tokens: Vec<_> = rows.iter().map(|row| row.tokens.unwrap_or_default()).collect();
        call.bind(&self.sessions)
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
            .bind(rows.iter().map(|row| row.service_tier.as_str()).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.sender.as_str()).collect::<Vec<_>>())
    }
}

/// Writes the usage that these events report, in a transaction that holds the session's lock. The session's new totals, if that
/// changed them.
pub(super) async fn meter(tx: &mut Tx, tenant: TenantId, reported: Reported<'_>) -> Result<Option<UsageTotals>, Error> {
    let session = reported.session;
    let columns = Columns::of([reported]);
    if columns.is_empty() {
        return Ok(None);
    }
    let totals = columns
        .bind(sqlx::query(METER).bind(tenant.0).bind(vec![session.0]))
        .fetch_optional(&mut **tx)
        .await
        .map_err(failed)?;
    totals.map(|row| row::totals(&row)).transpose().map_err(failed)
}

#[async_trait]
impl UsageStore for Postgres {
    async fn list(
        &self,
        tenant: TenantId,
        session: Option<SessionId>,
        before: Option<Timestamp>,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<UsageEvent>, Error> {
        self.timed(async |server| {
            let mut tx = server.tenant(tenant).await?;
            // An unknown cursor compares as null, and so has nothing after it: whether it is known is asked then.
            let rows = sqlx::query(
                "select attempt_id, session_id, agent, provider, model, input_uncached_tokens, cache_read_tokens,
                    cache_write_5m_tokens, cache_write_1h_tokens, output_tokens, reasoning_tokens, cost_nano_usd, latency_ms,
                    finish_reason, error_class, create_time, usage_estimated, mode, service_tier, sender
                from llm_usage_events
                where tenant_id = $1 and ($2::uuid is null or session_id = $2) and (
                    $3::text is null or (create_time, attempt_id) < (
                        select create_time, attempt_id from llm_usage_events where tenant_id = $1 and attempt_id = $3
                    )
                )
                -- Without an `or`, so that whatever the plan, the index begins there.
                and create_time < coalesce($5::timestamptz, 'infinity')
                order by create_time desc, attempt_id desc limit $4",
            )
            .bind(tenant.0)
            .bind(session.map(|session| session.0))
            .bind(after)
            .bind(i64::from(limit))
            .bind(before.map(Time))
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
            if let (Some(after), []) = (after, &rows[..]) {
                let look = "select exists (select from llm_usage_events where tenant_id = $1 and attempt_id = $2)";
                let is_known: bool =
                    sqlx::query_scalar(look).bind(tenant.0).bind(after).fetch_one(&mut *tx).await.map_err(failed)?;
                if !is_known {
                    return Err(usage::unknown_page());
                }
            }
            rows.iter().map(row::usage_event).collect::<Result<_, _>>().map_err(failed)
        })
        .await
    }

    async fn summarize(
        &self,
        tenant: TenantId,
        selection: Selection<'_>,
        group_by: &[UsageDimension],
    ) -> Result<Vec<UsageSummary>, Error> {
        let Selection { agent, start, end } = selection;
        self.timed(async |server| {
            let keys = group_by.iter().copied().map(expression).collect::<Result<Vec<_>, _>>()?.join(", ");
            // Without a dimension there is one total, even of nothing.
            let grouping = match group_by {
                [] => String::new(),
                _ => format!("group by keys order by keys limit {}", GROUPS_MAX + 1),
            };
            let mut tx = server.tenant(tenant).await?;
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
                    and ($3::timestamptz is null or create_time < $3) and ($4::text is null or agent = $4)
                {grouping}"
            )))
            .bind(tenant.0)
            .bind(start.map(Time))
            .bind(end.map(Time))
            .bind(agent)
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
            rows.iter()
                .map(|row| Ok(UsageSummary { keys: row.try_get("keys")?, totals: Some(row::totals(row)?) }))
                .collect::<Result<_, _>>()
                .map_err(failed)
        })
        .await
    }

    async fn add_behind_end(&self, tenant: TenantId, session: SessionId, events: &[NewEvent]) -> Result<u64, Error> {
        self.timed(async |server| {
            let mut tx = server.locking(tenant, [session]).await?;
            let before: Option<i64> =
                sqlx::query_scalar("select unpriced_attempts from sessions where tenant_id = $1 and session_id = $2")
                    .bind(tenant.0)
                    .bind(session.0)
                    .fetch_optional(&mut *tx)
                    .await
                    .map_err(failed)?;
            let added = meter(&mut tx, tenant, Reported { session, events }).await?;
            if added.is_some() {
                // No event changes its state with it, and whoever follows it is to be told what it has come to.
                sqlx::query(
                    "update sessions set change_number = pg_current_xact_id()::text::bigint
                    where tenant_id = $1 and session_id = $2",
                )
                .bind(tenant.0)
                .bind(session.0)
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
            }
            tx.commit().await.map_err(failed)?;
            let Some(before) = before else {
                usage::added_for_nobody(tenant, session, events);
                return Ok(0);
            };
            Ok(added.map_or(0, |totals| totals.unpriced_attempts.abs_diff(before)))
        })
        .await
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
        UsageDimension::Sender => r#"sender collate "C""#,
        UsageDimension::Day => r#"to_char(create_time at time zone 'utc', 'YYYY-MM-DD') collate "C""#,
    })
}
