//! An HTTP client of a few lines, that reads a body as it comes; and what needs no more than that: probes and refusals.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::scene::{PATIENCE, Scene, terminated};

/// An answer whose body is still coming.
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// As it came, in lower case.
    pub(crate) head: String,
    stream: BufReader<TcpStream>,
}

/// `headers` are whole lines.
pub(crate) async fn get(address: SocketAddr, path: &str, headers: &[String]) -> Answer {
    ask(address, "GET", path, headers, &[]).await
}

/// With a body, its length must be among the headers.
pub(crate) async fn ask(address: SocketAddr, method: &str, path: &str, headers: &[String], body: &[u8]) -> Answer {
    let mut stream = BufReader::new(TcpStream::connect(address).await.unwrap());
    let mut lines = vec![format!("{method} {path} HTTP/1.1"), format!("host: {address}")];
    lines.extend_from_slice(headers);
    let request = lines.join("\r\n") + "\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        let read = timeout(PATIENCE, stream.read_line(&mut head)).await.expect("no answer").unwrap();
        assert!(read > 0, "the connection was closed: {head}");
    }
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_lowercase(), stream }
}

impl Answer {
    /// The next piece of a chunked body of text; `None` at its end.
    pub(crate) async fn chunk(&mut self) -> Option<String> {
        self.bytes().await.map(|bytes| String::from_utf8(bytes).unwrap())
    }

    /// The same, of any body.
    pub(crate) async fn bytes(&mut self) -> Option<Vec<u8>> {
        let read = async {
            let mut size = String::new();
            self.stream.read_line(&mut size).await.unwrap();
            let size = usize::from_str_radix(size.trim(), 16).ok().filter(|size| *size > 0)?;
            let mut bytes = vec![0; size + 2];
            self.stream.read_exact(&mut bytes).await.unwrap();
            bytes.truncate(size);
            Some(bytes)
        };
        timeout(PATIENCE, read).await.expect("nothing came")
    }

    /// A body whose length was told.
    pub(crate) async fn json(mut self) -> Value {
        let length = self.head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let mut bytes = vec![0; length.trim().parse().unwrap()];
        self.stream.read_exact(&mut bytes).await.unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }
}

pub(crate) fn bearer(key: &str) -> Vec<String> {
    vec![format!("authorization: Bearer {key}")]
}

#[tokio::test]
async fn without_a_good_credential_nobody_learns_anything() {
    let scene = Scene::new().await;
    let (replica, session) = (scene.replica().await, scene.session().await);
    let wrong = format!("{}x", &scene.key[..scene.key.len() - 1]);
    for path in [format!("/v1/sessions/{session}/events"), "/v1/ws".to_owned()] {
        for headers in [vec![], bearer("nonsense"), bearer(&wrong), vec![format!("authorization: {}", scene.key)]] {
            let answer = get(replica.address, &path, &headers).await;
            assert_eq!(answer.status, 401, "{path} {headers:?}");
            assert!(answer.head.contains("www-authenticate: bearer"));
            let error = answer.json().await["error"].take();
            assert_eq!(error["reason"], "UNAUTHENTICATED");
            assert!(error["message"].as_str().unwrap().contains("authorization header"));
        }
    }
}

#[tokio::test]
async fn a_session_of_another_tenant_is_as_one_that_never_was() {
    let scene = Scene::new().await;
    let replica = scene.replica().await;
    let (other, _) = scene.other_tenant().await;
    let theirs = scene.session_of(other).await;
    for session in [theirs.to_string(), croft_proto::id::SessionId::generate().to_string(), "heron".to_owned()] {
        let answer = get(replica.address, &format!("/v1/sessions/{session}/events"), &bearer(&scene.key)).await;
        assert_eq!(answer.status, 404);
        let expected = json!({ "error": {
            "reason": "SESSION_NOT_FOUND", "message": format!("session {session} does not exist"),
        } });
        assert_eq!(answer.json().await, expected);
    }
}

#[tokio::test]
async fn a_cursor_must_be_a_number_that_the_session_has() {
    let scene = Scene::new().await;
    let (replica, session) = (scene.replica().await, scene.session().await);
    let path = format!("/v1/sessions/{session}/events");
    for (query, header, reason, word) in [
        ("?after_seq=two", None, "INVALID_ARGUMENT", "after_seq"),
        ("?after_seq=2", None, "CURSOR_BEYOND_END", "after_seq 2"),
        ("", Some("last-event-id: -1"), "INVALID_ARGUMENT", "Last-Event-ID"),
        ("?durable_only=perhaps", None, "INVALID_ARGUMENT", "query"),
    ] {
        let headers: Vec<_> = bearer(&scene.key).into_iter().chain(header.map(str::to_owned)).collect();
        let answer = get(replica.address, &format!("{path}{query}"), &headers).await;
        assert_eq!(answer.status, 400, "{query}");
        let error = answer.json().await["error"].take();
        assert_eq!(error["reason"], reason);
        assert!(error["message"].as_str().unwrap().contains(word), "{error}");
    }
}

#[tokio::test]
async fn probes_need_no_credential_and_only_readiness_tells_of_problems() {
    let scene = Scene::new().await;
    let replica = scene.replica().await;
    let check = replica.readiness.check("routes");
    replica.readiness.tells("redis").not_ready("connection refused");
    check.not_ready("no routes from the operator yet");
    assert_eq!(get(replica.address, "/healthz", &[]).await.status, 200);
    let answer = get(replica.address, "/readyz", &[]).await;
    assert_eq!(answer.status, 503);
    let no_routes = "routes: no routes from the operator yet";
    let body = json!({ "ready": false, "problems": ["redis: connection refused", no_routes] });
    assert_eq!(answer.json().await, body);
    let answer = get(replica.address, "/servingz", &[]).await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.json().await, json!({ "serving": false, "problems": [no_routes] }));
    check.ready();
    assert_eq!(get(replica.address, "/readyz", &[]).await.status, 503);
    let answer = get(replica.address, "/servingz", &[]).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json().await, json!({ "serving": true, "problems": [] }));
    replica.readiness.tells("redis").ready();
    assert_eq!(get(replica.address, "/readyz", &[]).await.status, 200);
}

#[tokio::test]
async fn wrong_paths_and_plain_requests_for_a_websocket_are_told_so() {
    let scene = Scene::new().await;
    let replica = scene.replica().await;
    let answer = get(replica.address, "/v1/sessions", &bearer(&scene.key)).await;
    assert_eq!((answer.status, answer.json().await["error"]["reason"].take()), (404, json!("NO_SUCH_PATH")));
    let answer = get(replica.address, "/v1/ws", &bearer(&scene.key)).await;
    assert_eq!((answer.status, answer.json().await["error"]["reason"].take()), (426, json!("UPGRADE_REQUIRED")));
}

#[tokio::test]
async fn a_browser_that_comes_back_after_the_end_is_told_to_stay_away() {
    let scene = Scene::new().await;
    let (replica, session) = (scene.replica().await, scene.session().await);
    let last = scene.publish(&replica, session, terminated()).await;
    let headers: Vec<_> = bearer(&scene.key).into_iter().chain([format!("last-event-id: {last}")]).collect();
    let answer = get(replica.address, &format!("/v1/sessions/{session}/events"), &headers).await;
    assert_eq!(answer.status, 204);
}
