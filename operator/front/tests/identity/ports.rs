//! Bad credentials at the real ports: each of them refuses, in words that teach nothing, and goes on.

use std::{future, io};

use axum::body::{Body, Bytes};
use croft_front::identity::Role;
use croft_front::intake::MESSAGE_BYTES_CEILING;
use croft_proto::v1::content_block::Block;
use croft_proto::v1::lifecycle_service_client::LifecycleServiceClient;
use croft_proto::v1::{AgentSpec, ContentBlock, CreateSessionRequest, ListSessionsRequest, SendMessageRequest, Text};
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tonic::{Code, Request};
use tower::Service as _;

use crate::issuer::Signer;
use crate::scene::{PATIENCE, Scene, with_token};

/// What the three ways in say to a token: gRPC, SSE, WebSocket.
async fn said(scene: &Scene, token: &str) -> [String; 3] {
    let mut calls = LifecycleServiceClient::new(scene.channel());
    let refused = calls.list_sessions(with_token(ListSessionsRequest::default(), token)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
    let url = format!("http://{}/v1/sessions/heron/events", scene.http);
    let answer = reqwest::Client::new().get(url).bearer_auth(token).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers()["www-authenticate"].to_str().unwrap()), (401, "Bearer"));
    let by_stream = answer.json::<Value>().await.unwrap()["error"]["message"].as_str().unwrap().to_owned();
    let mut request = format!("ws://{}/v1/ws", scene.http).into_client_request().unwrap();
    request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    let by_socket = match connect_async(request).await {
        Err(tungstenite::Error::Http(answer)) => {
            assert_eq!(answer.status(), 401);
            let body: Value = serde_json::from_slice(answer.body().as_ref().unwrap()).unwrap();
            body["error"]["message"].as_str().unwrap().to_owned()
        }
        other => panic!("let in: {other:?}"),
    };
    [refused.message().to_owned(), by_stream, by_socket]
}

#[tokio::test]
async fn a_bad_token_is_refused_alike_at_every_port() {
    let scene = Scene::new().await;
    let good = scene.people.sign(&scene.claims());
    scene.taken(&good).await;
    let now = jsonwebtoken::get_current_timestamp();
    let mut words = Vec::new();
    for bad in [
        scene.changed("aud", json!("kubernetes")),
        scene.changed("iss", json!("https://login.example.com")),
        scene.changed("tenant", json!("curlew")),
        scene.people.sign_as("people-2", &scene.claims()),
        Signer::ec("people-1").sign(&scene.claims()),
        "ck_00000000_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".to_owned(),
        "bad".to_owned(),
    ] {
        words.extend(said(&scene, &bad).await);
    }
    words.dedup();
    assert_eq!(words.len(), 1, "{words:?}");
    let expired = said(&scene, &scene.changed("exp", json!(now - 1))).await;
    assert!(expired.iter().all(|words| words.ends_with("the token has expired")), "{expired:?}");
    // Each unknown key id has caused no fetch of its own.
    assert!(scene.issuer.fetches() <= 3, "{} fetches", scene.issuer.fetches());
    let mut calls = LifecycleServiceClient::new(scene.channel());
    calls.list_sessions(with_token(ListSessionsRequest::default(), &good)).await.unwrap();
}

/// It would be refused for its size, were it read.
#[tokio::test]
async fn nobody_without_a_credential_has_a_message_read() {
    let scene = Scene::new().await;
    let text = "x".repeat(MESSAGE_BYTES_CEILING + 1);
    let huge = || SendMessageRequest {
        content: vec![ContentBlock { block: Some(Block::Text(Text { text: text.clone() })) }],
        ..SendMessageRequest::default()
    };
    let mut calls = LifecycleServiceClient::new(scene.channel());
    let refused = calls.send_message(Request::new(huge())).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
    let key = scene.api_key(Role::User).await;
    let refused = calls.send_message(with_token(huge(), &key)).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
}

/// Once, a hundred such requests of four megabytes each, all but their last byte, were as much memory as a front has.
#[tokio::test]
async fn nobody_without_a_credential_has_the_front_wait_for_the_end_of_what_it_asks() {
    const PATH: &str = "/grpc.health.v1.Health/Check";
    let scene = Scene::new().await;
    // A message of nine bytes, of which two come.
    let begun = Bytes::from_static(&[0, 0, 0, 0, 9, 0x0a, 7]);
    let by_grpc = async {
        let first = stream::iter([Ok::<_, io::Error>(begun.clone())]);
        let body = Body::from_stream(first.chain(stream::pending()));
        let request = axum::http::Request::post(PATH).header("content-type", "application/grpc");
        let mut channel = scene.channel();
        future::poll_fn(|context| channel.poll_ready(context)).await.unwrap();
        let answer = channel.call(request.body(tonic::body::Body::new(body)).unwrap()).await.unwrap();
        assert_eq!(answer.headers()["grpc-status"], "4");
    };
    let by_web = async {
        let mut stream = TcpStream::connect(scene.http).await.unwrap();
        let head = format!(
            "POST {PATH} HTTP/1.1\r\nhost: heron\r\ncontent-type: application/grpc-web+proto\r\ncontent-length: 14\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&begun).await.unwrap();
        let mut answer = Vec::new();
        while !String::from_utf8_lossy(&answer).contains("grpc-status") {
            assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "{answer:?}");
        }
        assert!(String::from_utf8_lossy(&answer).replace(' ', "").contains("grpc-status:4"), "{answer:?}");
    };
    tokio::time::timeout(PATIENCE, async { tokio::join!(by_grpc, by_web) }).await.expect("it is waited for");
}

/// Two bytes on the wire are some hundreds as a value: a small request took more memory than a front has.
#[tokio::test]
async fn a_request_of_many_parts_is_refused_before_anybody_looks_at_it() {
    let scene = Scene::new().await;
    let agent = AgentSpec { sub_agents: vec![AgentSpec::default(); 100_000], ..AgentSpec::default() };
    let request = CreateSessionRequest { agent: Some(agent), ..CreateSessionRequest::default() };
    let key = scene.api_key(Role::Viewer).await;
    let mut calls = LifecycleServiceClient::new(scene.channel());
    let refused = calls.create_session(with_token(request, &key)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "a viewer is refused for another reason: {refused:?}");
}
