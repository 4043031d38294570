//! Budgets in Postgres, and the sums of the ledger that they are compared with.

use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::BudgetAction;
use sqlx::Row;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use uuid::Uuid;

use super::time::Time;
use super::{Postgres, failed};
use crate::budget::alert::{Alert, Unit};
use crate::budget::period::Period;
use crate::budget::webhook::{Claimed, HookEnd};
use crate::budget::{Account, Budget, BudgetStore, Scope};
use crate::counters::Ledger;
use crate::error::Error;

/// A session's own sums for its life are its totals; for a day or a month, which few ask for, its rows are added up. What the sub-agents
/// below it used is counted apart.
const LEDGERS: &str = "
    select k.place,
        coalesce(c.changes, 0) + case when k.session_id is null then 0
            when k.period = 'life' then coalesce(s.attempts + s.usage_revisions, 0)
            else coalesce(u.attempts, 0) + coalesce(s.usage_revisions, 0) end as version,
        coalesce(c.nano_usd, 0) + case when k.session_id is null then 0
            when k.period = 'life' then coalesce(s.cost_nano_usd, 0) else coalesce(u.nano_usd, 0) end as nano_usd,
        coalesce(c.tokens, 0) + case when k.session_id is null then 0
            when k.period = 'life' then coalesce(s.input_uncached_tokens + s.cache_read_tokens + s.cache_write_5m_tokens
                + s.cache_write_1h_tokens + s.output_tokens, 0)
            else coalesce(u.tokens, 0) end as tokens
    from unnest($2::text[], $3::text[], $4::text[], $5::uuid[]) with ordinality as k (scope, subject, period, session_id, place)
    left join lateral (
        select sum(c.changes)::bigint as changes, sum(c.nano_usd)::bigint as nano_usd, sum(c.tokens)::bigint as tokens
        from usage_counters c
        where c.tenant_id = $1 and c.scope = k.scope and c.subject = k.subject and c.period = k.period
    ) c on true
    left join sessions s on s.tenant_id = $1 and s.session_id = k.session_id
    left join lateral (
        select count(*) as attempts, sum(u.cost_nano_usd)::bigint as nano_usd,
            sum(u.input_uncached_tokens + u.cache_read_tokens + u.cache_write_5m_tokens + u.cache_write_1h_tokens
                + u.output_tokens)::bigint as tokens
        from llm_usage_events u
        where u.tenant_id = $1 and u.session_id = k.session_id and k.period = any (croft_periods(u.create_time))
    ) u on k.session_id is not null and k.period <> 'life'
    order by k.place
";

#[async_trait]
impl BudgetStore for Postgres {
    async fn list(&self, tenant: TenantId) -> Result<Vec<Budget>, Error> {
        self.timed(async |server| {
            let mut tx = server.tenant(tenant).await?;
            let rows = sqlx::query(
                "select scope, subject, period, limit_nano_usd, limit_tokens, action from budgets where tenant_id = $1
                order by array_position(array['tenant', 'agent', 'session'], scope), subject,
                    array_position(array['day', 'month', 'life'], period)",
            )
            .bind(tenant.0)
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
            rows.iter().filter_map(|row| budget(row).transpose()).collect::<Result<_, _>>().map_err(failed)
        })
        .await
    }

    async fn put(&self, tenant: TenantId, budget: &Budget) -> Result<(), Error> {
        self.timed(async |server| {
            let mut tx = server.tenant(tenant).await?;
            sqlx::query(
                "insert into budgets (tenant_id, scope, subject, period, limit_nano_usd, limit_tokens, action)
                values ($1, $2, $3, $4, $5, $6, $7)
                on conflict (tenant_id, scope, subject, period) do update set limit_nano_usd = excluded.limit_nano_usd,
                    limit_tokens = excluded.limit_tokens, action = excluded.action, update_time = now()",
            )
            .bind(tenant.0)
            .bind(budget.scope.as_str())
            .bind(&budget.subject)
            .bind(budget.period.as_str())
            .bind(budget.nano_usd)
            .bind(budget.tokens)
            .bind(action_word(budget.action))
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
            tx.commit().await.map_err(failed)
        })
        .await
    }

    async fn delete(&self, tenant: TenantId, scope: Scope, subject: &str, period: Period) -> Result<bool, Error> {
        self.timed(async |server| {
            let mut tx = server.tenant(tenant).await?;
            let deleted =
                sqlx::query("delete from budgets where tenant_id = $1 and scope = $2 and subject = $3 and period = $4")
                    .bind(tenant.0)
                    .bind(scope.as_str())
                    .bind(subject)
                    .bind(period.as_str())
                    .execute(&mut *tx)
                    .await
                    .map_err(failed)?;
            tx.commit().await.map_err(failed)?;
            Ok(deleted.rows_affected() > 0)
        })
        .await
    }

    async fn ledgers(&self, tenant: TenantId, accounts: &[Account]) -> Result<Vec<Ledger>, Error> {
        self.timed(async |server| {
            if accounts.is_empty() {
                return Ok(Vec::new());
            }
            let session = |account: &Account| match account.scope {
                Scope::Session => Uuid::parse_str(&account.subject).ok().or(Some(Uuid::nil())),
                Scope::Tenant | Scope::Agent => None,
            };
            let mut tx = server.tenant(tenant).await?;
            let rows = sqlx::query(LEDGERS)
                .bind(tenant.0)
                .bind(accounts.iter().map(|account| account.scope.as_str()).collect::<Vec<_>>())
                .bind(accounts.iter().map(|account| account.subject.as_str()).collect::<Vec<_>>())
                .bind(accounts.iter().map(|account| account.period.as_str()).collect::<Vec<_>>())
                .bind(accounts.iter().map(session).collect::<Vec<_>>())
                .fetch_all(&mut *tx)
                .await
                .map_err(failed)?;
            let ledger = |row: &PgRow| {
                Ok(Ledger {
                    version: row.try_get("version")?,
                    nano_usd: row.try_get("nano_usd")?,
                    tokens: row.try_get("tokens")?,
                })
            };
            rows.iter().map(ledger).collect::<Result<_, _>>().map_err(failed)
        })
        .await
    }

    async fn is_unpriced(&self, tenant: TenantId, session: SessionId) -> Result<bool, Error> {
        self.timed(async |server| {
            let mut tx = server.tenant(tenant).await?;
            sqlx::query_scalar(
                "with recursive family (id, unpriced_attempts) as (
                    select session_id, unpriced_attempts from sessions where tenant_id = $1 and session_id = $2
                    union all
                    select s.session_id, s.unpriced_attempts from family f
                    join sessions s on s.tenant_id = $1 and s.parent_id = f.id
                )
                select exists (select from family where unpriced_attempts > 0)",
            )
            .bind(tenant.0)
            .bind(session.0)
            .fetch_one(&mut *tx)
            .await
            .map_err(failed)
        })
        .await
    }

    async fn alert(&self, tenant: TenantId, alert: &Alert) -> Result<bool, Error> {
        self.timed(async |server| {
            let mut tx = server.tenant(tenant).await?;
            let inserted = of_alert(
                "insert into budget_alerts (tenant_id, scope, subject, period, unit, limit_amount, percent, spent_amount, session_id)
                values ($1, $2, $3, $4, $5, $6, $7, $8, $9) on conflict do nothing",
                tenant,
                alert,
            )
            .bind(alert.spent)
            .bind(alert.session.0)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
            tx.commit().await.map_err(failed)?;
            Ok(inserted.rows_affected() > 0)
        })
        .await
    }

    async fn highest_alerts(&self, tenant: TenantId, budget: &Budget, account: &Account) -> Result<Vec<Alert>, Error> {
        let (units, limits): (Vec<_>, Vec<_>) =
            Unit::ALL.into_iter().filter_map(|unit| Some((unit.as_str(), unit.limit(budget)?))).unzip();
        self.timed(async |server| {
            let mut tx = server.tenant(tenant).await?;
            let rows = sqlx::query(
                "select distinct on (unit) scope, subject, period, unit, limit_amount, percent, spent_amount, session_id
                from budget_alerts
                where tenant_id = $1 and scope = $2 and subject = $3 and period = $4
                    and (unit, limit_amount) in (select * from unnest($5::text[], $6::bigint[]))
                order by unit, percent desc",
            )
            .bind(tenant.0)
            .bind(account.scope.as_str())
            .bind(&account.subject)
            .bind(&account.period)
            .bind(&units)
            .bind(&limits)
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
            let mut alerts: Vec<_> = rows.iter().map(alert).collect::<Result<_, _>>().map_err(failed)?;
            alerts.sort_by_key(|alert| alert.unit);
            Ok(alerts)
        })
        .await
    }

    async fn told(&self, tenant: TenantId, alert: &Alert) -> Result<(), Error> {
        self.timed(async |server| {
            let mut tx = server.tenant(tenant).await?;
            of_alert(
                "update budget_alerts set tell_time = now()
                where (tenant_id, scope, subject, period, unit, limit_amount, percent) = ($1, $2, $3, $4, $5, $6, $7)",
                tenant,
                alert,
            )
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
            tx.commit().await.map_err(failed)
        })
        .await
    }

    async fn untold(&self, older_than: Duration, limit: u32) -> Result<Vec<(TenantId, Alert)>, Error> {
        let mut untold = Vec::new();
        for tenant in self.untold_tenants(older_than, limit).await? {
            untold.append(&mut self.untold_of(tenant, older_than, limit).await?);
        }
        untold.truncate(limit as usize);
        Ok(untold)
    }

    async fn claim_hooks(&self, limit: usize, lease: Duration) -> Result<Vec<Claimed>, Error> {
        self.timed(async |server| {
            let mut tx = server.nobody().await?;
            let rows = sqlx::query("select * from croft_claim_hooks($1, make_interval(secs => $2))")
                .bind(i64::try_from(limit).unwrap_or(i64::MAX))
                .bind(lease.as_secs_f64())
                .fetch_all(&mut *tx)
                .await
                .map_err(failed)?;
            tx.commit().await.map_err(failed)?;
            let claimed = |row: &PgRow| {
                Ok(Claimed {
                    tenant: TenantId(row.try_get("tenant_id")?),
                    tenant_name: row.try_get("tenant_name")?,
                    alert: alert(row)?,
                    create_time: row.try_get::<Time, _>("create_time")?.0,
                    tries: row.try_get::<i32, _>("hook_tries")?.cast_unsigned(),
                })
            };
            rows.iter().map(claimed).collect::<Result<_, _>>().map_err(failed)
        })
        .await
    }

    async fn hook_ended(&self, tenant: TenantId, alert: &Alert, end: HookEnd) -> Result<(), Error> {
        self.timed(async |server| {
            let (word, pause) = match end {
                HookEnd::Taken => (Some("taken"), None),
                HookEnd::Dead => (Some("dead"), None),
                HookEnd::Again(pause) => (None, Some(pause.as_secs_f64())),
            };
            let mut tx = server.tenant(tenant).await?;
            of_alert(
                "update budget_alerts set hook_end = $8, hook_time = now() + make_interval(secs => $9)
                where (tenant_id, scope, subject, period, unit, limit_amount, percent) = ($1, $2, $3, $4, $5, $6, $7)",
                tenant,
                alert,
            )
            .bind(word)
            .bind(pause)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
            tx.commit().await.map_err(failed)
        })
        .await
    }
}

impl Postgres {
    /// Those that have an alert of which nobody was told.
    async fn untold_tenants(&self, older_than: Duration, limit: u32) -> Result<Vec<TenantId>, Error> {
        self.timed(async |server| {
            let mut tx = server.nobody().await?;
            let tenants = sqlx::query_scalar("select croft_untold_alerts(make_interval(secs => $1), $2)")
                .bind(older_than.as_secs_f64())
                .bind(i64::from(limit))
                .fetch_all(&mut *tx)
                .await
                .map_err(failed)?;
            Ok(tenants.into_iter().map(TenantId).collect())
        })
        .await
    }

    async fn untold_of(
        &self,
        tenant: TenantId,
        older_than: Duration,
        limit: u32,
    ) -> Result<Vec<(TenantId, Alert)>, Error> {
        self.timed(async |server| {
            let mut tx = server.tenant(tenant).await?;
            let rows = sqlx::query(
                "select scope, subject, period, unit, limit_amount, percent, spent_amount, session_id from budget_alerts
                where tenant_id = $1 and tell_time is null and create_time < now() - make_interval(secs => $2)
                order by create_time limit $3",
            )
            .bind(tenant.0)
            .bind(older_than.as_secs_f64())
            .bind(i64::from(limit))
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
            rows.iter().map(|row| Ok((tenant, alert(row)?))).collect::<Result<_, _>>().map_err(failed)
        })
        .await
    }
}

/// A statement whose first seven arguments are the key of an alert.
fn of_alert(statement: &'static str, tenant: TenantId, alert: &Alert) -> Query<'static, sqlx::Postgres, PgArguments> {
    sqlx::query(statement)
        .bind(tenant.0)
        .bind(alert.account.scope.as_str())
        .bind(alert.account.subject.as_str())
        .bind(alert.account.period.as_str())
        .bind(alert.unit.as_str())
        .bind(alert.limit)
        .bind(alert.percent.cast_signed())
}

/// `None` for one of a period that only a newer release knows: it holds at the fronts of that one, and the others hold at all.
fn budget(row: &PgRow) -> Result<Option<Budget>, sqlx::Error> {
    let subject = row.try_get("subject")?;
    let period = match Period::from_str(row.try_get("period")?) {
        Ok(period) => period,
        Err(error) => {
            tracing::warn!(subject, error = error.to_string(), "a budget that can't be read is left out");
            return Ok(None);
        }
    };
    Ok(Some(Budget {
        scope: scope(row)?,
        subject,
        period,
        nano_usd: row.try_get("limit_nano_usd")?,
        tokens: row.try_get("limit_tokens")?,
        action: match row.try_get("action")? {
            "throttle" => BudgetAction::Throttle,
            "warn" => BudgetAction::Warn,
            _ => BudgetAction::Block,
        },
        is_given: false,
    }))
}

fn alert(row: &PgRow) -> Result<Alert, sqlx::Error> {
    let account = Account { scope: scope(row)?, subject: row.try_get("subject")?, period: row.try_get("period")? };
    Ok(Alert {
        account,
        unit: if row.try_get::<&str, _>("unit")? == Unit::Tokens.as_str() { Unit::Tokens } else { Unit::NanoUsd },
        limit: row.try_get("limit_amount")?,
        percent: row.try_get::<i32, _>("percent")?.cast_unsigned(),
        spent: row.try_get("spent_amount")?,
        session: SessionId(row.try_get("session_id")?),
    })
}

fn scope(row: &PgRow) -> Result<Scope, sqlx::Error> {
    Ok(match row.try_get("scope")? {
        "agent" => Scope::Agent,
        "session" => Scope::Session,
        _ => Scope::Tenant,
    })
}

fn action_word(action: BudgetAction) -> &'static str {
    match action {
        BudgetAction::Throttle => "throttle",
        BudgetAction::Warn => "warn",
        BudgetAction::Block | BudgetAction::Unspecified => "block",
    }
}
