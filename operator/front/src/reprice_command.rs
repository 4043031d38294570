//! `croft-front reprice`: reckons anew what attempts cost, by the prices that the registry has for their time. For attempts whose
//! price was not known then, and for prices that turned out to be wrong.
//!
//! The rows, their sessions' totals and the sums that budgets go by change together, tenant by tenant, in transactions of a few
//! thousand rows: it may be broken off and begun again. What was changed is in each tenant's audit log, with a record for each transaction in
//! the same.

use anyhow::Context;
use croft_proto::v1::{ModelAttempt, TokenUsage};
use secrecy::{ExposeSecret, SecretString};
use sqlx::{Connection, PgConnection, Row};
use uuid::Uuid;

use crate::models::ModelStore;
use crate::models::registry::Registry;
use crate::store::postgres::Postgres;

/// Rows that are changed in one transaction. Their sessions can't write meanwhile.
const ROWS_MAX: i64 = 2_000;

/// Whoever has the URL of the database is not known by name.
const ACTOR: &str = "croft-front reprice";

/// What is reckoned anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Choice {
    /// Attempts since then, in seconds since 1970.
    pub since: i64,
    /// Priced ones too; else only those whose price was not known.
    pub all: bool,
    /// Tells what would change, and changes nothing.
    pub dry_run: bool,
}

/// What came of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Repriced {
    /// Attempts that were looked at.
    pub looked_at: u64,
    /// Those that cost something else now.
    pub changed: u64,
    /// Those whose price is still not known.
    pub unpriced: u64,
    /// By how much all of them together cost more, in billionths of a dollar.
    pub difference_nano_usd: i64,
}

impl Repriced {
    fn told(self, choice: Choice) -> String {
        let Self { looked_at, changed, unpriced, difference_nano_usd } = self;
        let verb = if choice.dry_run { "would change" } else { "changed" };
        format!(
            "{looked_at} attempts looked at, {changed} {verb}, {unpriced} without a price, {difference_nano_usd} nano-dollars more"
        )
    }
}

struct Attempt {
    id: String,
    session: Uuid,
    micros: i64,
    before: Option<i64>,
    after: Option<i64>,
}

/// Runs it, and prints what came of it.
pub async fn run(postgres_url: &SecretString, choice: Choice) -> anyhow::Result<()> {
    use std::io::Write;
    let repriced = reprice(postgres_url, choice).await?;
    writeln!(std::io::stdout(), "{}", repriced.told(choice)).context("cannot print what came of it")
}

/// The URL is that of an admin, who owns the database.
pub async fn reprice(postgres_url: &SecretString, choice: Choice) -> anyhow::Result<Repriced> {
    let postgres = Postgres::connect(postgres_url.expose_secret(), 1)
        .await
        .context("cannot reach PostgreSQL at --postgres-url (CROFT_POSTGRES_URL)")?;
    let registry = Registry::of(postgres.load().await?);
    let mut admin = PgConnection::connect(postgres_url.expose_secret()).await.context("cannot reach PostgreSQL")?;
    // Each writes what it found less than it should be: two at a time would both do so. The lock goes with the connection.
    sqlx::query("select pg_advisory_lock(hashtext('croft-front reprice'))")
        .execute(&mut admin)
        .await
        .context("cannot wait for others that reprice")?;
    let tenants: Vec<Uuid> = sqlx::query_scalar("select tenant_id from tenants order by tenant_id")
        .fetch_all(&mut admin)
        .await
        .context("cannot list the tenants")?;
    let mut total = Repriced::default();
    for tenant in tenants {
        let outcome = all_of(&mut admin, tenant, &registry, choice, &mut total).await;
        outcome.map_err(|error| broken_off(error, choice, total))?;
    }
    Ok(total)
}

/// The error with what was done by then, and is recorded.
fn broken_off(error: anyhow::Error, choice: Choice, total: Repriced) -> anyhow::Error {
    error.context(format!("broken off: {}", total.told(choice)))
}

/// Of one tenant. `total` is what was done by then, also after an error.
async fn all_of(
    admin: &mut PgConnection,
    tenant: Uuid,
    registry: &Registry,
    choice: Choice,
    total: &mut Repriced,
) -> anyhow::Result<()> {
    let mut after = (choice.since.saturating_mul(1_000_000), String::new());
    while let Some(last) = batch(admin, tenant, registry, choice, &after, total).await? {
        after = last;
    }
    Ok(())
}

/// In the tenant's audit log, as the owner whose transaction it is.
async fn record(
    tx: &mut PgConnection,
    tenant: Uuid,
    choice: Choice,
    changed: usize,
    difference_nano_usd: i64,
) -> Result<(), sqlx::Error> {
    let since = jiff::Timestamp::from_second(choice.since).unwrap_or_default();
    sqlx::query("select croft_append_audit(array[$1], array[$2], array[$3], array[$4], array[$5])")
        .bind(tenant)
        .bind(ACTOR)
        .bind("usage.reprice")
        .bind(format!("usage/{since}: {changed} attempts, {difference_nano_usd} nano-dollars more"))
        .bind("ok")
        .execute(tx)
        .await
        .map(drop)
}

/// Goes on after a row, given by its time in microseconds and its id. The last row that was looked at; `None` at the end. Fails where
/// others hold the tenant's rows, or its audit log, for more than five seconds.
async fn batch(
    admin: &mut PgConnection,
    tenant: Uuid,
    registry: &Registry,
    choice: Choice,
    after: &(i64, String),
    total: &mut Repriced,
) -> anyhow::Result<Option<(i64, String)>> {
    let mut tx = admin.begin().await?;
    // It ends up holding the tenant's audit log, behind which all calls that change something wait.
    sqlx::query(
        "select set_config('croft.tenant', $1, true), set_config('lock_timeout', '5s', true),
            set_config('idle_in_transaction_session_timeout', '15s', true)",
    )
    .bind(tenant.to_string())
    .execute(&mut *tx)
    .await?;
    let rows = sqlx::query(
        "select attempt_id, session_id, model, service_tier, input_uncached_tokens, cache_read_tokens, cache_write_5m_tokens,
            cache_write_1h_tokens, output_tokens, cost_nano_usd, floor(extract(epoch from create_time))::bigint as seconds,
            (extract(epoch from create_time) * 1000000)::bigint as micros
        from llm_usage_events
        where tenant_id = $1 and ($2 or cost_nano_usd is null)
            and (create_time, attempt_id) > (to_timestamp($3::double precision / 1000000), $4)
        order by create_time, attempt_id limit $5",
    )
    .bind(tenant)
    .bind(choice.all)
    .bind(after.0)
    .bind(&after.1)
    .bind(ROWS_MAX)
    .fetch_all(&mut *tx)
    .await
    .context("cannot read the ledger")?;
    let mut attempts = Vec::with_capacity(rows.len());
    for row in &rows {
        let seconds: i64 = row.try_get("seconds")?;
        let usage = TokenUsage {
            input_uncached_tokens: row.try_get("input_uncached_tokens")?,
            cache_read_tokens: row.try_get("cache_read_tokens")?,
            cache_write_5m_tokens: row.try_get("cache_write_5m_tokens")?,
            cache_write_1h_tokens: row.try_get("cache_write_1h_tokens")?,
            output_tokens: row.try_get("output_tokens")?,
            ..TokenUsage::default()
        };
        let attempt = ModelAttempt {
            model: row.try_get("model")?,
            usage: Some(usage),
            service_tier: row.try_get("service_tier")?,
            ..ModelAttempt::default()
        };
        let before: Option<i64> = row.try_get("cost_nano_usd")?;
        attempts.push(Attempt {
            id: row.try_get("attempt_id")?,
            session: row.try_get("session_id")?,
            micros: row.try_get("micros")?,
            before,
            // What was paid at a model that is gone is not what it costs at another that has its name now.
            after: match before {
                Some(_) => registry.own_cost_nano_usd(&attempt, seconds),
                None => registry.cost_nano_usd(&attempt, seconds),
            },
        });
    }
    let Some(last) = attempts.last().map(|last| (last.micros, last.id.clone())) else { return Ok(None) };
    let looked_at = attempts.len() as u64;
    let unpriced = attempts.iter().filter(|attempt| attempt.after.is_none()).count() as u64;
    // A price that is gone does not make what was paid unknown.
    attempts.retain(|attempt| attempt.after.is_some() && attempt.after != attempt.before);
    let difference = |attempt: &Attempt| attempt.after.unwrap_or(0) - attempt.before.unwrap_or(0);
    let difference_nano_usd = attempts.iter().map(difference).sum::<i64>();
    if !choice.dry_run && !attempts.is_empty() {
        write(&mut tx, tenant, &attempts).await.context("cannot write the ledger")?;
        record(&mut tx, tenant, choice, attempts.len(), difference_nano_usd)
            .await
            .context("cannot write the audit log")?;
        tx.commit().await?;
    }
    total.looked_at += looked_at;
    total.unpriced += unpriced;
    total.changed += attempts.len() as u64;
    total.difference_nano_usd += difference_nano_usd;
    Ok(Some(last))
}

async fn write(tx: &mut PgConnection, tenant: Uuid, attempts: &[Attempt]) -> Result<(), sqlx::Error> {
    // The sessions first, in the order in which everyone takes them.
    sqlx::query(
        "select 1 from sessions where tenant_id = $1 and session_id = any ($2) order by session_id for no key update",
    )
    .bind(tenant)
    .bind(attempts.iter().map(|attempt| attempt.session).collect::<Vec<_>>())
    .execute(&mut *tx)
    .await?;
    sqlx::query(
        "with change as (
            select * from unnest($2::text[], $3::uuid[], $4::bigint[], $5::bigint[])
                as c (attempt_id, session_id, cost, more)
        ), rows_changed as (
            update llm_usage_events u set cost_nano_usd = c.cost from change c
            where u.tenant_id = $1 and u.attempt_id = c.attempt_id
            returning u.agent, u.create_time, u.session_id, c.more
        ), counted as (
            insert into usage_counters as k (tenant_id, scope, subject, period, slot, changes, nano_usd, tokens)
            select $1, s.scope, s.subject, p.period, 0, count(*), sum(r.more)::bigint, 0
            from rows_changed r
            cross join lateral (
                select 'tenant' as scope, '' as subject
                union all select 'agent', r.agent
                union all
                select 'session', above.value ->> 'session'
                from sessions o, jsonb_array_elements(o.lineage) as above
                where o.tenant_id = $1 and o.session_id = r.session_id
            ) as s
            cross join lateral unnest(croft_periods(r.create_time)) as p (period)
            group by s.scope, s.subject, p.period
            order by s.scope, s.subject, p.period
            on conflict (tenant_id, scope, subject, period, slot) do update
                set changes = k.changes + excluded.changes, nano_usd = k.nano_usd + excluded.nano_usd
        )
        update sessions s set cost_nano_usd = s.cost_nano_usd + t.more, usage_revisions = s.usage_revisions + t.changes,
            unpriced_attempts = s.unpriced_attempts - t.priced,
            -- So that the operator is told what they cost: see `migrations/0007_session_lifetimes.sql`.
            change_number = pg_current_xact_id()::text::bigint
        from (
            select c.session_id, sum(c.more)::bigint as more, count(*) as changes,
                count(*) filter (where c.more = c.cost and u.cost_nano_usd is null) as priced
            from change c join llm_usage_events u on u.tenant_id = $1 and u.attempt_id = c.attempt_id
            group by c.session_id
        ) t
        where s.tenant_id = $1 and s.session_id = t.session_id",
    )
    .bind(tenant)
    .bind(attempts.iter().map(|attempt| attempt.id.as_str()).collect::<Vec<_>>())
    .bind(attempts.iter().map(|attempt| attempt.session).collect::<Vec<_>>())
    .bind(attempts.iter().map(|attempt| attempt.after).collect::<Vec<_>>())
    .bind(attempts.iter().map(|attempt| attempt.after.unwrap_or(0) - attempt.before.unwrap_or(0)).collect::<Vec<_>>())
    .execute(&mut *tx)
    .await
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_with_what_was_done_by_then() {
        let total = Repriced { looked_at: 5, changed: 3, unpriced: 1, difference_nano_usd: 70 };
        let told = broken_off(anyhow::anyhow!("no ledger"), Choice::default(), total);
        let done = "broken off: 5 attempts looked at, 3 changed, 1 without a price, 70 nano-dollars more";
        assert_eq!(format!("{told:#}"), format!("{done}: no ledger"));
    }
}
