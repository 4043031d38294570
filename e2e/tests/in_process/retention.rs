//! A session that ended long ago is erased by any front, and is from then on as one that never was; its bill stays.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use croft_e2e::client::{message, scripted_agent};
use croft_front::Error;
use croft_front::core::Options;
use croft_front::events::log::{Append, Authority, NewEvent};
use croft_front::session::retention::store::{Erased, RetentionStore};
use croft_front::store::Stores;
use croft_proto::Timestamp;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{GetSessionRequest, ListUsageEventsRequest, SessionTerminated, StreamEventsRequest};
use tonic::Code;

use crate::world::{Ground, PATIENCE, World, read_all};

/// Ends a session so long ago.
async fn ended(world: &World, session_id: &str, hours_ago: i64) {
    let now = i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap();
    let then = Timestamp { seconds: now - hours_ago * 3_600, nanos: 0 };
    let ended = NewEvent::at(Kind::SessionTerminated(SessionTerminated::default()), then);
    let append = Append::of(world.tenant(), session_id.parse().unwrap(), Authority::Fence, vec![ended]);
    world.core.stores.events.append(append).await.unwrap();
}

fn soon() -> Options {
    Options {
        retention: Some(Duration::from_hours(24)),
        retention_look_every: Duration::from_millis(20),
        ..Options::default()
    }
}

/// A store in which more than two events take longer than a statement may.
struct Slow(Arc<dyn RetentionStore>);

#[async_trait]
impl RetentionStore for Slow {
    async fn erase_ended(
        &self,
        tenant: TenantId,
        before: Timestamp,
        sessions_max: u32,
        events_max: u32,
    ) -> Result<Erased, Error> {
        if events_max > 2 {
            return Err(Error::unavailable(
                "postgres",
                anyhow::anyhow!("canceling statement due to statement timeout"),
            ));
        }
        self.0.erase_ended(tenant, before, sessions_max, events_max).await
    }
}

/// Each look began with the same session, and failed again.
#[tokio::test]
async fn a_session_that_takes_too_long_at_once_is_erased_a_few_events_at_a_time() {
    let mut stores = Stores::memory();
    stores.retention = Arc::new(Slow(stores.retention));
    let world = World::on(Ground { stores, options: soon(), ..Ground::default() }).await;
    let mut client = world.client();
    for _ in 0..5 {
        let session_id = client.create(scripted_agent("old")).await.unwrap().session_id;
        ended(&world, &session_id, 25).await;
    }
    let erased = async {
        while world.core.metrics.sessions_erased.get() < 5 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, erased).await.expect("they are kept for ever");
}

/// Where the retention time is taken away meanwhile.
#[tokio::test]
async fn what_is_half_erased_goes_without_a_retention_time_too() {
    let options = Options { retention: None, ..soon() };
    let world = World::on(Ground { options, ..Ground::default() }).await;
    let mut client = world.client();
    let mut ids = Vec::new();
    for hours_ago in [50, 25] {
        let session_id = client.create(scripted_agent("old")).await.unwrap().session_id;
        ended(&world, &session_id, hours_ago).await;
        ids.push(session_id);
    }
    let now = i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap();
    let before = Timestamp { seconds: now - 30 * 3_600, nanos: 0 };
    let begun = world.core.stores.retention.erase_ended(world.tenant(), before, 1, 1).await.unwrap();
    assert_eq!(begun, Erased { sessions: 0, events: 1 });
    let erased = async {
        while world.core.metrics.sessions_erased.get() < 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, erased).await.expect("its rows stay for ever");
    let kept = GetSessionRequest { session_id: ids[1].clone() };
    client.lifecycle.get_session(kept).await.unwrap();
}

#[tokio::test]
async fn a_session_is_erased_when_its_time_is_up_and_no_sooner() {
    let world = World::on(Ground { options: soon(), ..Ground::default() }).await;
    let mut client = world.client();
    let mut ids = Vec::new();
    for hours_ago in [25, 23] {
        let session_id = client.create(scripted_agent("old")).await.unwrap().session_id;
        let turn = client.lifecycle.send_message(message(&session_id, r#"{"script": [{"text": "hi"}]}"#)).await;
        read_all(turn.unwrap().into_inner()).await;
        ended(&world, &session_id, hours_ago).await;
        ids.push(session_id);
    }
    let get = |id: &str| GetSessionRequest { session_id: id.to_owned() };
    let erased = async {
        while client.lifecycle.get_session(get(&ids[0])).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, erased).await.expect("the session is kept for ever");
    client.lifecycle.get_session(get(&ids[1])).await.unwrap();

    // A cursor of it is as one of a session that never was.
    let never = SessionId::generate().to_string();
    let mut told = Vec::new();
    for id in [&ids[0], &never] {
        let request = StreamEventsRequest { session_id: id.clone(), after_seq: 4, durable_only: true };
        let refused = client.lifecycle.stream_events(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound);
        told.push((refused.message().replace(id.as_str(), "…"), refused.details().len()));
    }
    assert_eq!(told[0], told[1]);
    let usage = ListUsageEventsRequest { session_id: ids[0].clone(), ..ListUsageEventsRequest::default() };
    let usage = client.usage.list_usage_events(usage).await.unwrap().into_inner().usage_events;
    assert_eq!(usage.len(), 1, "the books must balance");
    let recorded = async {
        loop {
            let records = world.core.stores.audit.list(world.tenant(), 0, 100).await.unwrap();
            if let Some(record) = records.into_iter().find(|record| record.action == "session.erase") {
                return record;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let record = tokio::time::timeout(PATIENCE, recorded).await.expect("nobody wrote it down");
    assert_eq!((record.actor, record.resource), ("front".to_owned(), format!("sessions/{}", ids[0])));
    // It is counted behind that.
    let counted = async {
        while world.core.metrics.sessions_erased.get() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, counted).await.expect("nobody counted it");
    assert_eq!(world.core.metrics.sessions_erased.get(), 1);
}
