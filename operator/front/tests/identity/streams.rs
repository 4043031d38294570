//! Streams live no longer than the credential that opened them, and what goes up a socket asks for a role as a call does.

use croft_front::core::Options;
use croft_front::events::log::NewEvent;
use croft_front::session::store::NewSession;
use croft_proto::Timestamp;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::lifecycle_service_client::LifecycleServiceClient;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{AgentSpec, SessionCreated, StreamEventsRequest};
use futures::{SinkExt, StreamExt};
use jsonwebtoken::get_current_timestamp;
use serde_json::{Value, json};
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tonic::Code;
use tonic_types::StatusExt;

use crate::scene::{PATIENCE, Scene, timing, with_token};

/// Seconds that a token lives which a test waits for the end of; a stream is opened well before.
const LIFE: u64 = 8;

pub(crate) async fn session(scene: &Scene) -> SessionId {
    session_of(scene, scene.heron).await
}

async fn session_of(scene: &Scene, tenant: TenantId) -> SessionId {
    let then = Timestamp { seconds: 1_700_000_000, nanos: 0 };
    let created = NewEvent::at(Kind::SessionCreated(SessionCreated::default()), then);
    let id = SessionId::generate();
    let new = NewSession::of(id, tenant, "heron", AgentSpec::default(), vec![created]);
    scene.core.stores.sessions.insert(new).await.unwrap();
    id
}

#[tokio::test]
async fn a_stream_ends_when_its_token_expires_and_not_before() {
    let scene = Scene::new().await;
    scene.taken(&scene.people.sign(&scene.claims())).await;
    let session = session(&scene).await;
    let url = format!("http://{}/v1/sessions/{session}/events", scene.http);
    let exp = get_current_timestamp() + LIFE;
    let short = scene.changed("exp", json!(exp));
    let mut stream = reqwest::Client::new().get(&url).bearer_auth(&short).send().await.unwrap();
    assert_eq!(stream.status(), 200);
    let first = stream.chunk().await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&first).contains("sessionCreated"), "{first:?}");
    let mut last = String::new();
    let ended = async {
        while let Some(chunk) = stream.chunk().await.unwrap() {
            last = String::from_utf8_lossy(&chunk).into_owned();
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("the stream outlives its token");
    assert!(last.contains("event: error") && last.contains("CREDENTIAL_ENDED"), "{last}");
    assert!(last.contains("resume after 1"), "{last}");
    assert!(get_current_timestamp() >= exp, "it ended early");
    let again = reqwest::Client::new().get(&url).bearer_auth(&short).send().await.unwrap();
    assert_eq!(again.status(), 401);
    let said: Value = again.json().await.unwrap();
    assert_eq!(said["error"]["message"], "no valid credential: the token has expired");
}

#[tokio::test]
async fn a_stream_by_grpc_ends_with_its_token_and_says_where_to_go_on() {
    let scene = Scene::new().await;
    scene.taken(&scene.people.sign(&scene.claims())).await;
    let session = session(&scene).await;
    let exp = get_current_timestamp() + LIFE;
    let short = scene.changed("exp", json!(exp));
    let mut calls = LifecycleServiceClient::new(scene.channel());
    let watch = || StreamEventsRequest { session_id: session.to_string(), ..StreamEventsRequest::default() };
    let mut events = calls.stream_events(with_token(watch(), &short)).await.unwrap().into_inner();
    assert_eq!(events.message().await.unwrap().unwrap().event.unwrap().seq, 1);
    let ended = tokio::time::timeout(PATIENCE, events.message()).await.expect("it outlives its token").unwrap_err();
    assert!(get_current_timestamp() >= exp, "it ended early");
    assert_eq!(ended.code(), Code::Unauthenticated, "{ended:?}");
    let details = ended.get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!((info.reason.as_str(), info.metadata["resume_after"].as_str()), ("CREDENTIAL_ENDED", "1"));
    let again = calls.stream_events(with_token(watch(), &short)).await.unwrap_err();
    assert_eq!(again.message(), "no valid credential: the token has expired");
}

#[tokio::test]
async fn a_viewer_sees_over_a_websocket_and_sends_nothing() {
    let scene = Scene::new().await;
    let viewer = scene.changed("roles", json!(["viewer"]));
    scene.taken(&viewer).await;
    let session = session(&scene).await.to_string();
    let mut request = format!("ws://{}/v1/ws", scene.http).into_client_request().unwrap();
    request.headers_mut().insert("authorization", format!("Bearer {viewer}").parse().unwrap());
    let (mut socket, _) = connect_async(request).await.unwrap();
    for frame in [
        json!({ "send": { "sessionId": session, "content": [{ "text": { "text": "hello" } }] } }),
        json!({ "interrupt": { "sessionId": session } }),
        json!({ "approve": { "sessionId": session, "approvalId": "a", "approved": true } }),
    ] {
        socket.send(Message::text(frame.to_string())).await.unwrap();
        let answer = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
        let answer: Value = serde_json::from_str(answer.to_text().unwrap()).unwrap();
        assert_eq!(answer["error"]["reason"], "FORBIDDEN", "{frame}: {answer}");
    }
    let subscribe = json!({ "subscribe": { "sessionId": session, "since": "0" } });
    socket.send(Message::text(subscribe.to_string())).await.unwrap();
    let answer = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
    assert!(answer.to_text().unwrap().contains("subscribed"), "{answer}");
}

/// Each tenant's own bound is far from reached: forty of them could once open two hundred thousand streams at one front.
#[tokio::test]
async fn all_tenants_together_have_no_more_streams_than_a_replica_has() {
    let scene = Scene::within(Options { streams_max: 3, ..Options::default() }, timing(), |_| {}).await;
    let mut open = Vec::new();
    let mut refused = None;
    for namespace in ["tenant-heron", "tenant-plover"] {
        let token = scene.cluster.sign(&scene.service_account(namespace));
        let session = session_of(&scene, scene.taken(&token).await.tenant).await;
        let mut calls = LifecycleServiceClient::new(scene.channel());
        for _ in 0..2 {
            let watch = StreamEventsRequest { session_id: session.to_string(), ..StreamEventsRequest::default() };
            match calls.stream_events(with_token(watch, &token)).await {
                Ok(stream) => open.push(stream),
                Err(status) => assert!(refused.replace(status).is_none(), "only the fourth has no place"),
            }
        }
    }
    assert_eq!(open.len(), 3);
    let refused = refused.expect("there are three places");
    assert_eq!((refused.code(), refused.message()), (Code::Unavailable, "a free stream is not available"));
    assert!(refused.get_error_details().retry_info().is_some_and(|info| info.retry_delay.is_some()));
}
