//! Callers who ask and take nothing of the answer, though they are there, and say so.

use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::{Request, StatusCode};
use croft_front::{events::fanout, gateway, unread};
use croft_proto::id::SessionId;
use croft_serve::connections::Bounds;
use futures::StreamExt;
use hyper::client::conn::http2::SendRequest;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::http::{bearer, get};
use crate::http2::connection;
use crate::scene::{PATIENCE, Replica, Scene, user_message};

const MIB: u32 = 1024 * 1024;

async fn until(condition: impl Fn() -> bool, what: &str) {
    let met = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, met).await.unwrap_or_else(|_| panic!("{what}"));
}

async fn events(requests: &mut SendRequest<Body>, key: &str, session: SessionId) -> BodyDataStream {
    let request = Request::builder()
        .uri(format!("http://heron/v1/sessions/{session}/events?after_seq=1"))
        .header("authorization", format!("Bearer {key}"))
        .body(Body::empty())
        .unwrap();
    let answer = timeout(PATIENCE, requests.send_request(request)).await.expect("no answer").unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    Body::new(answer.into_body()).into_data_stream()
}

/// The replica, and a session whose second event is of a MiB.
async fn large(scene: &Scene) -> (Replica, SessionId) {
    let (replica, session) = (scene.replica().await, scene.session().await);
    scene.publish(&replica, session, user_message(&"x".repeat(MIB as usize))).await;
    (replica, session)
}

/// Each of them held an event of its own, which nothing counted, for as long as it answered pings.
#[tokio::test]
async fn what_callers_do_not_take_is_bounded_and_who_takes_it_gets_it() {
    let mut scene = Scene::new().await;
    let pressed_max = Duration::from_millis(500);
    scene.unread = unread::Options { tenant_bytes_max: 4 * MIB as usize, pressed_max, ..scene.unread };
    let (replica, session) = large(&scene).await;
    // The first words of a stream are few, and behind them is the event.
    let mut requests = connection(&replica, Some(64)).await;
    let mut stuck = Vec::new();
    for _ in 0..20 {
        stuck.push(events(&mut requests, &scene.key, session).await);
    }
    let held = || replica.told("croft_unread_bytes");
    until(|| held() > f64::from(4 * MIB), "nothing is held").await;
    let reader = async {
        let mut stream = get(replica.address, &format!("/v1/sessions/{session}/events"), &bearer(&scene.key)).await;
        let mut told = String::new();
        while !told.contains("xx\"}}]") {
            told.push_str(&stream.chunk().await.expect("the stream ended"));
        }
    };
    let bounded = async {
        while replica.told("croft_unread_cut_total") < 12.0 {
            // One more than there may be, whose size nobody knew before it was there.
            assert!(held() < f64::from(6 * MIB), "{} bytes are held", held());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, async { tokio::join!(reader, bounded) })
        .await
        .expect("who takes nothing keeps the others waiting");
    drop((stuck, requests));
    until(|| held() < 1.0, "something is held for nobody").await;
    replica.wait_for_connections("sse", 0).await;
}

/// Each had all but a byte of its event, and asked again and again for the next.
#[tokio::test]
async fn who_waits_for_room_and_takes_nothing_is_no_reader() {
    let mut scene = Scene::new().await;
    let pressed_max = Duration::from_millis(500);
    scene.unread = unread::Options { tenant_bytes_max: 2 * MIB as usize, pressed_max, ..scene.unread };
    let port = Bounds { unread_max: Some(Duration::from_secs(1)), ..Bounds::default() };
    let replica = scene.replica_within(fanout::Options::default(), gateway::Options::default(), port).await;
    let session = scene.session().await;
    scene.publish(&replica, session, user_message(&"x".repeat(MIB as usize))).await;
    // Of the first words and the event nearly all, so that all of the event is given away.
    let mut requests = connection(&replica, Some(MIB + 100)).await;
    let mut stuck = Vec::new();
    for _ in 0..4 {
        stuck.push(events(&mut requests, &scene.key, session).await);
    }
    until(|| replica.told("croft_unread_bytes") > f64::from(2 * MIB), "nothing is held").await;
    scene.publish(&replica, session, user_message("and more")).await;
    until(|| replica.told("croft_unread_cut_total") > 0.5, "they count as readers").await;
    let mut reader =
        get(replica.address, &format!("/v1/sessions/{session}/events?after_seq=2"), &bearer(&scene.key)).await;
    let mut told = String::new();
    while !told.contains("and more") {
        told.push_str(&reader.chunk().await.expect("the stream ended"));
    }
    // And none of them holds up a shutdown.
    let Replica { tasks, hub, .. } = replica;
    drop(hub);
    let left = timeout(PATIENCE, tasks.shutdown(PATIENCE)).await.expect("the stuck are waited for");
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_stream_of_which_nothing_is_taken_for_too_long_is_reset_and_its_connection_stays() {
    let mut scene = Scene::new().await;
    scene.unread = unread::Options { unread_max: Duration::from_secs(1), ..scene.unread };
    let (replica, session) = large(&scene).await;
    let mut requests = connection(&replica, Some(0)).await;
    let mut stuck = events(&mut requests, &scene.key, session).await;
    let end = timeout(PATIENCE, stuck.next()).await.expect("it is waited for");
    let error = end.expect("it ended as if it were over").unwrap_err();
    assert!(format!("{error:?}").contains("CANCEL"), "{error:?}");
    until(|| scene.seats.of(scene.tenant) == 0, "its seat is not given back").await;
    // And one that has nothing to take is not.
    let quiet = scene.session().await;
    let mut reads = connection(&replica, None).await;
    let mut stream = events(&mut reads, &scene.key, quiet).await;
    scene.publish(&replica, quiet, user_message("hello")).await;
    timeout(PATIENCE, stream.next()).await.expect("nothing came").unwrap().unwrap();
    let _second = events(&mut requests, &scene.key, session).await;
    until(|| replica.told("croft_unread_cut_total") > 1.5, "the second is waited for").await;
    scene.publish(&replica, quiet, user_message("hello")).await;
    timeout(PATIENCE, stream.next()).await.expect("it was cut off").unwrap().unwrap();
}

#[tokio::test]
async fn one_of_http1_is_hung_up_on() {
    let mut scene = Scene::new().await;
    scene.unread = unread::Options { unread_max: Duration::from_secs(1), ..scene.unread };
    let (replica, session) = large(&scene).await;
    // More than both kernels take.
    for _ in 0..15 {
        scene.publish(&replica, session, user_message(&"x".repeat(MIB as usize))).await;
    }
    let mut stuck = TcpStream::connect(replica.address).await.unwrap();
    let key = &scene.key;
    let head =
        format!("GET /v1/sessions/{session}/events HTTP/1.1\r\nhost: heron\r\nauthorization: Bearer {key}\r\n\r\n");
    stuck.write_all(head.as_bytes()).await.unwrap();
    replica.wait_for_connections("sse", 1).await;
    replica.wait_for_connections("sse", 0).await;
    assert!(replica.told("croft_unread_cut_total") > 0.5);
}

/// The last piece of an answer is the connection's: no call is left to be broken off.
#[tokio::test]
async fn who_lets_answers_lie_on_their_way_is_hung_up_on_where_they_take_the_room() {
    let mut scene = Scene::new().await;
    scene.unread = unread::Options { tenant_bytes_max: 1_000, unread_max: Duration::from_secs(1), ..scene.unread };
    let replica = scene.replica().await;
    let mut requests = connection(&replica, Some(1)).await;
    let mut lying = Vec::new();
    for _ in 0..2 {
        let request = Request::builder().uri("http://heron/healthz").body(Body::empty()).unwrap();
        lying.push(timeout(PATIENCE, requests.send_request(request)).await.expect("no answer").unwrap());
    }
    until(|| requests.is_closed(), "the connection is still open").await;
    until(|| replica.told("croft_unread_bytes") < 1.0, "something is held for nobody").await;
}
