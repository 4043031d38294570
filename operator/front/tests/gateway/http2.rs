//! `WebSocket`s over HTTP/2, as proxies that speak it to the port begin them: <https://www.rfc-editor.org/rfc/rfc8441>.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode};
use croft_front::{events::fanout, gateway};
use croft_serve::Tasks;
use futures::SinkExt;
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::ext::Protocol;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
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

async fn client(scene: &Scene, requests: &mut SendRequest<Body>) -> Client<TokioIo<Upgraded>> {
    let mut answer = ask(scene, requests, "websocket").await;
    assert_eq!(answer.status(), StatusCode::OK);
    let stream = TokioIo::new(hyper::upgrade::on(&mut answer).await.unwrap());
    Client { socket: WebSocketStream::from_raw_socket(stream, Role::Client, None).await }
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

/// The socket was given up, and the task that wrote to it waited on for as long as the connection was there, with all that it had.
#[tokio::test]
async fn the_stream_of_a_socket_that_takes_nothing_ends_with_it() {
    let scene = Scene::new().await;
    let soon = Duration::from_millis(200);
    let options = gateway::Options { write_timeout: soon, keep_alive: soon, ..gateway::Options::default() };
    let replica = scene.replica_with(fanout::Options::default(), options).await;
    let mut requests = connection(&replica, Some(0)).await;
    let mut silent = client(&scene, &mut requests).await;
    replica.wait_for_connections("websocket", 0).await;
    let mut rest = Vec::new();
    // Its end may come as a reset.
    let _ = timeout(PATIENCE, silent.socket.get_mut().read_to_end(&mut rest)).await.expect("its stream is still there");
    assert!(!requests.is_closed(), "the connection goes on");
}

#[tokio::test]
async fn the_stream_of_a_socket_that_goes_and_takes_no_answer_ends_with_it() {
    let scene = Scene::new().await;
    let replica = scene.replica().await;
    let mut requests = connection(&replica, Some(0)).await;
    let mut leaving = client(&scene, &mut requests).await;
    leaving.socket.send(Message::Close(None)).await.unwrap();
    let mut rest = Vec::new();
    // Its end may come as a reset.
    let _ =
        timeout(PATIENCE, leaving.socket.get_mut().read_to_end(&mut rest)).await.expect("its stream is still there");
    replica.wait_for_connections("websocket", 0).await;
    assert!(!requests.is_closed(), "the connection goes on");
}

/// It had all of its connection's window, so that no other call of the connection could say anything.
#[tokio::test]
async fn a_socket_that_is_not_read_leaves_room_for_other_calls_of_its_connection() {
    let scene = Scene::new().await;
    let options = gateway::Options { write_timeout: 2 * PATIENCE, ..gateway::Options::default() };
    let replica = scene.replica_with(fanout::Options::default(), options).await;
    let session = scene.session().await;
    scene.publish(&replica, session, user_message(&"x".repeat(200 * 1024))).await;
    let mut requests = connection(&replica, Some(0)).await;
    let mut stuck = client(&scene, &mut requests).await;
    stuck.say(json!({ "subscribe": { "sessionId": session.to_string(), "since": "1" } })).await;
    let writes = async {
        while replica.told("croft_gateway_events_sent_total") < 0.5 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, writes).await.expect("nothing is written");

    let (piece, mut sent) = (vec![b'x'; 16 * 1024], 0);
    loop {
        let before = sent;
        let says = async {
            while sent < 64 {
                stuck.socket.get_mut().write_all(&piece).await.unwrap();
                sent += 1;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = says => {}
            answer = requests.send_request(health()) => assert_eq!(answer.unwrap().status(), StatusCode::OK),
            () = tokio::time::sleep(PATIENCE) => panic!("another call is not answered"),
        }
        // All has been said, or what is left has waited for as long as a call takes.
        if sent == before {
            break;
        }
    }
}

/// A call of gRPC-Web whose message is read before there is an answer.
fn health() -> Request<Body> {
    let request = Request::post("http://heron/grpc.health.v1.Health/Check");
    request.header("content-type", "application/grpc-web+proto").body(Body::from(vec![0; 5])).unwrap()
}
