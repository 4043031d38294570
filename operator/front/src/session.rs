//! A session: a conversation between a client and an agent, as the front keeps it.

pub mod across;
pub mod family;
mod lifetime;
pub mod manager;
pub(crate) mod open;
mod reaper;
pub mod retention;
pub mod snapshot;
pub mod store;
pub mod validate;
pub(crate) mod watch;

use std::collections::BTreeMap;

use croft_proto::Timestamp;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::{self, AgentSpec, SessionState, StopReason, UsageTotals};

use family::Parent;
pub use reaper::watch_for_sessions_due;
pub use retention::watch_for_sessions_to_erase;

/// A session as it stands. Its state is a projection of its durable events and changes with them alone: see
/// [`crate::events::log::EventLog::append`]. Its totals also change with what was used behind its end, and when prices are corrected.
#[derive(Debug, Clone, PartialEq)]
pub struct Session {
    pub id: SessionId,
    pub tenant: TenantId,
    pub tenant_name: String,
    pub state: SessionState,
    pub agent: AgentSpec,
    /// Hex of the canonical hash of the configuration snapshot.
    pub config_hash: String,
    pub labels: BTreeMap<String, String>,
    pub create_time: Timestamp,
    pub update_time: Timestamp,
    /// Ended when it has heard nothing for so long; 0 is never.
    pub idle_timeout_ms: i64,
    /// Ended then at the latest.
    pub expire_time: Option<Timestamp>,
    /// When it ended.
    pub terminate_time: Option<Timestamp>,
    /// The number of the newest durable event.
    pub last_seq: u64,
    /// The number of the newest user message that a turn has taken up; later ones wait.
    pub input_seq: u64,
    /// The number of the newest user message there is: above `input_seq`, one waits.
    pub newest_input_seq: u64,
    /// The turn at hand, or the last one; empty before the first.
    pub turn_id: String,
    /// The worker that ran it last; empty before the first placement.
    pub worker: String,
    pub terminate_reason: String,
    pub last_stop_reason: StopReason,
    pub usage: UsageTotals,
    /// The call that it answers, when it is a sub-agent's.
    pub parent: Option<Parent>,
}

impl Session {
    /// A user's message has been taken up by no turn.
    pub fn has_waiting_input(&self) -> bool {
        self.state != SessionState::Terminated && self.newest_input_seq > self.input_seq
    }

    /// It answers a call of this session's.
    pub fn is_child_of(&self, session: SessionId) -> bool {
        self.parent.as_ref().is_some_and(|parent| parent.session == session)
    }
}

impl From<Session> for v1::Session {
    fn from(session: Session) -> Self {
        Self {
            session_id: session.id.to_string(),
            tenant: session.tenant_name,
            state: session.state.into(),
            agent: Some(session.agent),
            config_hash: session.config_hash,
            labels: session.labels.into_iter().collect(),
            create_time: Some(session.create_time),
            update_time: Some(session.update_time),
            last_seq: session.last_seq,
            worker: session.worker,
            usage: Some(session.usage),
            terminate_reason: session.terminate_reason,
            last_stop_reason: session.last_stop_reason.into(),
            idle_timeout_ms: session.idle_timeout_ms,
            expire_time: session.expire_time,
            terminate_time: session.terminate_time,
            parent: session.parent.as_ref().map(Into::into),
            family_usage: None,
        }
    }
}
