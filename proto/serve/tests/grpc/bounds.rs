//! A port takes so many connections and calls of each, waits for none that says nothing, and keeps none whose peer is not there any more.

use std::time::Duration;

use croft_serve::Tasks;
use croft_serve::connections::Bounds;
use croft_serve::tls::PeerRole;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use socket2::{SockFilter, SockRef};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::authority::Authority;
use crate::collector::{Collector, Running, something};

/// Longer than anything here takes; what it bounds has failed.
const PATIENCE: Duration = Duration::from_secs(90);
/// RFC 9113, section 3.4: what a client says first, with an empty frame of settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

async fn hung_up(stream: &mut TcpStream) {
    let closed = async {
        let mut bytes = [0; 1024];
        while !matches!(stream.read(&mut bytes).await, Ok(0) | Err(_)) {}
    };
    timeout(PATIENCE, closed).await.expect("the connection is still open");
}

/// Waits until the port counts so many connections.
async fn counted(server: &Running, count: u32) {
    let wanted = format!("croft_connections{{port=\"test-grpc\"}} {count}\n");
    let reached = async {
        while !server.metrics.text().unwrap().contains(&wanted) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, reached).await.expect("the number of connections is another");
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_hung_up_on() {
    let bounds = Bounds { first_bytes_timeout: Duration::from_millis(200), ..Bounds::default() };
    let server = Running::within(bounds, Collector::new().routes(), None).await;
    let mut silent = TcpStream::connect(server.addr).await.unwrap();
    let mut half = TcpStream::connect(server.addr).await.unwrap();
    half.write_all(&PREFACE[..12]).await.unwrap();
    let mut caller = TraceServiceClient::connect(server.url()).await.unwrap();
    tokio::join!(hung_up(&mut silent), hung_up(&mut half));
    // One that has said what it wants may be silent for as long as it likes.
    caller.export(something()).await.unwrap();
    counted(&server, 1).await;
}

/// It took a place for ever, though it had nothing to say.
#[tokio::test]
async fn a_connection_without_a_call_is_told_to_go_and_one_with_a_call_stays() {
    let collector = Collector::with_answers(1);
    let (idle_max, peer_timeout) = (Duration::from_millis(400), Duration::from_millis(1_500));
    let bounds = Bounds { idle_max, peer_timeout, ..Bounds::default() };
    let server = Running::in_public(bounds, collector.routes()).await;
    let mut silent = TcpStream::connect(server.addr).await.unwrap();
    silent.write_all(PREFACE).await.unwrap();
    let mut caller = TraceServiceClient::connect(server.url()).await.unwrap();
    caller.export(something()).await.unwrap();
    let mut again = caller.clone();
    let busy = Tasks::new().spawn("caller", async move { again.export(something()).await });
    // It gives signs of life, and does not go though it is told to.
    timeout(PATIENCE, answers_pings(&mut silent)).await.expect("the connection is still open");
    tokio::time::sleep(3 * bounds.idle_max).await;
    counted(&server, 1).await;
    collector.answers.add_permits(1);
    busy.await.unwrap().unwrap();
    counted(&server, 0).await;
    collector.answers.add_permits(1);
    caller.export(something()).await.expect("it makes another");
}

/// Answers whether its caller is there until the server hangs up, but not whether it has heard that it is to go.
async fn answers_pings(caller: &mut TcpStream) {
    let mut goes = false;
    let mut head = [0; 9];
    while caller.read_exact(&mut head).await.is_ok() {
        let [a, b, c, kind, flags, ..] = head;
        let mut said = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        if caller.read_exact(&mut said).await.is_err() {
            return;
        }
        // RFC 9113, sections 6.7 and 6.8: PING, and GOAWAY, behind which comes the question that is left open.
        let is_last = std::mem::replace(&mut goes, kind == 7);
        if kind == 6 && flags == 0 && !is_last {
            let answer = [&[0, 0, 8, 6, 1, 0, 0, 0, 0], said.as_slice()].concat();
            drop(caller.write_all(&answer).await);
        }
    }
}

#[tokio::test]
async fn a_connection_too_many_is_closed_and_counted_and_those_that_are_there_go_on() {
    let bounds = Bounds { connections_max: 1, ..Bounds::default() };
    let server = Running::within(bounds, Collector::new().routes(), None).await;
    let mut caller = TraceServiceClient::connect(server.url()).await.unwrap();
    caller.export(something()).await.unwrap();
    for _ in 0..3 {
        hung_up(&mut TcpStream::connect(server.addr).await.unwrap()).await;
    }
    caller.export(something()).await.unwrap();
    let text = server.metrics.text().unwrap();
    assert!(text.contains("croft_connections_refused_total{port=\"test-grpc\"} 3\n"), "{text}");
    drop(caller);
    counted(&server, 0).await;
    TraceServiceClient::connect(server.url()).await.unwrap().export(something()).await.unwrap();
}

#[tokio::test]
async fn a_caller_that_vanished_without_a_word_gives_its_place_back() {
    let bounds = Bounds { peer_timeout: Duration::from_millis(1_500), ..Bounds::default() };
    let server = Running::within(bounds, Collector::new().routes(), None).await;
    let mut gone = TcpStream::connect(server.addr).await.unwrap();
    gone.write_all(PREFACE).await.unwrap();
    // The server's own settings: it knows the caller now.
    let mut frame = [0; 9];
    gone.read_exact(&mut frame).await.unwrap();
    counted(&server, 1).await;
    // Nothing that reaches this socket is kept, or acknowledged.
    SockRef::from(&gone).attach_filter(&[SockFilter::new(0x06, 0, 0, 0)]).unwrap();
    counted(&server, 0).await;
}

#[tokio::test]
async fn a_connection_is_told_of_how_many_calls_it_may_have_at_a_time() {
    let server = Running::within(Bounds::default(), Collector::new().routes(), None).await;
    let mut caller = TcpStream::connect(server.addr).await.unwrap();
    caller.write_all(PREFACE).await.unwrap();
    assert_eq!(streams_max(&mut caller).await, Some(4_096));
}

/// What the server's settings, its first frame, say of `MAX_CONCURRENT_STREAMS`: RFC 9113, sections 4.1 and 6.5.
async fn streams_max(caller: &mut TcpStream) -> Option<u32> {
    let mut head = [0; 9];
    caller.read_exact(&mut head).await.unwrap();
    let [a, b, c, kind, ..] = head;
    assert_eq!(kind, 4, "the first frame has the settings");
    let mut settings = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    caller.read_exact(&mut settings).await.unwrap();
    let found = settings.as_chunks::<6>().0.iter().find(|[_, id, ..]| *id == 3);
    found.map(|[_, _, value @ ..]| u32::from_be_bytes(*value))
}

#[tokio::test]
async fn a_handshake_that_is_never_finished_is_given_up() {
    let bounds = Bounds { first_bytes_timeout: Duration::from_millis(200), ..Bounds::default() };
    let tls = Authority::new().issue(&PeerRole::Front);
    let server = Running::within(bounds, Collector::new().routes(), Some(tls.server())).await;
    let mut silent = TcpStream::connect(server.addr).await.unwrap();
    hung_up(&mut silent).await;
    counted(&server, 0).await;
}
