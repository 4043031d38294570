//! Made-up tenants, sessions and events.

use croft_front::events::log::{Append, Appended, Authority, IdempotencyKey, NewEvent};
use croft_front::session::Session;
use croft_front::session::family::Parent;
use croft_front::session::store::{Inserted, NewSession};
use croft_front::store::Stores;
use croft_proto::Timestamp;
use croft_proto::id::{SessionId, TenantId, TurnId};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    AgentLimits, AgentSpec, ContentBlock, ModelAttempt, SessionCreated, SessionEvent, SessionReady, SessionTerminated,
    Text, TokenUsage, ToolSpec, UserMessage, content_block,
};

/// A moment of made-up time, with microseconds.
pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp { seconds: 1_790_000_000 + seconds, nanos: 123_456_000 }
}

/// A tenant that the stores know.
pub(crate) async fn tenant(stores: &Stores, name: &str) -> TenantId {
    let tenant = TenantId::generate();
    stores.tenants.upsert(tenant, name).await.unwrap();
    tenant
}

pub(crate) async fn two_tenants(stores: &Stores) -> [TenantId; 2] {
    [tenant(stores, "ours").await, tenant(stores, "theirs").await]
}

pub(crate) fn agent(name: &str) -> AgentSpec {
    AgentSpec {
        name: name.into(),
        model: "scripted-1".into(),
        system_prompt: "Be brief. ⛵".into(),
        tools: vec![ToolSpec { name: "clock".into(), timeout_ms: 1_234, ..ToolSpec::default() }],
        limits: Some(AgentLimits { model_calls_max: 7, ..AgentLimits::default() }),
        fallback_models: vec!["claude-haiku-4-5".into()],
        temperature: Some(0.25),
        ..AgentSpec::default()
    }
}

pub(crate) fn event(kind: Kind) -> NewEvent {
    NewEvent::at(kind, at(1))
}

pub(crate) fn said(text: &str) -> Kind {
    let block = content_block::Block::Text(Text { text: text.into() });
    Kind::UserMessage(UserMessage {
        content: vec![ContentBlock { block: Some(block) }],
        sender: "api-key/ck_1a2b3c4d".into(),
    })
}

pub(crate) fn created() -> Kind {
    Kind::SessionCreated(SessionCreated { agent: Some(agent("helper")), config_hash: "c0ffee".into(), parent: None })
}

pub(crate) fn ready(worker: &str) -> Kind {
    Kind::SessionReady(SessionReady { worker: worker.into(), namespace: "tenant-ours".into() })
}

pub(crate) fn terminated(reason: &str) -> Kind {
    Kind::SessionTerminated(SessionTerminated { reason: reason.into() })
}

/// An attempt that used 100 tokens of input and 10 of output.
pub(crate) fn attempt(id: &str, cost_nano_usd: Option<i64>) -> Kind {
    Kind::ModelAttempt(ModelAttempt {
        attempt_id: id.into(),
        provider: "scripted".into(),
        model: "scripted-1".into(),
        usage: Some(TokenUsage { input_uncached_tokens: 100, output_tokens: 10, ..TokenUsage::default() }),
        cost_nano_usd,
        latency_ms: 321,
        finish_reason: "end_turn".into(),
        ..ModelAttempt::default()
    })
}

/// A session that is about to be ready, with no limit and no key.
pub(crate) fn new_session(tenant: TenantId) -> NewSession {
    let events = vec![event(created()), event(ready("worker-0"))];
    let new = NewSession::of(SessionId::generate(), tenant, "ours", agent("helper"), events);
    NewSession { config_hash: "c0ffee".into(), ..new }
}

/// A session that is about to be ready, for a call of this one's.
pub(crate) fn new_child(parent: &Session, tool_call_id: &str) -> NewSession {
    let turn = TurnId(uuid::Uuid::from_u128(7));
    NewSession { parent: Some(Parent::of(parent, turn, tool_call_id)), ..new_session(parent.tenant) }
}

/// A stored session with two events: created and ready.
pub(crate) async fn session(stores: &Stores, tenant: TenantId) -> SessionId {
    insert(stores, new_session(tenant)).await.id
}

pub(crate) async fn insert(stores: &Stores, new: NewSession) -> Session {
    match stores.sessions.insert(new).await.unwrap() {
        Inserted::New { session, .. } => session,
        Inserted::Existing(session) => panic!("{} was there", session.id),
    }
}

pub(crate) async fn get(stores: &Stores, tenant: TenantId, session: SessionId) -> Session {
    stores.sessions.get(tenant, session).await.unwrap().expect("the session is there")
}

pub(crate) fn append(tenant: TenantId, session: SessionId, kinds: Vec<Kind>) -> Append {
    Append::of(tenant, session, Authority::Caller, kinds.into_iter().map(event).collect())
}

/// Appends and tells the numbered events.
pub(crate) async fn appended(stores: &Stores, append: Append) -> Vec<SessionEvent> {
    match stores.events.append(append).await.unwrap() {
        Appended::New(events) => events,
        Appended::Existing { first_seq } => panic!("appended before, from {first_seq} on"),
    }
}

pub(crate) fn seqs(events: &[SessionEvent]) -> Vec<u64> {
    events.iter().map(|event| event.seq).collect()
}

pub(crate) fn key(key: &str, body: u8) -> IdempotencyKey {
    IdempotencyKey { key: key.into(), body_hash: [body; 32] }
}

pub(crate) fn in_turn(turn: TurnId, kind: Kind) -> NewEvent {
    NewEvent { kind, turn: Some(turn), elapsed_ms: 42, create_time: at(2) }
}
