//! Sessions in memory.

use async_trait::async_trait;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{SessionState, StopReason};
use prost::Message as _;

use super::{Lease, Memory, Record, Scope, State};
use crate::error::Error;
use crate::events::log::IdempotencyKey;
use crate::session::Session;
use crate::session::store::{Filter, Inserted, NewSession, PAGE_BYTES, Page, SessionStore};
use crate::store::{being_removed, projection, unknown_tenant};

#[async_trait]
impl SessionStore for Memory {
    async fn insert(&self, new: NewSession) -> Result<Inserted, Error> {
        let mut session = projection::begin(&new)?;
        let mut state = self.lock();
        if !state.tenants.contains_key(&new.tenant) {
            return Err(unknown_tenant());
        }
        if let Some(key) = &new.idempotency_key
            && let Some(existing) = state.created(new.tenant, key)?
        {
            return Ok(Inserted::Existing(existing));
        }
        if let Some(parent) = &new.parent {
            if let Some(existing) = state.child(new.tenant, parent.session, &parent.tool_call_id) {
                return Ok(Inserted::Existing(existing.clone()));
            }
            let above = state.sessions.get(&(new.tenant, parent.session));
            if above.is_none_or(|above| above.session.state == SessionState::Terminated) {
                return Err(Error::SessionTerminated { session_id: parent.session.to_string() });
            }
        }
        if state.removing.contains(&new.tenant) {
            return Err(being_removed());
        }
        if let Some(max) = new.sessions_max
            && state.count_open(new.tenant) >= max
        {
            return Err(Error::SessionLimit { max });
        }
        if state.sessions.contains_key(&(new.tenant, new.id)) {
            return Err(Error::internal(anyhow::anyhow!("session {} exists", new.id)));
        }
        for row in state.meter(new.tenant, &new.agent.name, projection::usage_rows(new.id, &new.events)) {
            projection::add_usage(&mut session.usage, &row);
        }
        let events = projection::number(new.id, 1, new.events);
        if let Some(key) = new.idempotency_key {
            state.remember(new.tenant, Scope::Create, key, new.id, 1);
        }
        let record = Record {
            session: session.clone(),
            events: events.clone(),
            checkpoint: None,
            lease: Lease::default(),
            due_time: None,
            change_number: 0,
        };
        let above = new.parent.iter().flat_map(|parent| &parent.lineage);
        let above: Vec<_> = above.map(|ancestor| ancestor.session.clone()).collect();
        if !above.is_empty() {
            state.lineages.insert(new.id.to_string(), above);
        }
        state.sessions.insert((new.tenant, new.id), record);
        state.turned(new.tenant, new.id)?;
        Ok(Inserted::New { session, events })
    }

    async fn get(&self, tenant: TenantId, id: SessionId) -> Result<Option<Session>, Error> {
        Ok(self.lock().sessions.get(&(tenant, id)).map(|record| record.session.clone()))
    }

    async fn list(
        &self,
        tenant: TenantId,
        filter: &Filter,
        after: Option<SessionId>,
        limit: u32,
    ) -> Result<Page, Error> {
        let state = self.lock();
        let found = state
            .sessions_of(tenant)
            .rev()
            .filter(|session| after.is_none_or(|after| session.id < after))
            .filter(|session| filter.states.is_empty() || filter.states.contains(&session.state))
            .filter(|session| filter.ids.is_empty() || filter.ids.contains(&session.id))
            .filter(|session| filter.parent.is_none_or(|parent| session.is_child_of(parent)))
            .filter(|session| filter.labels.iter().all(|(key, value)| session.labels.get(key) == Some(value)));
        Ok(page(found, limit))
    }

    async fn asking(&self, tenant: TenantId, after: Option<SessionId>, limit: u32) -> Result<Page, Error> {
        let state = self.lock();
        let asking = state.rows_of(tenant).rev().filter(|record| record.asks()).map(|record| &record.session);
        Ok(page(asking.filter(|session| after.is_none_or(|after| session.id < after)), limit))
    }

    async fn count_open(&self, tenant: TenantId) -> Result<u32, Error> {
        Ok(self.lock().count_open(tenant))
    }

    async fn child(&self, tenant: TenantId, parent: SessionId, tool_call_id: &str) -> Result<Option<Session>, Error> {
        Ok(self.lock().child(tenant, parent, tool_call_id).cloned())
    }

    async fn find_created(&self, tenant: TenantId, key: &IdempotencyKey) -> Result<Option<Session>, Error> {
        self.lock().created(tenant, key)
    }
}

impl State {
    fn rows_of(&self, tenant: TenantId) -> impl DoubleEndedIterator<Item = &Record> {
        let all = SessionId(uuid::Uuid::nil())..=SessionId(uuid::Uuid::max());
        self.sessions.range((tenant, *all.start())..=(tenant, *all.end())).map(|(_, record)| record)
    }

    fn sessions_of(&self, tenant: TenantId) -> impl DoubleEndedIterator<Item = &Session> {
        self.rows_of(tenant).map(|record| &record.session)
    }

    fn child(&self, tenant: TenantId, parent: SessionId, tool_call_id: &str) -> Option<&Session> {
        let answers = |session: &&Session| {
            session.parent.as_ref().is_some_and(|of| of.session == parent && of.tool_call_id == tool_call_id)
        };
        self.sessions_of(tenant).find(answers)
    }

    fn count_open(&self, tenant: TenantId) -> u32 {
        let open = self.sessions_of(tenant).filter(|session| session.state != SessionState::Terminated).count();
        u32::try_from(open).unwrap_or(u32::MAX)
    }

    fn created(&self, tenant: TenantId, key: &IdempotencyKey) -> Result<Option<Session>, Error> {
        let used = self.used(tenant, Scope::Create, key)?;
        Ok(used.and_then(|used| self.sessions.get(&(tenant, used.session))).map(|record| record.session.clone()))
    }
}

/// As much as fits a page of what was found.
fn page<'a>(found: impl Iterator<Item = &'a Session>, limit: u32) -> Page {
    let (mut found, mut page, mut bytes) = (found.peekable(), Page::default(), 0);
    while page.sessions.len() < limit as usize
        && bytes < PAGE_BYTES as usize
        && let Some(session) = found.next()
    {
        let labels = session.labels.iter().map(|(key, value)| key.len() + value.len());
        bytes += session.agent.encoded_len() + labels.sum::<usize>();
        page.sessions.push(session.clone());
    }
    page.next = page.sessions.last().filter(|_| found.peek().is_some()).map(|last| last.id);
    page
}

impl Record {
    /// See [`SessionStore::asking`].
    fn asks(&self) -> bool {
        let Session { state, last_stop_reason, input_seq, .. } = &self.session;
        match state {
            SessionState::Idle => *last_stop_reason == StopReason::RequiresAction,
            SessionState::Running if self.lease.expiry.is_some() => {
                let mut since = self.events.iter().rev().take_while(|event| event.seq > *input_seq);
                since.any(|event| matches!(event.kind, Some(Kind::ApprovalRequired(_))))
            }
            _ => false,
        }
    }
}
