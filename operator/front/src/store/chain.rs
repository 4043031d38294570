//! The hash chain of the audit log: each record's hash covers the one before it, so that a record that was changed,
//! removed or slipped in is found.
//!
//! The trigger `audit_log_chain` in the migrations computes the same in SQL.

use croft_proto::id::TenantId;
use croft_proto::v1::{AuditRecord, VerifyAuditLogResponse};
use sha2::{Digest, Sha256};

use super::time;

/// What the first record follows.
pub(crate) const START: [u8; 32] = [0; 32];

/// The hash of a record that follows `previous`. Each text is preceded by its length, so that no two records have the
/// same bytes.
pub(crate) fn link(tenant: TenantId, previous: &[u8; 32], record: &AuditRecord) -> [u8; 32] {
    let AuditRecord { number, create_time, actor, action, resource, outcome, hash: _ } = record;
    let mut hasher = Sha256::new();
    hasher.update(previous);
    hasher.update(tenant.0.as_bytes());
    hasher.update(number.to_be_bytes());
    hasher.update(create_time.as_ref().map_or(0, time::micros).to_be_bytes());
    for text in [actor, action, resource, outcome] {
        hasher.update(u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
        hasher.update(text);
    }
    hasher.finalize().into()
}

/// The bytes of a hash in hex.
pub(crate) fn parse(hash: &str) -> Result<[u8; 32], hex::FromHexError> {
    let mut bytes = START;
    hex::decode_to_slice(hash, &mut bytes)?;
    Ok(bytes)
}

/// Walks a tenant's chain from its start.
pub(crate) struct Chain {
    tenant: TenantId,
    verified: u64,
    head: [u8; 32],
}

impl Chain {
    pub(crate) fn new(tenant: TenantId) -> Self {
        Self { tenant, verified: 0, head: START }
    }

    /// Takes the next record; false if it does not fit, and then the walk is over.
    pub(crate) fn add(&mut self, record: &AuditRecord) -> bool {
        let expected = link(self.tenant, &self.head, record);
        if record.number != self.verified + 1 || record.hash != hex::encode(expected) {
            return false;
        }
        self.verified += 1;
        self.head = expected;
        true
    }

    /// How many records fit so far.
    pub(crate) fn verified(&self) -> u64 {
        self.verified
    }

    /// The walk ended where the log says that it ends.
    pub(crate) fn ends_at(&self, number: u64, hash: &[u8]) -> bool {
        self.verified == number && self.head == hash
    }

    pub(crate) fn intact(&self) -> VerifyAuditLogResponse {
        VerifyAuditLogResponse { intact: true, records_verified: self.verified, first_broken_number: 0 }
    }

    pub(crate) fn broken(&self) -> VerifyAuditLogResponse {
        VerifyAuditLogResponse {
            intact: false,
            records_verified: self.verified,
            first_broken_number: self.verified + 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(number: u64, resource: &str) -> AuditRecord {
        AuditRecord { number, actor: "operator".into(), resource: resource.into(), ..AuditRecord::default() }
    }

    /// A chain of three, and its tenant.
    fn three() -> (TenantId, Vec<AuditRecord>) {
        let tenant = TenantId::generate();
        let mut records = Vec::new();
        let mut head = START;
        for number in 1..=3 {
            let mut next = record(number, "sessions/1");
            head = link(tenant, &head, &next);
            next.hash = hex::encode(head);
            records.push(next);
        }
        (tenant, records)
    }

    fn walk(tenant: TenantId, records: &[AuditRecord]) -> u64 {
        let mut chain = Chain::new(tenant);
        let _ = records.iter().all(|record| chain.add(record));
        chain.verified()
    }

    #[test]
    fn any_change_breaks_the_chain_where_it_was_made() {
        let (tenant, records) = three();
        assert_eq!(walk(tenant, &records), 3);
        let mut changed = records.clone();
        changed[1].resource = "sessions/2".into();
        assert_eq!(walk(tenant, &changed), 1);
        let mut moved = records.clone();
        moved[1].outcome = std::mem::take(&mut moved[1].actor);
        assert_eq!(walk(tenant, &moved), 1);
        let removed = [records[0].clone(), records[2].clone()];
        assert_eq!(walk(tenant, &removed), 1);
        assert_eq!(walk(TenantId::generate(), &records), 0);
    }
}
