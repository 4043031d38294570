//! `WebSocket`s over HTTP/2, as proxies that speak it to the port begin them: <https://www.rfc-editor.org/rfc/rfc8441>.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode};
use croft_serve::Tasks;
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::ext::Protocol;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::scene::{PATIENCE, Replica, Scene, user_message};
use crate::websocket::Client;

/// A connection whose server has told that it takes extended CONNECT. `window` is how many bytes the client takes of an answer at a time.
pub(crate) async fn connection(replica: &Replica, window: Option<u32>) -> SendRequest<Body> {
    let stream = TcpStream::connect(replica.address).await.unwrap();
    let mut builder = Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(window);
    let (requests, mut connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    let told = async {
        while !connection.is_extended_connect_protocol_enabled() {
            let _ = futures::poll!(&mut connection);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("it is not offered");
    drop(Tasks::new().spawn("http2", async move { drop(connection.await) }));
    requests
}

async fn ask(scene: &Scene, requests: &mut SendRequest<Body>, protocol: &'static str) -> Response<Incoming> {
    let request = Request::builder()
        .method(Method::CONNECT)
        .extension(Protocol::from_static(protocol))
        .uri("http://heron/v1/ws")
        .header("authorization", format!("Bearer {}", scene.key))
        .header("sec-websocket-version", "13")
        .header("sec-websocket-protocol", "croft.v1")
        .body(Body::empty())
        .unwrap();
    tokio::time::timeout(PATIENCE, requests.send_request(request)).await.expect("no answer").unwrap()
}

#[tokio::test]
async fn a_websocket_opens_over_http2_and_several_share_a_connection() {
    let scene = Scene::new().await;
    let (replica, session) = (scene.replica().await, scene.session().await);
    let mut requests = connection(&replica, None).await;
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut answer = ask(&scene, &mut requests, "websocket").await;
        assert_eq!(
            (answer.status(), &answer.headers()["sec-websocket-protocol"]),
            (StatusCode::OK, &"croft.v1".parse().unwrap())
        );
        let stream = TokioIo::new(hyper::upgrade::on(&mut answer).await.unwrap());
        let mut client = Client { socket: WebSocketStream::from_raw_socket(stream, Role::Client, None).await };
        client.subscribe(session, 1).await;
        clients.push(client);
    }
    scene.publish(&replica, session, user_message("hello")).await;
    for client in &mut clients {
        assert_eq!(client.hear_number().await, 2);
    }
    // They are told to go elsewhere as any other, and the connection is not waited for.
    let told = async {
        for mut client in clients {
            assert_eq!(client.hear_close().await.0, 1001);
        }
    };
    let Replica { tasks, hub, .. } = replica;
    drop(hub);
    let (left, ()) = tokio::join!(tasks.shutdown(PATIENCE), told);
    assert_eq!(left, 0);
}

#[tokio::test]
async fn what_is_no_websocket_is_not_connected() {
    let scene = Scene::new().await;
    let replica = scene.replica().await;
    let mut requests = connection(&replica, None).await;
    assert_eq!(ask(&scene, &mut requests, "connect-udp").await.status(), StatusCode::UPGRADE_REQUIRED);
}
