//! Heads of requests: how large one may be, and how much of all of them is held at a time.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use croft_front::{events::fanout, gateway};
use croft_serve::connections::Bounds;
use futures::stream;
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use tokio::time::timeout;

use crate::http::get;
use crate::http2::connection;
use crate::scene::{PATIENCE, Replica, Scene};

/// More than one connection has room for in these tests.
const CALLS: u32 = 40;

async fn replica(scene: &Scene, heads_bytes_max: usize) -> Replica {
    let port = Bounds { heads_bytes_max, ..Bounds::default() };
    scene.replica_within(fanout::Options::default(), gateway::Options::default(), port).await
}

async fn answered(requests: &mut SendRequest<Body>, request: Request<Body>) -> Response<Incoming> {
    timeout(PATIENCE, requests.send_request(request)).await.expect("no answer").unwrap()
}

fn probe(header: &str) -> Request<Body> {
    Request::get("http://heron/healthz").header("x-more", header).body(Body::empty()).unwrap()
}

/// A call that anybody may make, and whose one message never comes.
fn endless() -> Request<Body> {
    let body = Body::from_stream(stream::pending::<Result<Vec<u8>, std::io::Error>>());
    let request =
        Request::post("http://heron/grpc.health.v1.Health/Check").header("content-type", "application/grpc-web+proto");
    request.header("x-more", "a".repeat(3_000)).body(body).unwrap()
}

#[tokio::test]
async fn a_large_token_is_read_and_a_head_that_is_too_large_refused_by_each_protocol() {
    let scene = Scene::new().await;
    let (replica, session) = (scene.replica().await, scene.session().await);
    let path = format!("/v1/sessions/{session}/events");
    let token = format!("Bearer {}", "a".repeat(8 * 1024));
    let (large, fits) = ("a".repeat(17_000), "a".repeat(15_000));

    assert_eq!(get(replica.address, &path, &[format!("authorization: {token}")]).await.status, 401);
    assert_eq!(get(replica.address, "/healthz", &[format!("x-more: {fits}")]).await.status, 200);
    assert_eq!(get(replica.address, "/healthz", &[format!("x-more: {large}")]).await.status, 431);

    let mut requests = connection(&replica, None).await;
    let asked = Request::get(format!("http://heron{path}")).header("authorization", token).body(Body::empty()).unwrap();
    assert_eq!(answered(&mut requests, asked).await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(answered(&mut requests, probe(&fits)).await.status(), StatusCode::OK);
    let refused = answered(&mut requests, probe(&large)).await;
    assert_eq!(refused.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    assert_eq!(answered(&mut requests, probe("")).await.status(), StatusCode::OK, "the connection goes on");
}

/// Has so many calls under way by a connection, of which some are refused: how many are held.
async fn filled(replica: &Replica, requests: &mut SendRequest<Body>) -> (f64, Vec<impl Future + use<>>) {
    let before = replica.told("croft_calls_refused_total");
    let calls: Vec<_> = (0..CALLS).map(|_| requests.send_request(endless())).collect();
    // There is no room for it, as its head is larger than theirs, and it is the last that is judged.
    assert_eq!(answered(requests, probe(&"a".repeat(3_500))).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    let refused = replica.told("croft_calls_refused_total") - before - 1.0;
    (f64::from(CALLS) - refused, calls)
}

/// A client without a key held as many heads as it could have calls under way, on as many connections as there may be.
#[tokio::test]
async fn so_much_is_held_of_heads_of_calls_without_an_answer_and_each_connection_has_a_little() {
    let scene = Scene::new().await;
    let replica = replica(&scene, 256 * 1024).await;
    let mut connections = Vec::new();
    for _ in 0..6 {
        let mut requests = connection(&replica, None).await;
        let (held, calls) = filled(&replica, &mut requests).await;
        connections.push((held, requests, calls));
    }
    let held: Vec<_> = connections.iter().map(|(held, ..)| *held).collect();
    // Each head takes a little less than 4 KiB; the first have a quarter of all room each, and the last what each has whatever others hold.
    assert!(held[..4].iter().all(|held| (12.0..=16.0).contains(held)), "{held:?}");
    assert!((1.0..=1.0).contains(&held[5]), "{held:?}");
    assert!(held.iter().sum::<f64>() < 76.0, "{held:?}");
    let mut other = connection(&replica, None).await;
    assert_eq!(answered(&mut other, probe("")).await.status(), StatusCode::OK, "another connection has a little");

    let (_, mut first, calls) = connections.swap_remove(0);
    drop(calls);
    let freed = async {
        while answered(&mut first, probe("")).await.status() != StatusCode::OK {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, freed).await.expect("what broke off is held");
}

#[tokio::test]
async fn of_a_stream_that_has_begun_no_head_is_held() {
    let scene = Scene::new().await;
    let (replica, session) = (replica(&scene, 64 * 1024).await, scene.session().await);
    let mut requests = connection(&replica, None).await;
    let mut streams = Vec::new();
    for _ in 0..CALLS {
        let request =
            Request::get(format!("http://heron/v1/sessions/{session}/events")).header("x-more", "a".repeat(3_000));
        let request = request.header("authorization", format!("Bearer {}", scene.key)).body(Body::empty()).unwrap();
        let stream = answered(&mut requests, request).await;
        assert_eq!(stream.status(), StatusCode::OK);
        streams.push(stream);
    }
}
