//! Leases in Postgres, by its clock.
//!
//! Whatever changes who may append takes the session's lock first, as an append does, and repeats the epoch on the
//! session's row. A heartbeat changes neither, and so waits for no append.

use std::collections::HashSet;
use std::time::Duration;

use async_trait::async_trait;
use croft_proto::id::{SessionId, TenantId};
use sqlx::Row;
use uuid::Uuid;

use super::{Postgres, failed, signed};
use crate::error::Error;
use crate::lease::{Abandoned, LeaseStore};

#[async_trait]
impl LeaseStore for Postgres {
    async fn acquire(
        &self,
        tenant: TenantId,
        session: SessionId,
        holder: &str,
        ttl: Duration,
    ) -> Result<Option<u64>, Error> {
        self.timed(async |server| {
            let mut tx = server.locking(tenant, [session]).await?;
            let row = sqlx::query(
                "with open as (
                    select state from sessions where tenant_id = $1 and session_id = $2
                ), taken as (
                    insert into leases as old (tenant_id, session_id, epoch, holder, expire_time)
                    select $1, $2, 1, $3, clock_timestamp() + $4 * interval '1 microsecond' from open where state <> 'terminated'
                    on conflict (tenant_id, session_id) do update
                        set epoch = old.epoch + 1, holder = excluded.holder, expire_time = excluded.expire_time
                        where old.holder is not null and old.expire_time <= clock_timestamp()
                    returning epoch
                ), told as (
                    update sessions set lease_epoch = (select epoch from taken)
                    where tenant_id = $1 and session_id = $2 and exists (select 1 from taken)
                )
                select state, (select epoch from taken) as epoch from open",
            )
            .bind(tenant.0)
            .bind(session.0)
            .bind(holder)
            .bind(micros(ttl))
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed)?;
            tx.commit().await.map_err(failed)?;

            let session_id = session.to_string();
            let Some(row) = row else { return Err(Error::SessionNotFound { session_id }) };
            if row.try_get::<&str, _>("state").map_err(failed)? == "terminated" {
                return Err(Error::SessionTerminated { session_id });
            }
            let epoch: Option<i64> = row.try_get("epoch").map_err(failed)?;
            Ok(epoch.map(i64::cast_unsigned))
        })
        .await
    }

    async fn renew_all(
        &self,
        tenant: TenantId,
        leases: &[(SessionId, u64)],
        ttl: Duration,
    ) -> Result<Vec<SessionId>, Error> {
        self.timed(async |server| {
            let mut tx = server.tenant(tenant).await?;
            // In the order of the ids, as whoever else wants several.
            let renewed: Vec<Uuid> = sqlx::query_scalar(
                "with ours as (
                    select l.session_id
                    from unnest($2::uuid[], $3::bigint[]) as wanted (session_id, epoch)
                    join leases l on l.tenant_id = $1 and l.session_id = wanted.session_id and l.epoch = wanted.epoch
                    where l.holder <> ''
                    order by l.session_id for no key update of l
                )
                update leases l set expire_time = clock_timestamp() + $4 * interval '1 microsecond'
                from ours where l.tenant_id = $1 and l.session_id = ours.session_id
                returning l.session_id",
            )
            .bind(tenant.0)
            .bind(leases.iter().map(|(session, _)| session.0).collect::<Vec<_>>())
            .bind(leases.iter().map(|(_, epoch)| signed(*epoch)).collect::<Vec<_>>())
            .bind(micros(ttl))
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
            tx.commit().await.map_err(failed)?;
            let renewed: HashSet<_> = renewed.into_iter().map(SessionId).collect();
            Ok(leases.iter().map(|(session, _)| *session).filter(|session| !renewed.contains(session)).collect())
        })
        .await
    }

    async fn release(&self, tenant: TenantId, session: SessionId, epoch: u64) -> Result<(), Error> {
        let statement = "with waiting as (
            select newest_input_seq > input_seq and state <> 'terminated' as waits
            from sessions where tenant_id = $1 and session_id = $2
        ), given as (
            update leases set
                holder = case when waits then '' end,
                expire_time = case when waits then clock_timestamp() end,
                epoch = case when waits then epoch + 1 else epoch end
            from waiting
            where tenant_id = $1 and session_id = $2 and epoch = $3 and holder <> ''
            returning 1
        )
        update sessions set lease_epoch = null
        where tenant_id = $1 and session_id = $2 and exists (select 1 from given)";
        self.give_up(tenant, session, epoch, statement).await
    }

    async fn abandon(&self, tenant: TenantId, session: SessionId, epoch: u64) -> Result<(), Error> {
        let statement = "with given as (
            update leases set holder = '', expire_time = clock_timestamp(), epoch = epoch + 1
            where tenant_id = $1 and session_id = $2 and epoch = $3 and holder <> ''
            returning 1
        )
        update sessions set lease_epoch = null
        where tenant_id = $1 and session_id = $2 and exists (select 1 from given)";
        self.give_up(tenant, session, epoch, statement).await
    }

    async fn abandoned(&self, limit: u32) -> Result<Vec<Abandoned>, Error> {
        self.timed(async |server| {
            let mut tx = server.nobody().await?;
            let rows = sqlx::query("select tenant_id, session_id from croft_abandoned_leases($1)")
                .bind(i64::from(limit))
                .fetch_all(&mut *tx)
                .await
                .map_err(failed)?;
            rows.iter()
                .map(|row| {
                    let (tenant, session) = (row.try_get("tenant_id")?, row.try_get("session_id")?);
                    Ok(Abandoned { tenant: TenantId(tenant), session: SessionId(session) })
                })
                .collect::<Result<_, _>>()
                .map_err(failed)
        })
        .await
    }
}

impl Postgres {
    /// Changes a lease that is held under this epoch, with its session locked.
    async fn give_up(
        &self,
        tenant: TenantId,
        session: SessionId,
        epoch: u64,
        statement: &'static str,
    ) -> Result<(), Error> {
        self.timed(async |server| {
            let mut tx = server.locking(tenant, [session]).await?;
            sqlx::query(statement)
                .bind(tenant.0)
                .bind(session.0)
                .bind(signed(epoch))
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
            tx.commit().await.map_err(failed)
        })
        .await
    }
}

pub(super) fn micros(ttl: Duration) -> i64 {
    i64::try_from(ttl.as_micros()).unwrap_or(i64::MAX)
}
