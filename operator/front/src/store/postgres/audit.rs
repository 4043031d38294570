//! The audit log in Postgres. A function of the database's numbers and chains the records: see the migrations.

use async_trait::async_trait;
use croft_proto::id::TenantId;
use croft_proto::v1::{AuditRecord, VerifyAuditLogResponse};
use futures::TryStreamExt;
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::time::Time;
use super::timed::Tx;
use super::{Postgres, failed, signed};
use crate::audit::{Action, AuditStore, Known, Place};
use crate::error::Error;
use crate::store::chain::{self, Chain, Link};
use crate::store::time::micros;

/// Records that a verification reads by one statement, which the server gives ten seconds. A page is a range of numbers: one that
/// ends by a count of rows may be found by sorting all that is left of the log, page after page.
const PAGE: i64 = 20_000;

#[async_trait]
impl AuditStore for Postgres {
    async fn append(&self, place: Place, actions: Vec<Action>) -> Result<u64, Error> {
        self.timed(async |server| {
            if actions.is_empty() {
                return Ok(0);
            }
            let mut tx = server.writer().await?;
            let stored: i64 = sqlx::query_scalar("select croft_append_audit_once($1, $2, $3, $4, $5, $6, $7, $8)")
                .bind(place.journal)
                .bind(signed(place.first))
                .bind(actions.iter().map(|action| action.tenant.0).collect::<Vec<_>>())
                .bind(actions.iter().map(|action| action.actor.as_str()).collect::<Vec<_>>())
                .bind(actions.iter().map(|action| &*action.action).collect::<Vec<_>>())
                .bind(actions.iter().map(|action| action.resource.as_str()).collect::<Vec<_>>())
                .bind(actions.iter().map(|action| &*action.outcome).collect::<Vec<_>>())
                .bind(actions.iter().map(|action| action.act_micros).collect::<Vec<_>>())
                .fetch_one(&mut *tx)
                .await
                .map_err(refused)?;
            tx.commit().await.map_err(failed)?;
            Ok(stored.cast_unsigned())
        })
        .await
    }

    async fn list(&self, tenant: TenantId, after_number: u64, limit: u32) -> Result<Vec<AuditRecord>, Error> {
        self.timed(async |server| {
            let mut tx = server.tenant(tenant).await?;
            list(&mut tx, tenant, after_number, limit).await
        })
        .await
    }

    async fn verify(&self, tenant: TenantId, known: Option<Known>) -> Result<VerifyAuditLogResponse, Error> {
        let (oldest, end) = self.extent(tenant).await?;
        let mut chain = Chain::new(tenant, known);
        if oldest < 1 {
            return Ok(chain.verdict(false));
        }
        loop {
            let after = chain.verified();
            if !self.verify_page(tenant, &mut chain, end.newest).await? {
                return Ok(chain.verdict(false));
            }
            // Either that was all, or a whole page is missing.
            if chain.verified() == after || signed(chain.verified()) == end.newest {
                break;
            }
        }
        Ok(chain.verdict(end.newest == end.number && chain.ends_at(end.number.cast_unsigned(), &end.hash)))
    }
}

/// Where the log ends: by its records, and by what is kept of it apart.
struct End {
    newest: i64,
    number: i64,
    hash: Vec<u8>,
}

impl Postgres {
    /// The number of the oldest record, and where the log ends: in one statement, so that records and end are of the same moment. What is
    /// added later is for the next verification.
    async fn extent(&self, tenant: TenantId) -> Result<(i64, End), Error> {
        self.timed(async |server| {
            let mut tx = server.tenant(tenant).await?;
            let row = sqlx::query(
                "select l.oldest, l.newest, h.number, h.hash
                from (
                    select coalesce(min(number), 1) as oldest, coalesce(max(number), 0) as newest
                    from audit_log where tenant_id = $1
                ) l
                left join audit_heads h on h.tenant_id = $1",
            )
            .bind(tenant.0)
            .fetch_one(&mut *tx)
            .await
            .map_err(failed)?;
            let hash = row.try_get::<Option<Vec<u8>>, _>("hash").map_err(failed)?;
            let end = End {
                newest: row.try_get("newest").map_err(failed)?,
                number: row.try_get::<Option<i64>, _>("number").map_err(failed)?.unwrap_or_default(),
                hash: hash.unwrap_or_else(|| chain::START.to_vec()),
            };
            Ok((row.try_get("oldest").map_err(failed)?, end))
        })
        .await
    }

    /// Adds the next page of the records up to this number. False when one does not fit.
    async fn verify_page(&self, tenant: TenantId, chain: &mut Chain, newest: i64) -> Result<bool, Error> {
        self.timed(async |server| {
            let mut tx = server.tenant(tenant).await?;
            let after = signed(chain.verified());
            // The rows are hashed while the next ones are on their way.
            let mut rows = sqlx::query(
                "select number, create_time, actor, action, resource, outcome, hash, act_time from audit_log
                where tenant_id = $1 and number > $2 and number <= $3 order by number",
            )
            .bind(tenant.0)
            .bind(after)
            .bind(newest.min(after.saturating_add(PAGE)))
            .fetch(&mut *tx);
            while let Some(row) = rows.try_next().await.map_err(failed)? {
                if !fits(chain, &row).map_err(failed)? {
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .await
    }
}

/// Whether it is the records that are at fault: data exceptions, what is too large, and what a constraint forbids, such as a number that is there
/// already, in a log whose end was set back. By <https://www.postgresql.org/docs/15/errcodes-appendix.html>.
pub(super) fn refused(error: sqlx::Error) -> Error {
    const OF_RECORDS: [&str; 3] = ["22", "23", "54"];
    match &error {
        sqlx::Error::Database(refusal)
            if refusal.code().is_some_and(|code| OF_RECORDS.iter().any(|class| code.starts_with(class))) =>
        {
            Error::invalid("records", refusal.message())
        }
        _ => failed(error),
    }
}

/// By place and without copies: a verification reads everything.
fn fits(chain: &mut Chain, row: &PgRow) -> Result<bool, sqlx::Error> {
    let number: i64 = row.try_get(0)?;
    let Time(create_time) = row.try_get(1)?;
    let texts = [row.try_get(2)?, row.try_get(3)?, row.try_get(4)?, row.try_get(5)?];
    let hash: &[u8] = row.try_get(6)?;
    let act_micros = row.try_get::<Option<Time>, _>(7)?.map(|Time(act_time)| micros(&act_time));
    Ok(chain.add(&Link { number: number.cast_unsigned(), micros: micros(&create_time), texts, act_micros }, hash))
}

async fn list(tx: &mut Tx, tenant: TenantId, after_number: u64, limit: u32) -> Result<Vec<AuditRecord>, Error> {
    let rows = sqlx::query(
        "select number, create_time, actor, action, resource, outcome, hash, act_time from audit_log
        where tenant_id = $1 and number > $2 order by number limit $3",
    )
    .bind(tenant.0)
    .bind(signed(after_number))
    .bind(i64::from(limit))
    .fetch_all(&mut **tx)
    .await
    .map_err(failed)?;
    rows.iter().map(record).collect::<Result<_, _>>().map_err(failed)
}

fn record(row: &PgRow) -> Result<AuditRecord, sqlx::Error> {
    let number: i64 = row.try_get("number")?;
    let hash: &[u8] = row.try_get("hash")?;
    Ok(AuditRecord {
        number: number.cast_unsigned(),
        create_time: Some(row.try_get::<Time, _>("create_time")?.0),
        actor: row.try_get("actor")?,
        action: row.try_get("action")?,
        resource: row.try_get("resource")?,
        outcome: row.try_get("outcome")?,
        hash: hex::encode(hash),
        act_time: row.try_get::<Option<Time>, _>("act_time")?.map(|Time(act_time)| act_time),
    })
}
