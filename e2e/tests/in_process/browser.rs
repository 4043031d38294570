//! gRPC-Web as a browser without streams of binary speaks it: HTTP/1.1, base64, a token at a time.

use std::net::SocketAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use croft_e2e::client::{message, scripted_agent};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    CreateSessionRequest, CreateSessionResponse, SendMessageResponse, StreamEventsRequest, StreamEventsResponse,
};
use prost::Message;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::world::{PATIENCE, World};

/// In a frame's first byte: it holds trailers.
const TRAILERS: u8 = 0x80;

/// A call whose answer is still coming.
struct Call {
    stream: BufReader<TcpStream>,
    /// Decoded and not yet taken.
    bytes: Vec<u8>,
}

impl Call {
    async fn begin(http: SocketAddr, key: &str, method: &str, request: &impl Message) -> Self {
        let body = request.encode_to_vec();
        let mut frame = vec![0];
        frame.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
        frame.extend(body);
        let body = STANDARD.encode(frame);
        let head = format!(
            "POST /croft.v1.LifecycleService/{method} HTTP/1.1\r\nhost: {http}\r\nauthorization: Bearer {key}\r\n\
             content-type: application/grpc-web-text\r\naccept: application/grpc-web-text\r\nx-grpc-web: 1\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = BufReader::new(TcpStream::connect(http).await.unwrap());
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body.as_bytes()).await.unwrap();
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let read = tokio::time::timeout(PATIENCE, stream.read_line(&mut head)).await.expect("no answer").unwrap();
            assert!(read > 0, "the connection was closed: {head}");
        }
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(head.to_lowercase().contains("content-type: application/grpc-web-text"), "{head}");
        Self { stream, bytes: Vec::new() }
    }

    /// The next frame: a message, or the trailers, which come last.
    async fn frame(&mut self) -> (u8, Vec<u8>) {
        loop {
            if let Some((head, rest)) = self.bytes.split_at_checked(5) {
                let length = u32::from_be_bytes(head[1..].try_into().unwrap()) as usize;
                if rest.len() >= length {
                    let (kind, body) = (head[0], rest[..length].to_vec());
                    self.bytes.drain(..5 + length);
                    return (kind, body);
                }
            }
            let text = tokio::time::timeout(PATIENCE, self.chunk()).await.expect("nothing came");
            // Pieces that were encoded each for itself may end in padding anywhere.
            for quantum in text.as_bytes().chunks(4) {
                self.bytes.extend(STANDARD.decode(quantum).unwrap());
            }
        }
    }

    async fn chunk(&mut self) -> String {
        let mut size = String::new();
        self.stream.read_line(&mut size).await.unwrap();
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or_else(|_| panic!("no chunk: {size:?}"));
        assert!(size > 0, "the answer has ended without trailers");
        let mut chunk = vec![0; size + 2];
        self.stream.read_exact(&mut chunk).await.unwrap();
        chunk.truncate(size);
        String::from_utf8(chunk).unwrap()
    }

    async fn message<M: Message + Default>(&mut self) -> M {
        let (kind, body) = self.frame().await;
        assert_eq!(kind, 0, "trailers: {}", String::from_utf8_lossy(&body));
        M::decode(&*body).unwrap()
    }

    async fn trailers(&mut self) -> String {
        let (kind, body) = self.frame().await;
        assert_eq!(kind, TRAILERS);
        String::from_utf8(body).unwrap().replace(": ", ":")
    }
}

#[tokio::test]
async fn a_turn_streams_to_a_page_token_by_token() {
    let world = World::start().await;
    let (http, key) = (world.http, world.api_key.as_str());
    let create = CreateSessionRequest { agent: Some(scripted_agent("page")), ..CreateSessionRequest::default() };
    let mut call = Call::begin(http, key, "CreateSession", &create).await;
    let session_id = call.message::<CreateSessionResponse>().await.session.unwrap().session_id;
    assert!(call.trailers().await.contains("grpc-status:0"));
    let counted =
        r#"croft_grpc_requests_total{code="Ok",method="CreateSession",service="croft.v1.LifecycleService",whose=""} 1"#;
    let metrics = world.metrics.text().unwrap();
    assert!(metrics.contains(counted), "{metrics}");

    // Slow enough for a page that is shown a token too late to notice.
    let script = r#"{"script": [{"text": "one two three", "token_delay_ms": 150}]}"#;
    let mut call = Call::begin(http, key, "SendMessage", &message(&session_id, script)).await;
    let mut texts = Vec::new();
    let last = loop {
        let event = call.message::<SendMessageResponse>().await.event.unwrap();
        match event.kind {
            Some(Kind::TextDelta(delta)) => {
                // The turn may be over by the time that its last token is read, but not at the first.
                if texts.is_empty() {
                    let stored = world.stored(&session_id).await;
                    assert_eq!(stored.last_stop_reason.as_str_name(), "STOP_REASON_UNSPECIFIED", "it came late");
                }
                texts.push(delta.text);
            }
            Some(Kind::SessionIdle(_)) => break event,
            _ => {}
        }
    };
    assert!(call.trailers().await.contains("grpc-status:0"));
    assert_eq!(texts.concat(), "one two three");
    assert!(texts.len() > 1, "it came in one piece");

    let request = StreamEventsRequest { session_id, after_seq: last.seq - 1, durable_only: true };
    let mut call = Call::begin(http, key, "StreamEvents", &request).await;
    assert_eq!(call.message::<StreamEventsResponse>().await.event, Some(last));
}

#[tokio::test]
async fn a_page_without_a_key_hears_so_in_the_trailers() {
    let world = World::start().await;
    let request = StreamEventsRequest::default();
    let body = Call::begin_refused(world.http, &request).await;
    assert!(body.contains("grpc-status: 16"), "{body}");
}

impl Call {
    /// The head of the answer to a call without a good key: it needs no body.
    async fn begin_refused(http: SocketAddr, request: &impl Message) -> String {
        let body = request.encode_to_vec();
        let mut frame = vec![0];
        frame.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
        let body = STANDARD.encode(frame);
        let head = format!(
            "POST /croft.v1.LifecycleService/StreamEvents HTTP/1.1\r\nhost: {http}\r\ncontent-length: {}\r\n\
             content-type: application/grpc-web-text\r\nconnection: close\r\n\r\n",
            body.len()
        );
        let mut stream = TcpStream::connect(http).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("no answer").unwrap();
        answer
    }
}
