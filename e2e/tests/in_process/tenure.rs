//! A stream lasts for as long as the credential that it was opened with, and the turn for longer.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use croft_e2e::client::{message, scripted_agent};
use croft_front::Error;
use croft_front::core::Options;
use croft_front::events::log::NewEvent;
use croft_front::store::Stores;
use croft_front::usage::{Selection, UsageStore};
use croft_proto::Timestamp;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::watch_routes_response::Change;
use croft_proto::v1::{
    ExportUsageRequest, RouteDelta, SessionState, StreamEventsRequest, UsageDimension, UsageEvent, UsageSummary,
    WatchRoutesResponse,
};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::world::{Ground, PATIENCE, World};

fn assert_ended(status: &Status, resume_after: u64) {
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    let details = status.get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!(info.reason, "CREDENTIAL_ENDED");
    assert_eq!(info.metadata["resume_after"], resume_after.to_string());
}

#[tokio::test]
async fn streams_end_with_their_credential_and_the_turn_goes_on() {
    let options = Options { credential_recheck: Duration::from_millis(50), ..Options::default() };
    let world = World::on(Ground { options, ..Ground::default() }).await;
    let mut client = world.client();
    let session_id = client.create(scripted_agent("orphan")).await.unwrap().session_id;
    let request = StreamEventsRequest { session_id: session_id.clone(), after_seq: 0, durable_only: true };
    let mut watched = client.lifecycle.stream_events(request).await.unwrap().into_inner();
    let script = r#"{"script": [{"text": "a b c d e f g h i j", "token_delay_ms": 100}]}"#;
    let mut turn = client.lifecycle.send_message(message(&session_id, script)).await.unwrap().into_inner();
    let mut last_seq = 0;
    loop {
        let event = turn.message().await.unwrap().unwrap().event.unwrap();
        last_seq = last_seq.max(event.seq);
        if matches!(event.kind, Some(Kind::TextDelta(_))) {
            break;
        }
    }
    let stored = world.stored(&session_id).await;

    let gone = Change::Delta(RouteDelta { upserts: Vec::new(), removed_tenant_ids: vec![stored.tenant.to_string()] });
    world.core.tenants.apply(WatchRoutesResponse { version: 3, change: Some(gone) });
    let ended = loop {
        match turn.message().await {
            Ok(event) => last_seq = last_seq.max(event.unwrap().event.unwrap().seq),
            Err(status) => break status,
        }
    };
    assert_ended(&ended, last_seq);
    let mut watched_seq = 0;
    let ended = loop {
        match watched.message().await {
            Ok(event) => watched_seq = event.unwrap().event.unwrap().seq,
            Err(status) => break status,
        }
    };
    assert_ended(&ended, watched_seq);
    assert!(watched_seq > 0);

    let get = || world.core.stores.sessions.get(stored.tenant, stored.id);
    let rested = async {
        while get().await.unwrap().unwrap().state != SessionState::Idle {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, rested).await.expect("the turn went with its caller");
    assert!(get().await.unwrap().unwrap().last_seq > last_seq, "nothing happened after the stream had ended");
}

/// A ledger that has no end.
struct Endless(Arc<dyn UsageStore>);

#[async_trait]
impl UsageStore for Endless {
    async fn list(
        &self,
        _: TenantId,
        _: Option<SessionId>,
        _: Option<Timestamp>,
        _: Option<&str>,
        limit: u32,
    ) -> Result<Vec<UsageEvent>, Error> {
        tokio::time::sleep(Duration::from_millis(5)).await;
        Ok(vec![UsageEvent::default(); limit as usize])
    }

    async fn summarize(
        &self,
        tenant: TenantId,
        selection: Selection<'_>,
        group_by: &[UsageDimension],
    ) -> Result<Vec<UsageSummary>, Error> {
        self.0.summarize(tenant, selection, group_by).await
    }

    async fn add_behind_end(&self, tenant: TenantId, session: SessionId, events: &[NewEvent]) -> Result<u64, Error> {
        self.0.add_behind_end(tenant, session, events).await
    }
}

#[tokio::test]
async fn an_export_ends_with_its_credential_and_has_a_seat_until_then() {
    let mut stores = Stores::memory();
    stores.usage = Arc::new(Endless(stores.usage));
    let options = Options { credential_recheck: Duration::from_millis(50), ..Options::default() };
    let world = World::on(Ground { stores, options, ..Ground::default() }).await;
    let tenant = world.tenant();
    let mut export = world.client().usage.export_usage(ExportUsageRequest::default()).await.unwrap().into_inner();
    export.message().await.unwrap().expect("a piece");
    assert_eq!(world.core.seats.of(tenant), 1);
    let gone = Change::Delta(RouteDelta { upserts: Vec::new(), removed_tenant_ids: vec![tenant.to_string()] });
    world.core.tenants.apply(WatchRoutesResponse { version: 3, change: Some(gone) });
    let ended = async {
        loop {
            match export.message().await {
                Ok(piece) => assert!(piece.is_some(), "the ledger has no end"),
                Err(status) => break status,
            }
        }
    };
    let ended = tokio::time::timeout(PATIENCE, ended).await.expect("it ends");
    assert_eq!(ended.code(), Code::Unauthenticated, "{ended:?}");
    drop(export);
    let freed = async {
        while world.core.seats.of(tenant) > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, freed).await.expect("its seat is free");
}
