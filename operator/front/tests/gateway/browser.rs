//! Pages of other origins, and gRPC-Web.

use croft_front::events::fanout;
use croft_front::gateway;

use crate::http::{ask, bearer, get};
use crate::scene::Scene;

const PAGE: &str = "https://app.example.com";

fn allowing(origin: &str) -> gateway::Options {
    gateway::Options { allowed_origins: vec![origin.parse().unwrap()], ..gateway::Options::default() }
}

fn preflight(origin: &str) -> Vec<String> {
    vec![
        format!("origin: {origin}"),
        "access-control-request-method: POST".to_owned(),
        "access-control-request-headers: authorization,content-type,x-grpc-web,traceparent,tracestate".to_owned(),
    ]
}

#[tokio::test]
async fn only_pages_of_allowed_origins_may_call() {
    let scene = Scene::new().await;
    let replica = scene.replica_with(fanout::Options::default(), allowing(PAGE)).await;
    let path = "/croft.v1.LifecycleService/CreateSession";
    let answer = ask(replica.address, "OPTIONS", path, &preflight(PAGE), &[]).await;
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains(&format!("access-control-allow-origin: {PAGE}")), "{}", answer.head);
    for header in ["x-grpc-web", "traceparent", "tracestate"] {
        assert!(answer.head.contains(header), "{header}: {}", answer.head);
    }
    let answer = ask(replica.address, "OPTIONS", path, &preflight("https://evil.example"), &[]).await;
    assert!(!answer.head.contains("access-control-allow-origin"), "{}", answer.head);

    let headers: Vec<_> = bearer(&scene.key).into_iter().chain([format!("origin: {PAGE}")]).collect();
    let session = scene.session().await;
    let answer = get(replica.address, &format!("/v1/sessions/{session}/events"), &headers).await;
    assert!(answer.head.contains(&format!("access-control-allow-origin: {PAGE}")), "{}", answer.head);
}

#[tokio::test]
async fn without_allowed_origins_no_page_may_call() {
    let scene = Scene::new().await;
    let replica = scene.replica().await;
    let answer = ask(replica.address, "OPTIONS", "/v1/ws", &preflight(PAGE), &[]).await;
    assert!(!answer.head.contains("access-control-allow-origin"), "{}", answer.head);
}

#[tokio::test]
async fn a_call_of_grpc_web_is_answered_on_the_http_port() {
    let scene = Scene::new().await;
    let replica = scene.replica().await;
    let headers =
        |kind: &str| vec![format!("content-type: {kind}"), "x-grpc-web: 1".to_owned(), "content-length: 5".to_owned()];
    // A message of no bytes: HealthCheckRequest with the empty service.
    let empty = [0; 5];
    let path = "/grpc.health.v1.Health/Check";
    let mut answer = ask(replica.address, "POST", path, &headers("application/grpc-web+proto"), &empty).await;
    assert_eq!(answer.status, 200);
    let mut body = Vec::new();
    while let Some(bytes) = answer.bytes().await {
        body.extend(bytes);
    }
    // One message that says SERVING, then the trailers as a message of their own kind.
    let (message, trailers) = body.split_at(7);
    assert_eq!(message, [0, 0, 0, 0, 2, 8, 1]);
    assert_eq!(trailers[0], 0x80);
    assert!(String::from_utf8_lossy(trailers).contains("grpc-status:0"), "{trailers:?}");

    let answer = ask(replica.address, "POST", path, &headers("application/json"), &empty).await;
    assert_eq!(answer.status, 404);
}
