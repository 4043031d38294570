//! The stores in memory: for tests and for a round trip in one process. Held to the same contract as Postgres; nothing
//! survives the process.

mod across;
mod audit;
mod budgets;
mod events;
mod keys;
mod leases;
mod removal;
mod retention;
mod sessions;
mod tenants;
mod turns;
mod usage;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use croft_proto::Timestamp;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::{AuditRecord, SessionEvent, UsageEvent};
use tokio::time::Instant;
use uuid::Uuid;

use crate::budget::period::Period;
use crate::budget::{self, Budget};
use crate::error::Error;
use crate::events::log::{IdempotencyKey, StoredCheckpoint};
use crate::session::Session;
use crate::store::projection;

/// How long an idempotency key is remembered.
const KEY_WINDOW: Duration = Duration::from_hours(24);

/// Everything, under one lock: an append changes several things at once, and nothing here waits.
#[derive(Default)]
pub struct Memory {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tenants: BTreeMap<TenantId, String>,
    /// Those whose removal has begun.
    removing: BTreeSet<TenantId>,
    /// Changes of any session's state so far.
    changes: u64,
    sessions: BTreeMap<(TenantId, SessionId), Record>,
    /// Sessions that are being erased, out of sight, each with how many events it still has.
    going: BTreeMap<(TenantId, SessionId), u64>,
    /// The sessions above each sub-agent's. What they used outlives them.
    lineages: BTreeMap<String, Vec<String>>,
    usage: BTreeMap<(TenantId, String), UsageEvent>,
    audit: BTreeMap<TenantId, Vec<AuditRecord>>,
    /// The number behind what is stored of each journal.
    audit_journals: HashMap<Uuid, u64>,
    api_keys: BTreeMap<String, keys::Kept>,
    budgets: BTreeMap<(TenantId, budget::Scope, String, Period), Budget>,
    alerts: Vec<budgets::Found>,
    used_keys: BTreeMap<(TenantId, Scope, String), UsedKey>,
}

struct Record {
    session: Session,
    events: Vec<SessionEvent>,
    checkpoint: Option<StoredCheckpoint>,
    lease: Lease,
    /// When it is to be ended as it stands now.
    due_time: Option<Timestamp>,
    /// The change that was its state's last.
    change_number: u64,
}

#[derive(Default)]
struct Lease {
    epoch: u64,
    /// When it runs out; `None` while nobody holds it.
    expiry: Option<Instant>,
    /// It ran out with no holder: nobody was told its epoch, so nothing may be done under it.
    is_abandoned: bool,
}

/// What an idempotency key is unique in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    Create,
    Send(SessionId),
}

impl Lease {
    fn is_free(&self, now: Instant) -> bool {
        self.expiry.is_none_or(|expiry| expiry <= now)
    }

    /// Abandoned, or never had.
    fn is_left(&self, now: Instant) -> bool {
        self.epoch == 0 || self.expiry.is_some_and(|expiry| expiry <= now)
    }

    /// Under the epoch that is told. The holder before is fenced.
    fn take(&mut self, expiry: Instant) -> u64 {
        *self = Self { epoch: self.epoch + 1, expiry: Some(expiry), is_abandoned: false };
        self.epoch
    }

    /// Lets whoever looks for abandoned turns have it at once. The holder before is fenced.
    fn abandon(&mut self) {
        *self = Self { epoch: self.epoch + 1, expiry: Some(Instant::now()), is_abandoned: true };
    }

    /// True past the expiry too, until someone else takes the lease.
    fn is_held_under(&self, epoch: u64) -> bool {
        self.expiry.is_some() && !self.is_abandoned && self.epoch == epoch
    }
}

struct UsedKey {
    body_hash: [u8; 32],
    session: SessionId,
    first_seq: u64,
    use_time: Instant,
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the lock panics")
    }
}

impl State {
    fn record(&mut self, tenant: TenantId, session: SessionId) -> Result<&mut Record, Error> {
        self.sessions
            .get_mut(&(tenant, session))
            .ok_or_else(|| Error::SessionNotFound { session_id: session.to_string() })
    }

    /// What this key did, if it is still remembered; fails when it came with another body.
    fn used(&self, tenant: TenantId, scope: Scope, key: &IdempotencyKey) -> Result<Option<&UsedKey>, Error> {
        match self.used_keys.get(&(tenant, scope, key.key.clone())) {
            Some(used) if used.use_time.elapsed() >= KEY_WINDOW => Ok(None),
            Some(used) if used.body_hash != key.body_hash => Err(Error::IdempotencyKeyReused),
            used => Ok(used),
        }
    }

    fn remember(&mut self, tenant: TenantId, scope: Scope, key: IdempotencyKey, session: SessionId, first_seq: u64) {
        self.used_keys.retain(|_, used| used.use_time.elapsed() < KEY_WINDOW);
        let used = UsedKey { body_hash: key.body_hash, session, first_seq, use_time: Instant::now() };
        self.used_keys.insert((tenant, scope, key.key), used);
    }

    /// Adds the usage that is new, to the session's totals, too.
    fn meter_for(&mut self, tenant: TenantId, session: SessionId, rows: Vec<UsageEvent>) -> Result<(), Error> {
        let agent = self.record(tenant, session)?.session.agent.name.clone();
        let added = self.meter(tenant, &agent, rows);
        let record = self.record(tenant, session)?;
        for row in added {
            projection::add_usage(&mut record.session.usage, &row);
        }
        Ok(())
    }

    /// Adds an agent's usage that is new, and tells which rows those were.
    fn meter(&mut self, tenant: TenantId, agent: &str, rows: Vec<UsageEvent>) -> Vec<UsageEvent> {
        let mut added = Vec::with_capacity(rows.len());
        for mut row in rows {
            agent.clone_into(&mut row.agent);
            if let Entry::Vacant(vacant) = self.usage.entry((tenant, row.attempt_id.clone())) {
                vacant.insert(row.clone());
                added.push(row);
            }
        }
        added
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_forgotten_after_its_window() {
        let mut state = State::default();
        let (tenant, session) = (TenantId::generate(), SessionId::generate());
        let key = |body| IdempotencyKey { key: "k".into(), body_hash: [body; 32] };
        state.remember(tenant, Scope::Create, key(1), session, 1);
        assert!(matches!(state.used(tenant, Scope::Create, &key(2)), Err(Error::IdempotencyKeyReused)));
        for used in state.used_keys.values_mut() {
            let Some(earlier) = used.use_time.checked_sub(KEY_WINDOW) else { return };
            used.use_time = earlier;
        }
        assert!(state.used(tenant, Scope::Create, &key(2)).unwrap().is_none());
    }
}
