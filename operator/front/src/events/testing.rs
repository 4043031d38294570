//! What the tests of fan-out and replay share: a session in memory, and hubs around it.

use std::sync::Arc;

use async_trait::async_trait;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    AgentMessage, AgentSpec, SessionCreated, SessionEvent, SessionTerminated, TextDelta, UserMessage,
};
use croft_serve::Tasks;
use prometheus::Registry;
use tokio::sync::mpsc;

use super::fanout::{Hub, Metrics, Options};
use super::log::{Append, Appended, Authority, EventLog, NewEvent};
use super::relay::{Envelope, Relay};
use crate::error::Error;
use crate::session::store::{NewSession, SessionStore};
use crate::store::memory::Memory;
use crate::tenants::TenantMirror;

/// A session with one event, that it was created.
pub(crate) struct Scene {
    pub(crate) log: Arc<Memory>,
    pub(crate) tenant: TenantId,
    pub(crate) session: SessionId,
    pub(crate) tasks: Tasks,
}

impl Scene {
    pub(crate) async fn new() -> Self {
        let (log, tenant, session) = (Arc::new(Memory::default()), TenantId::generate(), SessionId::generate());
        log.upsert(tenant, "heron").await.unwrap();
        let created = NewEvent::now(Kind::SessionCreated(SessionCreated::default()));
        let new = NewSession::of(session, tenant, "heron", AgentSpec::default(), vec![created]);
        log.insert(new).await.unwrap();
        Self { log, tenant, session, tasks: Tasks::new() }
    }

    pub(crate) fn hub(&self, relay: Arc<dyn Relay>, options: Options) -> Hub {
        let metrics = Metrics::register(&Registry::new()).unwrap();
        Hub::with_options(relay, &self.tasks, options, metrics)
    }

    /// Stores an event, and returns it with its number.
    pub(crate) async fn append(&self, kind: Kind) -> Vec<SessionEvent> {
        let append = Append::of(self.tenant, self.session, Authority::Caller, vec![NewEvent::now(kind)]);
        match self.log.append(append).await.unwrap() {
            Appended::New(events) => events,
            Appended::Existing { .. } => panic!("it was not there before"),
        }
    }

    /// Stores an event and tells the hub.
    pub(crate) async fn publish(&self, hub: &Hub, kind: Kind) -> u64 {
        let events = self.append(kind).await;
        let seq = events[0].seq;
        hub.publish(self.tenant, self.session, events);
        seq
    }

    pub(crate) fn preview(&self, hub: &Hub, text: &str) {
        let kind = Some(Kind::TextDelta(TextDelta { text: text.to_owned() }));
        let event = SessionEvent { session_id: self.session.to_string(), kind, ..Default::default() };
        hub.publish(self.tenant, self.session, vec![event]);
    }
}

pub(crate) fn user_message() -> Kind {
    Kind::UserMessage(UserMessage::default())
}

pub(crate) fn agent_message() -> Kind {
    Kind::AgentMessage(AgentMessage::default())
}

pub(crate) fn terminated() -> Kind {
    Kind::SessionTerminated(SessionTerminated::default())
}

/// A relay that is down.
pub(crate) struct DownRelay;

#[async_trait]
impl Relay for DownRelay {
    async fn publish(&self, _: TenantId, _: SessionId, _: &Envelope) -> Result<u64, Error> {
        Err(Error::unavailable("redis", anyhow::anyhow!("connection refused")))
    }

    async fn subscribe(&self, _: TenantId, _: SessionId) -> Result<mpsc::Receiver<Envelope>, Error> {
        Err(Error::unavailable("redis", anyhow::anyhow!("connection refused")))
    }
}
