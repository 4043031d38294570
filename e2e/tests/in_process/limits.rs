//! A tenant's rates hold at the clients' port, over the whole path.

use std::time::Duration;

use croft_e2e::client::{message, scripted_agent};
use croft_front::core::Options;
use croft_front::limits::SPAN;
use croft_front::limits::rates::{ProviderRates, Rates};
use croft_proto::v1::{AuditRecord, ListModelsRequest, StreamEventsRequest, TenantLimits};
use tokio::time::timeout;
use tonic::Code;
use tonic_types::StatusExt;

use crate::world::{Ground, PATIENCE, World, read_all};

#[tokio::test]
async fn calls_beyond_the_tenants_rate_are_refused_with_when_to_come_back() {
    let limits = TenantLimits { requests_per_minute: 4, ..TenantLimits::default() };
    let world = World::with_limits(limits).await;
    let mut client = world.client();
    let session = client.create(scripted_agent("calls")).await.unwrap();
    let sent = client.lifecycle.send_message(message(&session.session_id, "hello")).await.unwrap();
    read_all(sent.into_inner()).await;
    for _ in 0..2 {
        client.models.list_models(ListModelsRequest::default()).await.unwrap();
    }
    let refused = client.lifecycle.send_message(message(&session.session_id, "again")).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    let details = refused.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "RATE_LIMITED");
    let delay = details.retry_info().unwrap().retry_delay.unwrap();
    assert!(!delay.is_zero() && delay <= SPAN, "{delay:?}");
    assert_eq!(details.quota_failure().unwrap().violations[0].subject, "requests");
    // The refused message was not stored, another tenant goes on, and a second replica counts along.
    assert_eq!(world.stored(&session.session_id).await.usage.attempts, 1);
    world.stranger().models.list_models(ListModelsRequest::default()).await.unwrap();
    let mut elsewhere = world.client_of_another_front().await;
    let refused = elsewhere.models.list_models(ListModelsRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
}

/// The stream that is one too many would show a turn: its message is not taken, and that somebody tried is recorded.
#[tokio::test]
async fn a_message_whose_stream_is_one_too_many_is_refused_and_recorded() {
    let options = Options { streams_per_tenant_max: 1, ..Options::default() };
    let world = World::on(Ground { options, ..Ground::default() }).await;
    let mut client = world.client();
    let session_id = client.create(scripted_agent("watched")).await.unwrap().session_id;
    let watch = StreamEventsRequest { session_id: session_id.clone(), ..StreamEventsRequest::default() };
    let mut watching = client.lifecycle.stream_events(watch).await.unwrap().into_inner();
    watching.message().await.unwrap().unwrap();
    let before = world.stored(&session_id).await.last_seq;
    let refused = client.lifecycle.send_message(message(&session_id, "hello")).await.unwrap_err();
    assert_eq!(refused.get_error_details().error_info().unwrap().reason, "STREAM_LIMIT");
    recorded(&world, "session.send_message", &session_id, "STREAM_LIMIT").await;
    drop(watching);
    let refused = async {
        loop {
            let refused = client.lifecycle.send_message(message("no session", "hello")).await.unwrap_err();
            if refused.code() == Code::NotFound {
                return;
            }
        }
    };
    timeout(PATIENCE, refused).await.expect("there is room again");
    recorded(&world, "session.send_message", "no session", "SESSION_NOT_FOUND").await;
    assert_eq!(world.stored(&session_id).await.last_seq, before);
}

/// Waits for a record of this action on the session that ended so.
async fn recorded(world: &World, action: &str, session_id: &str, outcome: &str) {
    let look = async {
        loop {
            let records = world.core.stores.audit.list(world.tenant(), 0, 1_000).await.unwrap();
            let resource = format!("sessions/{session_id}");
            let is_it = |record: &AuditRecord| record.action == action && record.resource == resource;
            if records.iter().any(|record| is_it(record) && record.outcome == outcome) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, look).await.expect("nobody recorded it");
}

/// Whoever opens streams without end costs as much as who calls.
#[tokio::test]
async fn streams_of_a_browser_that_are_opened_beyond_the_rate_are_refused() {
    let limits = TenantLimits { requests_per_minute: 3, ..TenantLimits::default() };
    let world = World::with_limits(limits).await;
    let session = world.client().create(scripted_agent("watched")).await.unwrap();
    let http = reqwest::Client::new();
    let open = async |path: &str| {
        let call = http.get(format!("http://{}{path}", world.http)).bearer_auth(&world.api_key);
        call.send().await.unwrap()
    };
    let events = format!("/v1/sessions/{}/events", session.session_id);
    assert_eq!(open(&events).await.status(), 200);
    // A WebSocket that its opener thinks better of.
    assert_eq!(open("/v1/ws").await.status(), 426);
    for path in [&*events, "/v1/ws"] {
        let refused = open(path).await;
        assert_eq!(refused.status(), 429);
        assert!(refused.headers().contains_key("retry-after"), "{refused:?}");
        assert!(refused.text().await.unwrap().contains("RATE_LIMITED"));
    }
}

#[tokio::test]
async fn sessions_beyond_a_rate_are_refused_before_a_worker_hears_of_them() {
    let options = Options {
        rates: Rates { sessions: 2, ..Rates::default() },
        provider_rates: ProviderRates::parse("scripted: { standard: { sessionsPerMinute: 1 } }").unwrap(),
        ..Options::default()
    };
    let world = World::on(Ground { options, ..Ground::default() }).await;
    let mut client = world.client();
    client.create(scripted_agent("first")).await.unwrap();
    let refused = client.create(scripted_agent("second")).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "the tier's rate at its provider: {refused:?}");
    assert_eq!(refused.get_error_details().quota_failure().unwrap().violations[0].subject, "sessions");
}
