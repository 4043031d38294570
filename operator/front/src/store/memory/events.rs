//! The event log in memory.

use async_trait::async_trait;
use croft_proto::id::{SessionId, TenantId, TurnId};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{SessionEvent, SessionState};
use prost::Message;

use super::{Memory, Record, Scope, State};
use crate::error::Error;
use crate::events::log::{Append, Appended, Authority, EventLog, IdempotencyKey, PAGE_BYTES, StoredCheckpoint};
use crate::store::projection::{self, Change};

#[async_trait]
impl EventLog for Memory {
    async fn append(&self, append: Append) -> Result<Appended, Error> {
        let (tenant, session, change) = (append.tenant, append.session, Change::of(&append.events)?);
        let waits = append.authority == Authority::Caller && change.newest_input.is_some() && !change.terminates();
        let mut state = self.lock();
        let appended = state.append(append)?;
        let lease = &mut state.record(tenant, session)?.lease;
        // Before the first lease there is none to be abandoned.
        if waits && matches!(appended, Appended::New(_)) && lease.epoch > 0 && lease.expiry.is_none() {
            lease.abandon();
        }
        Ok(appended)
    }

    async fn find_sent(
        &self,
        tenant: TenantId,
        session: SessionId,
        key: &IdempotencyKey,
    ) -> Result<Option<u64>, Error> {
        let state = self.lock();
        Ok(state.used(tenant, Scope::Send(session), key)?.map(|used| used.first_seq))
    }

    async fn read(
        &self,
        tenant: TenantId,
        session: SessionId,
        after_seq: u64,
        limit: u32,
    ) -> Result<Vec<SessionEvent>, Error> {
        let state = self.lock();
        let Some(record) = state.sessions.get(&(tenant, session)) else { return Ok(Vec::new()) };
        // Numbers are contiguous from 1, so the number before an event is its index.
        let start = usize::try_from(after_seq).unwrap_or(usize::MAX).min(record.events.len());
        let mut bytes = 0;
        let fits = |event: &&SessionEvent| {
            let before = bytes;
            bytes += event.encoded_len();
            before < PAGE_BYTES as usize
        };
        Ok(record.events[start..].iter().take(limit as usize).take_while(fits).cloned().collect())
    }

    async fn waiting(&self, tenant: TenantId, session: SessionId, max: u32) -> Result<u32, Error> {
        let state = self.lock();
        let Some(record) = state.sessions.get(&(tenant, session)) else { return Ok(0) };
        let waits = |event: &&SessionEvent| {
            event.seq > record.session.input_seq && matches!(event.kind, Some(Kind::UserMessage(_)))
        };
        let waiting = record.events.iter().filter(waits).count();
        Ok(u32::try_from(waiting).unwrap_or(u32::MAX).min(max))
    }

    async fn checkpoint(&self, tenant: TenantId, session: SessionId) -> Result<Option<StoredCheckpoint>, Error> {
        let state = self.lock();
        Ok(state.sessions.get(&(tenant, session)).and_then(|record| record.checkpoint.clone()))
    }
}

impl State {
    /// All that an append does.
    pub(super) fn append(&mut self, append: Append) -> Result<Appended, Error> {
        let Append { tenant, session, authority, events, checkpoint, idempotency_key, input_seq } = append;
        let change = Change::of(&events)?;
        self.record(tenant, session)?;
        if let Some(key) = &idempotency_key
            && let Some(used) = self.used(tenant, Scope::Send(session), key)?
        {
            return Ok(Appended::Existing { first_seq: used.first_seq });
        }
        let record = self.record(tenant, session)?;
        record.admit(authority)?;

        // There is nothing to fence before the first lease.
        if (authority.fences() || change.terminates()) && record.lease.epoch > 0 {
            record.lease.epoch += 1;
            record.lease.expiry = None;
        }
        let before = record.session.state;
        change.apply(&mut record.session);
        let turned = record.session.state != before;
        let first_seq = record.session.last_seq + 1;
        record.session.last_seq += events.len() as u64;
        record.session.input_seq = record.session.input_seq.max(input_seq.unwrap_or(0));
        if let Some(checkpoint) = checkpoint {
            record.checkpoint = Some(StoredCheckpoint { checkpoint, seq: record.session.last_seq });
        }
        let rows = projection::usage_rows(session, &events);
        let numbered = projection::number(session, first_seq, events);
        record.events.extend(numbered.iter().cloned());

        if turned {
            self.turned(tenant, session)?;
        }
        self.meter_for(tenant, session, rows)?;
        if let Some(key) = idempotency_key {
            self.remember(tenant, Scope::Send(session), key, session, first_seq);
        }
        Ok(Appended::New(numbered))
    }
}

impl Record {
    fn runs(&self, turn: TurnId) -> bool {
        self.session.state == SessionState::Running && self.session.turn_id == turn.to_string()
    }

    fn admit(&self, authority: Authority) -> Result<(), Error> {
        if self.session.state == SessionState::Terminated {
            return Err(Error::SessionTerminated { session_id: self.session.id.to_string() });
        }
        match authority {
            Authority::Lease { epoch } if !self.lease.is_held_under(epoch) => Err(Error::LeaseLost { epoch }),
            Authority::Overdue { as_of } if !self.is_due(&as_of) => {
                Err(Error::SessionBusy { session_id: self.session.id.to_string() })
            }
            Authority::During { turn } if !self.runs(turn) => {
                Err(Error::SessionBusy { session_id: self.session.id.to_string() })
            }
            Authority::Behind { input_seq } if self.session.newest_input_seq != input_seq => {
                Err(Error::SessionBusy { session_id: self.session.id.to_string() })
            }
            Authority::AtRest if self.session.state == SessionState::Running => {
                Err(Error::SessionBusy { session_id: self.session.id.to_string() })
            }
            Authority::Lease { .. }
            | Authority::Caller
            | Authority::During { .. }
            | Authority::Behind { .. }
            | Authority::Fence
            | Authority::AtRest
            | Authority::Overdue { .. } => Ok(()),
        }
    }
}
