//! Where sessions live.

use std::collections::BTreeMap;

use async_trait::async_trait;
use croft_proto::Timestamp;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::{AgentSpec, SessionEvent, SessionState};

use super::Session;
use super::family::Parent;
use crate::error::Error;
use crate::events::log::{IdempotencyKey, NewEvent};

/// A session that is about to be recorded, with its first events.
#[derive(Debug, Clone)]
pub struct NewSession {
    pub id: SessionId,
    pub tenant: TenantId,
    pub tenant_name: String,
    pub agent: AgentSpec,
    pub config_hash: String,
    pub labels: BTreeMap<String, String>,
    /// 0 is never.
    pub idle_timeout_ms: i64,
    pub expire_time: Option<Timestamp>,
    /// Numbered from 1; at least `SessionCreated`. They set the state, as in an append.
    pub events: Vec<NewEvent>,
    /// Refuse when the tenant has this many sessions that are not terminated; `None` means no limit.
    pub sessions_max: Option<u32>,
    pub idempotency_key: Option<IdempotencyKey>,
    /// The call that it answers, when it is a sub-agent's. There is one session for each call.
    pub parent: Option<Parent>,
}

impl NewSession {
    /// With these first events, and nothing besides: nobody's sub-agent, with no end set, no limit, no key, no label, and an empty hash.
    pub fn of(
        id: SessionId,
        tenant: TenantId,
        tenant_name: impl Into<String>,
        agent: AgentSpec,
        events: Vec<NewEvent>,
    ) -> Self {
        Self {
            id,
            tenant,
            tenant_name: tenant_name.into(),
            agent,
            config_hash: String::new(),
            labels: BTreeMap::new(),
            idle_timeout_ms: 0,
            expire_time: None,
            events,
            sessions_max: None,
            idempotency_key: None,
            parent: None,
        }
    }
}

/// What [`SessionStore::insert`] did.
#[derive(Debug, Clone, PartialEq)]
pub enum Inserted {
    /// The session and its events are stored.
    New { session: Session, events: Vec<SessionEvent> },
    /// The idempotency key, or the parent's call, had made this session before; nothing was stored.
    Existing(Session),
}

/// Bytes of agents and labels at which a page of sessions ends: an agent is large, and so may be all of a thousand. With one more of the
/// largest, and all that sessions have besides, a page is still below the 4 MiB that a gRPC client takes unless it was told otherwise.
pub const PAGE_BYTES: u32 = 1 << 20;

/// Sessions that are looked at for a page of those that carry some labels. Where few do, a look at all of a tenant's would take longer than
/// a statement may, each time.
pub const LOOKED_AT_MAX: u32 = 50_000;

/// A page of sessions.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Page {
    pub sessions: Vec<Session>,
    /// See [`Self::next`].
    pub(crate) next: Option<SessionId>,
}

impl Page {
    /// Behind which the next page begins, if there is one: the last session of this one, or the last that was looked at for it.
    pub fn next(&self) -> Option<SessionId> {
        self.next
    }
}

/// Which sessions a list shows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filter {
    /// Empty shows all states.
    pub states: Vec<SessionState>,
    /// All of these must be there.
    pub labels: BTreeMap<String, String>,
    /// Empty shows all sessions.
    pub ids: Vec<SessionId>,
    /// Only sub-agents' that this session called.
    pub parent: Option<SessionId>,
}

impl Filter {
    /// Of all that have not ended.
    pub(crate) fn open() -> Self {
        let states = [SessionState::Creating, SessionState::Ready, SessionState::Running, SessionState::Idle];
        Self { states: states.to_vec(), ..Self::default() }
    }
}

/// Where sessions live. Every call names its tenant: no method can see across two of them.
#[async_trait]
pub trait SessionStore: Send + Sync {
    /// Records a new session and its first events, all or nothing.
    ///
    /// Fails with [`Error::SessionLimit`], with [`Error::IdempotencyKeyReused`] when the key came with another body, and
    /// with [`Error::TenantClosed`] once the tenant's removal has begun: see [`crate::tenants::removal::store::RemovalStore`]. A sub-agent's
    /// session fails with [`Error::SessionTerminated`] once its parent has ended: none is made behind the back of whoever ends them.
    async fn insert(&self, session: NewSession) -> Result<Inserted, Error>;

    /// The session, or `None` if this tenant has no such session.
    async fn get(&self, tenant: TenantId, id: SessionId) -> Result<Option<Session>, Error>;

    /// Sessions, newest first (by id, which is a UUID of version 7), that come after `after` in that order; at most `limit`, and no more
    /// once they have [`PAGE_BYTES`]. Where the filter has labels, [`LOOKED_AT_MAX`] are looked at: there may be fewer on a page, or none, and
    /// others behind it.
    async fn list(
        &self,
        tenant: TenantId,
        filter: &Filter,
        after: Option<SessionId>,
        limit: u32,
    ) -> Result<Page, Error>;

    /// Sessions in which a question may wait for a person, in pages as [`Self::list`] has them: those whose last turn ended with
    /// `RequiresAction`, and those that run a turn in which somebody was asked behind the message that was taken up last, whether or
    /// not there is an answer. It takes as long as there are such and turns at hand, however many sessions the tenant has.
    async fn asking(&self, tenant: TenantId, after: Option<SessionId>, limit: u32) -> Result<Page, Error>;

    /// How many sessions of the tenant are not terminated.
    async fn count_open(&self, tenant: TenantId) -> Result<u32, Error>;

    /// The session that answers this call of a parent's, whether or not it has ended.
    async fn child(&self, tenant: TenantId, parent: SessionId, tool_call_id: &str) -> Result<Option<Session>, Error>;

    /// The session that this idempotency key of `CreateSession` made, if it did so within 24 hours with the same body.
    ///
    /// Fails with [`Error::IdempotencyKeyReused`] when the body was another.
    async fn find_created(&self, tenant: TenantId, key: &IdempotencyKey) -> Result<Option<Session>, Error>;
}
