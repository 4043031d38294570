//! The audit log in memory.

use std::ops::RangeInclusive;

use async_trait::async_trait;
use croft_proto::Timestamp;
use croft_proto::id::TenantId;
use croft_proto::v1::{AuditRecord, VerifyAuditLogResponse};

use super::{Memory, State};
use crate::audit::{Action, AuditStore, Known, Place};
use crate::error::Error;
use crate::store::chain::{self, Chain, Link};
use crate::store::time;

/// Of this century, or the end of the last one, since 1970.
const ACT_MICROS: RangeInclusive<i64> = 0..=4_102_444_800_000_000;

#[async_trait]
impl AuditStore for Memory {
    async fn append(&self, place: Place, actions: Vec<Action>) -> Result<u64, Error> {
        if actions.is_empty() {
            return Ok(0);
        }
        if actions.iter().filter_map(|action| action.act_micros).any(|micros| !ACT_MICROS.contains(&micros)) {
            return Err(Error::invalid("records", "an act has a time of this century"));
        }
        let now = time::timestamp(jiff::Timestamp::now().as_microsecond());
        let mut state = self.lock();
        let end = place.behind(actions.len()).first;
        let next = state.audit_journals.entry(place.journal).or_insert(1);
        let stored = *next - 1;
        let known = usize::try_from(next.saturating_sub(place.first)).unwrap_or(usize::MAX);
        *next = end.max(*next);
        for action in actions.into_iter().skip(known) {
            state.note(action, now)?;
        }
        Ok(stored)
    }

    async fn list(&self, tenant: TenantId, after_number: u64, limit: u32) -> Result<Vec<AuditRecord>, Error> {
        let state = self.lock();
        let records = state.audit.get(&tenant).into_iter().flatten();
        Ok(records.filter(|record| record.number > after_number).take(limit as usize).cloned().collect())
    }

    async fn verify(&self, tenant: TenantId, known: Option<Known>) -> Result<VerifyAuditLogResponse, Error> {
        let state = self.lock();
        let records = state.audit.get(&tenant).map_or(&[][..], Vec::as_slice);
        let mut chain = Chain::new(tenant, known);
        for record in records {
            let hash = chain::parse(&record.hash).map_err(Error::internal)?;
            if !chain.add(&Link::of(record), &hash) {
                return Ok(chain.verdict(false));
            }
        }
        let last = records.last().map(|last| chain::parse(&last.hash)).transpose().map_err(Error::internal)?;
        Ok(chain.verdict(chain.ends_at(records.len() as u64, &last.unwrap_or(chain::START))))
    }
}

impl State {
    /// Adds a record to the end of its tenant's chain.
    pub(super) fn note(&mut self, action: Action, now: Timestamp) -> Result<(), Error> {
        let Action { tenant, actor, action, resource, outcome, act_micros } = action;
        let records = self.audit.entry(tenant).or_default();
        let mut record = AuditRecord {
            number: records.len() as u64 + 1,
            create_time: Some(now),
            actor,
            action: action.into_owned(),
            resource,
            outcome: outcome.into_owned(),
            hash: String::new(),
            act_time: act_micros.map(time::timestamp),
        };
        let previous = match records.last() {
            Some(last) => chain::parse(&last.hash).map_err(Error::internal)?,
            None => chain::START,
        };
        record.hash = hex::encode(Link::of(&record).after(tenant, &previous));
        records.push(record);
        Ok(())
    }
}
