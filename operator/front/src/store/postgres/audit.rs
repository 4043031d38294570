//! The audit log in Postgres. A function of the database's numbers and chains the records: see the migrations.

use async_trait::async_trait;
use croft_proto::id::TenantId;
use croft_proto::v1::{AuditRecord, VerifyAuditLogResponse};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::time::Time;
use super::{Postgres, Tx, failed, signed};
use crate::audit::{Action, AuditStore};
use crate::error::Error;
use crate::store::chain::{self, Chain};

/// Records that a verification reads at a time.
const PAGE: u32 = 1_000;

#[async_trait]
impl AuditStore for Postgres {
    async fn append(&self, actions: Vec<Action>) -> Result<(), Error> {
        let mut tx = self.writer().await?;
        sqlx::query("select croft_append_audit($1, $2, $3, $4, $5)")
            .bind(actions.iter().map(|action| action.tenant.0).collect::<Vec<_>>())
            .bind(actions.iter().map(|action| action.actor.as_str()).collect::<Vec<_>>())
            .bind(actions.iter().map(|action| &*action.action).collect::<Vec<_>>())
            .bind(actions.iter().map(|action| action.resource.as_str()).collect::<Vec<_>>())
            .bind(actions.iter().map(|action| &*action.outcome).collect::<Vec<_>>())
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)
    }

    async fn list(&self, tenant: TenantId, after_number: u64, limit: u32) -> Result<Vec<AuditRecord>, Error> {
        let mut tx = self.tenant(tenant).await?;
        list(&mut tx, tenant, after_number, limit).await
    }

    async fn verify(&self, tenant: TenantId) -> Result<VerifyAuditLogResponse, Error> {
        let mut tx = self.tenant(tenant).await?;
        let head = sqlx::query("select number, hash from audit_heads where tenant_id = $1")
            .bind(tenant.0)
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed)?;
        let (end, hash) = match &head {
            Some(head) => {
                let number: i64 = head.try_get("number").map_err(failed)?;
                (number.cast_unsigned(), head.try_get("hash").map_err(failed)?)
            }
            None => (0, &chain::START[..]),
        };
        let mut chain = Chain::new(tenant);
        loop {
            let page = list(&mut tx, tenant, chain.verified(), PAGE).await?;
            // What was added since we looked at the end is for the next verification.
            let known = page.iter().take_while(|record| head.is_none() || record.number <= end);
            let (mut seen, mut fits) = (0, true);
            for record in known {
                seen += 1;
                fits = fits && chain.add(record);
            }
            if !fits {
                return Ok(chain.broken());
            }
            if seen < PAGE {
                break;
            }
        }
        Ok(if chain.ends_at(end, hash) { chain.intact() } else { chain.broken() })
    }
}

async fn list(tx: &mut Tx, tenant: TenantId, after_number: u64, limit: u32) -> Result<Vec<AuditRecord>, Error> {
    let rows = sqlx::query(
        "select number, create_time, actor, action, resource, outcome, hash from audit_log
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
    })
}
