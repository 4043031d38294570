//! What comes before a request, and what becomes of a connection whose peer is not there any more.

use std::net::SocketAddr;
use std::time::Duration;

use croft_front::{events::fanout, gateway};
use croft_serve::connections::Bounds;
use socket2::{SockFilter, SockRef};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::http::{bearer, get};
use crate::scene::{PATIENCE, Replica, Scene};

async fn replica(scene: &Scene, port: Bounds) -> Replica {
    scene.replica_within(fanout::Options::default(), gateway::Options::default(), port).await
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.unwrap()
}

/// Waits until the server has hung up, whatever it says before.
async fn hung_up(stream: &mut TcpStream) {
    let closed = async {
        let mut bytes = [0; 1024];
        while !matches!(stream.read(&mut bytes).await, Ok(0) | Err(_)) {}
    };
    timeout(PATIENCE, closed).await.expect("the connection is still open");
}

/// The peer's machine is gone: whatever reaches it is lost, and nothing is said of it. `BPF_RET | BPF_K` with 0 keeps nothing of
/// a packet: <https://www.kernel.org/doc/html/latest/networking/filter.html>
fn vanish(stream: &TcpStream) {
    SockRef::from(stream).attach_filter(&[SockFilter::new(0x06, 0, 0, 0)]).unwrap();
}

#[tokio::test]
async fn who_does_not_say_what_he_wants_is_hung_up_on_and_holds_nobody_up() {
    let scene = Scene::new().await;
    let soon = Duration::from_millis(300);
    let port = Bounds { first_bytes_timeout: soon, head_timeout: soon, ..Bounds::default() };
    let replica = replica(&scene, port).await;
    let mut silent = connect(replica.address).await;
    // Half of HTTP/2's first words.
    let mut half = connect(replica.address).await;
    half.write_all(b"PRI * HTTP/2").await.unwrap();
    // A header, a byte at a time, for ever.
    let mut slow = connect(replica.address).await;
    slow.write_all(b"GET /v1/ws HTTP/1.1\r\nhost: heron\r\nx-slow: ").await.unwrap();
    let began = Instant::now();
    let trickle = async {
        while slow.write_all(b"a").await.is_ok() {
            assert!(began.elapsed() < PATIENCE, "the connection is still open");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::join!(trickle, hung_up(&mut silent), hung_up(&mut half));
    assert_eq!(get(replica.address, "/healthz", &[]).await.status, 200);
    // One that has had its answer is not waited for either.
    let mut idle = connect(replica.address).await;
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: heron\r\n\r\n").await.unwrap();
    hung_up(&mut idle).await;
}

#[tokio::test]
async fn a_head_without_end_is_refused() {
    let scene = Scene::new().await;
    let replica = replica(&scene, Bounds::default()).await;
    let mut endless = connect(replica.address).await;
    endless.write_all(b"GET /healthz HTTP/1.1\r\nhost: heron\r\n").await.unwrap();
    let header = format!("x-more: {}\r\n", "a".repeat(1_000));
    let mut sent = 0;
    while endless.write_all(header.as_bytes()).await.is_ok() {
        sent += header.len();
        assert!(sent < 16 * 1024 * 1024, "it reads on and on");
    }
}

#[tokio::test]
async fn a_port_has_room_for_so_many_connections_and_for_more_when_some_have_gone() {
    let scene = Scene::new().await;
    let replica = replica(&scene, Bounds { connections_max: 2, ..Bounds::default() }).await;
    let session = scene.session().await;
    let path = format!("/v1/sessions/{session}/events");
    let first = get(replica.address, &path, &bearer(&scene.key)).await;
    let second = get(replica.address, &path, &bearer(&scene.key)).await;
    assert_eq!((first.status, second.status), (200, 200));
    for _ in 0..3 {
        hung_up(&mut connect(replica.address).await).await;
    }
    drop(first);
    replica.wait_for_connections("sse", 1).await;
    let served = async {
        // The place is free a moment after the stream.
        loop {
            let mut stream = connect(replica.address).await;
            let asked = stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: heron\r\nconnection: close\r\n\r\n").await;
            let mut answer = String::new();
            if asked.is_ok() && stream.read_to_string(&mut answer).await.is_ok() && answer.contains("200 OK") {
                return;
            }
        }
    };
    timeout(PATIENCE, served).await.expect("no place is given back");
}

#[tokio::test]
async fn a_peer_that_vanished_without_a_word_gives_its_place_back() {
    let scene = Scene::new().await;
    let port = Bounds { peer_timeout: Duration::from_millis(1_500), ..Bounds::default() };
    let replica = replica(&scene, port).await;
    let session = scene.session().await;
    let open = async |path: &str, more: &str| {
        let mut stream = connect(replica.address).await;
        let key = &scene.key;
        let request = format!("GET {path} HTTP/1.1\r\nhost: heron\r\nauthorization: Bearer {key}\r\n{more}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = [0; 9];
        stream.read_exact(&mut answer).await.unwrap();
        stream
    };
    let path = format!("/v1/sessions/{session}/events?after_seq=1");
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                   sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let (gone_stream, here) = (open(&path, "").await, open(&path, "").await);
    let gone_socket = open("/v1/ws", upgrade).await;
    replica.wait_for_connections("sse", 2).await;
    replica.wait_for_connections("websocket", 1).await;
    // Neither has anything to say or to hear: only the kernels can find out.
    vanish(&gone_stream);
    vanish(&gone_socket);
    replica.wait_for_connections("sse", 1).await;
    replica.wait_for_connections("websocket", 0).await;
    assert_eq!(scene.seats.of(scene.tenant), 1, "the tenant's seats are given back too");
    drop(here);
}

#[tokio::test]
async fn a_large_body_is_not_waited_for_where_none_is_wanted() {
    let scene = Scene::new().await;
    let replica = replica(&scene, Bounds::default()).await;
    for (path, status) in [("/v1/ws", "405"), ("/v1/sessions", "404"), ("/healthz", "405")] {
        let mut stream = connect(replica.address).await;
        let head = format!("POST {path} HTTP/1.1\r\nhost: heron\r\ncontent-length: 10485760\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        timeout(PATIENCE, stream.read_exact(&mut answer)).await.expect("no answer").unwrap();
        assert_eq!(&answer, format!("HTTP/1.1 {status}").as_bytes());
        // And there is no end to it.
        let piece = vec![b'a'; 64 * 1024];
        let mut sent = 0;
        while sent < 10 * 1024 * 1024 && stream.write_all(&piece).await.is_ok() {
            sent += piece.len();
        }
        assert!(sent < 10 * 1024 * 1024, "{path} read it all");
    }
}
