//! The audit log in memory.

use async_trait::async_trait;
use croft_proto::id::TenantId;
use croft_proto::v1::{AuditRecord, VerifyAuditLogResponse};

use super::Memory;
use crate::audit::{Action, AuditStore};
use crate::error::Error;
use crate::store::chain::{self, Chain};
use crate::store::time;

#[async_trait]
impl AuditStore for Memory {
    async fn append(&self, actions: Vec<Action>) -> Result<(), Error> {
        let now = time::timestamp(jiff::Timestamp::now().as_microsecond());
        let mut state = self.lock();
        for Action { tenant, actor, action, resource, outcome } in actions {
            let records = state.audit.entry(tenant).or_default();
            let mut record = AuditRecord {
                number: records.len() as u64 + 1,
                create_time: Some(now),
                actor,
                action: action.into_owned(),
                resource,
                outcome: outcome.into_owned(),
                hash: String::new(),
            };
            let previous = match records.last() {
                Some(last) => chain::parse(&last.hash).map_err(Error::internal)?,
                None => chain::START,
            };
            record.hash = hex::encode(chain::link(tenant, &previous, &record));
            records.push(record);
        }
        Ok(())
    }

    async fn list(&self, tenant: TenantId, after_number: u64, limit: u32) -> Result<Vec<AuditRecord>, Error> {
        let state = self.lock();
        let records = state.audit.get(&tenant).into_iter().flatten();
        Ok(records.filter(|record| record.number > after_number).take(limit as usize).cloned().collect())
    }

    async fn verify(&self, tenant: TenantId) -> Result<VerifyAuditLogResponse, Error> {
        let state = self.lock();
        let mut chain = Chain::new(tenant);
        let fits = state.audit.get(&tenant).into_iter().flatten().all(|record| chain.add(record));
        Ok(if fits { chain.intact() } else { chain.broken() })
    }
}
