//! The hash chain of the audit log: each record's hash covers the one before it, so that a record that was changed,
//! removed or slipped in is found.
//!
//! The trigger `audit_log_chain` in the migrations computes the same in SQL.

use croft_proto::id::TenantId;
use croft_proto::v1::{AuditRecord, VerifyAuditLogResponse};
use sha2::{Digest, Sha256};

use super::time;
use crate::audit::Known;

/// What the first record follows.
pub(crate) const START: [u8; 32] = [0; 32];

/// A record as it is hashed.
pub(crate) struct Link<'a> {
    pub number: u64,
    /// Microseconds since 1970.
    pub micros: i64,
    /// Actor, action, resource and outcome.
    pub texts: [&'a str; 4],
    /// When it was done, in microseconds since 1970, if anybody told it.
    pub act_micros: Option<i64>,
}

impl<'a> Link<'a> {
    pub(crate) fn of(record: &'a AuditRecord) -> Self {
        let AuditRecord { number, create_time, actor, action, resource, outcome, hash: _, act_time } = record;
        let micros = create_time.as_ref().map_or(0, time::micros);
        let act_micros = act_time.as_ref().map(time::micros);
        Self { number: *number, micros, texts: [actor, action, resource, outcome], act_micros }
    }

    /// The hash of this record when it follows `previous`. Each text is preceded by its length, so that no two records have the
    /// same bytes.
    pub(crate) fn after(&self, tenant: TenantId, previous: &[u8; 32]) -> [u8; 32] {
        let mut hasher = Sha256::new();
        hasher.update(previous);
        hasher.update(tenant.0.as_bytes());
        hasher.update(self.number.to_be_bytes());
        hasher.update(self.micros.to_be_bytes());
        for text in self.texts {
            hasher.update(u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
            hasher.update(text);
        }
        // What has none is hashed as before there were any. It is the last, and so it can be taken for nothing else.
        if let Some(act_micros) = self.act_micros {
            hasher.update(act_micros.to_be_bytes());
        }
        hasher.finalize().into()
    }
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
    /// What the walk must come by.
    known: Option<Known>,
}

impl Chain {
    pub(crate) fn new(tenant: TenantId, known: Option<Known>) -> Self {
        Self { tenant, verified: 0, head: START, known }
    }

    /// Takes the next record and the hash that is kept of it; false if it does not fit, and then the walk is over.
    pub(crate) fn add(&mut self, link: &Link<'_>, hash: &[u8]) -> bool {
        let expected = link.after(self.tenant, &self.head);
        let is_known = |known: Known| known.number != link.number || known.hash == expected;
        if link.number != self.verified + 1 || hash != expected || !self.known.is_none_or(is_known) {
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

    /// The walk ended where the log says that it ends, and not before what is known.
    pub(crate) fn ends_at(&self, number: u64, hash: &[u8]) -> bool {
        self.verified == number && self.head == hash && self.known.is_none_or(|known| known.number <= number)
    }

    /// What the walk came to, once it is over.
    pub(crate) fn verdict(&self, intact: bool) -> VerifyAuditLogResponse {
        VerifyAuditLogResponse {
            intact,
            records_verified: self.verified,
            first_broken_number: if intact { 0 } else { self.verified + 1 },
            last_hash: if self.verified == 0 { String::new() } else { hex::encode(self.head) },
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
            head = Link::of(&next).after(tenant, &head);
            next.hash = hex::encode(head);
            records.push(next);
        }
        (tenant, records)
    }

    fn walk(tenant: TenantId, records: &[AuditRecord]) -> u64 {
        let mut chain = Chain::new(tenant, None);
        let _ = records.iter().all(|record| chain.add(&Link::of(record), &parse(&record.hash).unwrap()));
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
        let mut dated = records.clone();
        dated[1].act_time = Some(time::timestamp(0));
        assert_eq!(walk(tenant, &dated), 1, "it had no time of its own");
        let removed = [records[0].clone(), records[2].clone()];
        assert_eq!(walk(tenant, &removed), 1);
        assert_eq!(walk(TenantId::generate(), &records), 0);
    }
}
