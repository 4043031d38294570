//! What the first token waits for: the message, and nothing that is stored after it.

use std::sync::Arc;

use async_trait::async_trait;
use croft_e2e::client::{message, scripted_agent};
use croft_front::Error;
use croft_front::events::log::{Append, Appended, EventLog, IdempotencyKey, StoredCheckpoint};
use croft_front::store::Stores;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{SessionEvent, StopReason};
use tokio::sync::Semaphore;

use crate::world::{Ground, World, names, read_all, stop_reason};

/// A log that stores no step's beginning until it is let.
struct HeldLog {
    log: Arc<dyn EventLog>,
    let_go: Arc<Semaphore>,
}

#[async_trait]
impl EventLog for HeldLog {
    async fn append(&self, append: Append) -> Result<Appended, Error> {
        if append.events.iter().any(|event| matches!(event.kind, Kind::StepStarted(_))) {
            drop(self.let_go.acquire().await);
        }
        self.log.append(append).await
    }

    async fn find_sent(&self, tenant: TenantId, id: SessionId, key: &IdempotencyKey) -> Result<Option<u64>, Error> {
        self.log.find_sent(tenant, id, key).await
    }

    async fn read(&self, tenant: TenantId, id: SessionId, after: u64, limit: u32) -> Result<Vec<SessionEvent>, Error> {
        self.log.read(tenant, id, after, limit).await
    }

    async fn checkpoint(&self, tenant: TenantId, id: SessionId) -> Result<Option<StoredCheckpoint>, Error> {
        self.log.checkpoint(tenant, id).await
    }
}

#[tokio::test]
async fn the_first_token_does_not_wait_until_the_steps_beginning_is_stored() {
    let let_go = Arc::new(Semaphore::new(0));
    let mut stores = Stores::memory();
    stores.events = Arc::new(HeldLog { log: stores.events, let_go: Arc::clone(&let_go) });
    let world = World::on(Ground { stores, ..Ground::default() }).await;
    let mut client = world.client();
    let session = client.create(scripted_agent("quick")).await.unwrap();
    let script = r#"{"script": [{"text": "one two three"}]}"#;
    let mut events = client.lifecycle.send_message(message(&session.session_id, script)).await.unwrap().into_inner();
    let mut heard = Vec::new();
    while !matches!(heard.last(), Some(SessionEvent { kind: Some(Kind::TextDelta(_)), .. })) {
        heard.push(events.message().await.unwrap().unwrap().event.unwrap());
    }
    assert!(!names(&heard).contains(&"step"), "{heard:?}");

    let_go.add_permits(1);
    let rest = read_all(events).await;
    assert!(names(&rest).contains(&"step"), "{rest:?}");
    assert_eq!(stop_reason(&rest), Some(StopReason::EndTurn));
    let durable: Vec<_> = heard.iter().chain(&rest).map(|event| event.seq).filter(|seq| *seq > 0).collect();
    assert_eq!(durable, (3..).take(durable.len()).collect::<Vec<_>>(), "no hole, no double");
}
