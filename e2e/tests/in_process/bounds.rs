//! What bounds a session: its times, and what nobody keeps yet and is refused; and whose account its models used.

use std::time::Duration;

use croft_e2e::client::{message, scripted_agent};
use croft_e2e::steady::steady;
use croft_proto::conversation::BYTES_MAX;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    AgentLimits, AgentSpec, CreateSessionRequest, ListUsageEventsRequest, ProviderMode, ProviderRoute, SessionState,
    StopReason, StreamEventsRequest, TenantLimits,
};
use prost::Message as _;
use tonic::Code;
use tonic_types::StatusExt;

use crate::world::{PATIENCE, World, read_all, stop_reason};

fn asked(idle_timeout_ms: i64, lifetime_ms: i64) -> CreateSessionRequest {
    let agent = Some(scripted_agent("timed"));
    CreateSessionRequest { agent, idle_timeout_ms, lifetime_ms, ..CreateSessionRequest::default() }
}

#[tokio::test]
async fn a_session_that_hears_nothing_is_ended_and_its_watchers_are_told() {
    steady(Duration::from_millis(50), async || {
        let world = World::start().await;
        let mut client = world.client();
        let created = client.lifecycle.create_session(asked(300, 0)).await.unwrap().into_inner().session.unwrap();
        assert_eq!((created.idle_timeout_ms, created.expire_time, created.terminate_time), (300, None, None));
        let watch = StreamEventsRequest {
            session_id: created.session_id.clone(),
            after_seq: 2,
            ..StreamEventsRequest::default()
        };
        let mut events = client.lifecycle.stream_events(watch).await.unwrap().into_inner();
        let last = events.message().await.unwrap().unwrap().event.unwrap();
        assert!(
            matches!(&last.kind, Some(Kind::SessionTerminated(ended)) if ended.reason == "IDLE_TIMEOUT"),
            "{last:?}"
        );
        assert!(events.message().await.unwrap().is_none(), "nothing follows");
        let ended = world.stored(&created.session_id).await;
        let (ended_at, said_at) = (ended.terminate_time.unwrap(), last.create_time.unwrap());
        assert_eq!(ended.state, SessionState::Terminated);
        assert_eq!(
            (ended_at.seconds, ended_at.nanos),
            (said_at.seconds, said_at.nanos / 1_000 * 1_000),
            "to the microsecond"
        );
        assert_eq!(ended.last_seq, 3, "it ends once");
        let late = client.lifecycle.send_message(message(&created.session_id, "hello?")).await.unwrap_err();
        assert_eq!(late.code(), Code::FailedPrecondition);
    })
    .await;
}

#[tokio::test]
async fn a_session_that_is_too_old_is_ended_in_mid_turn() {
    steady(Duration::from_millis(50), async || {
        let world = World::start().await;
        let mut client = world.client();
        // It is never idle for so long: its turn runs.
        let created = client.lifecycle.create_session(asked(200, 900)).await.unwrap().into_inner().session.unwrap();
        let lifetime = created.expire_time.unwrap();
        assert!(lifetime.seconds >= created.create_time.unwrap().seconds);
        let slow = r#"{"script": [{"text": "a b c d e f g h", "token_delay_ms": 60000}]}"#;
        let sent = client.lifecycle.send_message(message(&created.session_id, slow)).await.unwrap();
        let events = read_all(sent.into_inner()).await;
        let last = events.last().unwrap();
        assert!(matches!(&last.kind, Some(Kind::SessionTerminated(ended)) if ended.reason == "LIFETIME"), "{last:?}");
        let running = world.core.metrics.turns_running.clone();
        let stopped = async {
            while running.get() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, stopped).await.expect("its turn stops");
    })
    .await;
}

#[tokio::test]
async fn a_tenants_times_are_taken_and_kept() {
    let limits =
        TenantLimits { session_idle_timeout_ms: 60_000, session_lifetime_ms: 120_000, ..TenantLimits::default() };
    let world = World::with_limits(limits).await;
    let mut client = world.client();
    for (request, idle, lifetime) in
        [(asked(0, 0), 60_000, 120), (asked(5_000, 30_000), 5_000, 30), (asked(999_999, 999_999), 60_000, 120)]
    {
        let session = client.lifecycle.create_session(request).await.unwrap().into_inner().session.unwrap();
        assert_eq!(session.idle_timeout_ms, idle);
        let lasts = session.expire_time.unwrap().seconds - session.create_time.unwrap().seconds;
        assert!((lifetime - 1..=lifetime).contains(&lasts), "{lasts}");
    }
    let refused = client.lifecycle.create_session(asked(-1, 0)).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message().starts_with("idle_timeout_ms is not")),
        (Code::InvalidArgument, true)
    );
}

#[tokio::test]
async fn what_nobody_keeps_is_refused_by_name() {
    let world = World::start().await;
    let mut client = world.client();
    let limits = |budget_nano_usd, budget_tokens| {
        let limits = AgentLimits { budget_nano_usd, budget_tokens, ..AgentLimits::default() };
        AgentSpec { limits: Some(limits), ..scripted_agent("thrifty") }
    };
    for (agent, field) in
        [(limits(-1, 0), "agent.limits.budget_nano_usd"), (limits(0, -1), "agent.limits.budget_tokens")]
    {
        let refused = client.create(agent).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        assert_eq!(refused.get_error_details().bad_request().unwrap().field_violations[0].field, field);
    }
}

#[tokio::test]
async fn usage_says_whose_account_answered() {
    use ProviderMode::{InCluster, Platform, TenantEndpoint, TenantKey, Unspecified};
    let world = World::start().await;
    let mut client = world.client();
    let session = client.create(scripted_agent("billed")).await.unwrap();
    let mut expected = Vec::new();
    for mode in [Unspecified, InCluster, TenantKey, TenantEndpoint, Platform] {
        let provider = ProviderRoute { name: "scripted".into(), mode: mode.into() };
        world.reroute(|route| route.providers = vec![provider]);
        let sent = client.lifecycle.send_message(message(&session.session_id, "hello")).await.unwrap();
        read_all(sent.into_inner()).await;
        expected.insert(0, if mode == Unspecified { Platform } else { mode });
    }
    let usage = ListUsageEventsRequest { session_id: session.session_id, ..ListUsageEventsRequest::default() };
    let usage = client.usage.list_usage_events(usage).await.unwrap().into_inner().usage_events;
    assert_eq!(usage.iter().map(croft_proto::v1::UsageEvent::mode).collect::<Vec<_>>(), expected);
}

/// Workers could not even be sent it, which was taken for their loss.
#[tokio::test]
async fn a_conversation_that_no_worker_takes_is_refused_by_name() {
    let world = World::start().await;
    let mut client = world.client();
    let session = client.create(scripted_agent("hoarder")).await.unwrap();
    let large = "x".repeat(1_000_000);
    let mut turns = 0;
    let last = loop {
        let sent = client.lifecycle.send_message(message(&session.session_id, &large)).await.unwrap();
        let events = read_all(sent.into_inner()).await;
        match stop_reason(&events) {
            Some(StopReason::EndTurn) => turns += 1,
            _ => break events,
        }
    };
    assert_eq!(stop_reason(&last), Some(StopReason::ContextFull));
    assert!((30..=33).contains(&turns), "{turns} messages of a million bytes went into 32 MiB");
    let error = last.iter().find_map(|event| match &event.kind {
        Some(Kind::Error(error)) => Some(error),
        _ => None,
    });
    assert_eq!(error.unwrap().reason, "CONVERSATION_TOO_LARGE");
    assert_eq!(world.stored(&session.session_id).await.state, SessionState::Idle, "it can be read, and ended");

    // Whoever goes on all the same makes it no larger: each front that takes it up holds all of it.
    for _ in 0..3 {
        let sent = client.lifecycle.send_message(message(&session.session_id, &large)).await.unwrap();
        assert_eq!(stop_reason(&read_all(sent.into_inner()).await), Some(StopReason::ContextFull));
    }
    let id = session.session_id.parse().unwrap();
    let kept = world.core.stores.events.checkpoint(world.tenant(), id).await.unwrap().unwrap().checkpoint;
    assert!(kept.encoded_len() <= BYTES_MAX, "{} bytes", kept.encoded_len());
}
