//! Many sessions over one WebSocket.

use std::time::Duration;

use croft_front::{events::fanout, gateway};
use croft_proto::id::SessionId;
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, connect_async_with_config};

use crate::scene::{PATIENCE, Replica, Scene, agent_message, from_later_on, terminated, user_message};

pub(crate) struct Client<S = MaybeTlsStream<TcpStream>> {
    pub(crate) socket: WebSocketStream<S>,
}

impl Client {
    pub(crate) async fn connect(scene: &Scene, replica: &Replica) -> Self {
        Self::connect_at(scene, replica, "/v1/ws").await
    }

    pub(crate) async fn connect_at(scene: &Scene, replica: &Replica, path: &str) -> Self {
        let mut request = format!("ws://{}{path}", replica.address).into_client_request().unwrap();
        let bearer = HeaderValue::from_str(&format!("Bearer {}", scene.key)).unwrap();
        request.headers_mut().insert("authorization", bearer);
        // We answer no ping while we don't read, and can say more than the server takes.
        let (socket, _) = connect_async_with_config(request, Some(WebSocketConfig::default()), true).await.unwrap();
        Self { socket }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub(crate) async fn say(&mut self, frame: Value) {
        self.try_say(frame).await.unwrap();
    }

    /// The server may have hung up.
    pub(crate) async fn try_say(&mut self, frame: Value) -> Result<(), Error> {
        self.socket.send(Message::text(frame.to_string())).await
    }

    pub(crate) async fn subscribe(&mut self, session: SessionId, since: u64) {
        self.say(json!({ "subscribe": { "sessionId": session.to_string(), "since": since } })).await;
        let expected = json!({ "subscribed": { "sessionId": session.to_string(), "since": since.to_string() } });
        assert_eq!(self.hear().await, expected);
    }

    /// The next frame of the server.
    pub(crate) async fn hear(&mut self) -> Value {
        loop {
            match timeout(PATIENCE, self.socket.next()).await.expect("nothing came") {
                Some(Ok(Message::Text(text))) => return serde_json::from_str(&text).unwrap(),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("no frame: {other:?}"),
            }
        }
    }

    pub(crate) async fn hear_number(&mut self) -> u64 {
        let frame = self.hear().await;
        frame["event"]["seq"].as_str().unwrap_or_else(|| panic!("{frame}")).parse().unwrap()
    }

    /// The close code and reason, and how many frames came before.
    pub(crate) async fn hear_close(&mut self) -> (u16, String, usize) {
        let mut frames = 0;
        loop {
            match timeout(PATIENCE, self.socket.next()).await.expect("nothing came") {
                Some(Ok(Message::Close(Some(close)))) => return (close.code.into(), close.reason.to_string(), frames),
                Some(Ok(_)) => frames += 1,
                other => panic!("no close: {other:?}"),
            }
        }
    }
}

pub(crate) fn reason(frame: &Value) -> &str {
    frame["error"]["reason"].as_str().unwrap_or_else(|| panic!("{frame}"))
}

/// The socket was closed at it, and what else it followed with it.
#[tokio::test]
async fn an_event_that_a_later_release_has_stored_is_told_by_its_number() {
    let scene = Scene::new().await;
    let (replica, session) = (scene.replica().await, scene.session().await);
    scene.publish(&replica, session, from_later_on()).await;
    scene.publish(&replica, session, agent_message()).await;
    let mut client = Client::connect(&scene, &replica).await;
    client.subscribe(session, 1).await;
    assert_eq!((client.hear_number().await, client.hear_number().await), (2, 3));
}

#[tokio::test]
async fn a_token_that_another_replica_publishes_reaches_the_browser() {
    let scene = Scene::new().await;
    let [ours, theirs] = [scene.replica().await, scene.replica().await];
    let session = scene.session().await;
    let _turn = theirs.hub.controls(scene.tenant, session).await;
    let mut client = Client::connect(&scene, &ours).await;
    client.subscribe(session, 0).await;
    assert_eq!(client.hear_number().await, 1);
    scene.publish(&theirs, session, user_message("hello")).await;
    scene.preview(&theirs, session, "so");
    scene.publish(&theirs, session, agent_message()).await;
    scene.publish(&theirs, session, terminated()).await;
    assert_eq!(client.hear_number().await, 2);
    assert_eq!(client.hear().await["event"]["textDelta"]["text"], "so");
    assert_eq!((client.hear_number().await, client.hear_number().await), (3, 4));
    assert_eq!(client.hear().await, json!({ "ended": { "sessionId": session.to_string() } }));
    // Nothing is left to see.
    client.subscribe(session, 4).await;
    assert_eq!(client.hear().await, json!({ "ended": { "sessionId": session.to_string() } }));
}

#[tokio::test]
async fn the_credential_may_come_in_the_protocols_or_the_query() {
    let scene = Scene::new().await;
    let replica = scene.replica().await;
    let url = format!("ws://{}/v1/ws", replica.address);

    let mut request = url.as_str().into_client_request().unwrap();
    let protocols = HeaderValue::from_str(&format!("croft.v1, bearer.{}", scene.key)).unwrap();
    request.headers_mut().insert("sec-websocket-protocol", protocols);
    let (_, response) = connect_async(request).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "croft.v1", "and never the token");

    connect_async(format!("{url}?access_token={}", scene.key)).await.unwrap();
    match connect_async(url).await {
        Err(Error::Http(response)) => assert_eq!(response.status(), 401),
        other => panic!("let in: {other:?}"),
    }
}

#[tokio::test]
async fn a_session_of_another_tenant_does_not_exist_and_the_connection_stays() {
    let scene = Scene::new().await;
    let replica = scene.replica().await;
    let (other, _) = scene.other_tenant().await;
    let (theirs, ours) = (scene.session_of(other).await, scene.session().await);
    let mut client = Client::connect(&scene, &replica).await;
    client.say(json!({ "subscribe": { "sessionId": theirs.to_string() } })).await;
    let refused = client.hear().await;
    assert_eq!(reason(&refused), "SESSION_NOT_FOUND");
    assert_eq!(refused["error"]["sessionId"], theirs.to_string());
    client.subscribe(ours, 0).await;
    assert_eq!(client.hear_number().await, 1);
}

#[tokio::test]
async fn to_subscribe_and_unsubscribe_twice_is_as_once() {
    let scene = Scene::new().await;
    let (replica, session) = (scene.replica().await, scene.session().await);
    let mut client = Client::connect(&scene, &replica).await;
    client.subscribe(session, 1).await;
    client.subscribe(session, 1).await;
    scene.publish(&replica, session, user_message("hello")).await;
    assert_eq!(client.hear_number().await, 2);
    for _ in 0..2 {
        client.say(json!({ "unsubscribe": { "sessionId": session.to_string() } })).await;
        assert_eq!(client.hear().await, json!({ "unsubscribed": { "sessionId": session.to_string() } }));
    }
    scene.publish(&replica, session, user_message("hello?")).await;
    client.say(json!({ "ping": { "id": "still there" } })).await;
    assert_eq!(client.hear().await, json!({ "pong": { "id": "still there" } }), "no event in between");
    client.subscribe(session, 2).await;
    assert_eq!(client.hear_number().await, 3);
}

#[tokio::test]
async fn frames_without_sense_are_answered_and_the_connection_stays() {
    let scene = Scene::new().await;
    let replica = scene.replica().await;
    let mut client = Client::connect(&scene, &replica).await;
    for nonsense in ["", "{", "[1]", r#"{"shout":{}}"#, r#"{"send":{"sessionId":7}}"#] {
        client.socket.send(Message::text(nonsense)).await.unwrap();
        assert_eq!(reason(&client.hear().await), "INVALID_ARGUMENT", "{nonsense}");
    }
    client.socket.send(Message::binary(vec![0, 159, 146, 150])).await.unwrap();
    assert_eq!(reason(&client.hear().await), "INVALID_ARGUMENT");
    client.say(json!({ "ping": {} })).await;
    assert_eq!(client.hear().await, json!({ "pong": { "id": "" } }));
}

#[tokio::test]
async fn messages_and_interrupts_are_carried_out_as_the_caller_in_their_order() {
    let scene = Scene::new().await;
    let (replica, session) = (scene.replica().await, scene.session().await);
    let session_id = session.to_string();
    let mut client = Client::connect(&scene, &replica).await;
    for text in ["one", "two", "three"] {
        let content = json!([{ "text": { "text": text } }]);
        client
            .say(
                json!({ "send": { "sessionId": session_id, "content": content, "busyPolicy": "BUSY_POLICY_ENQUEUE" } }),
            )
            .await;
    }
    client.say(json!({ "send": { "sessionId": session_id } })).await;
    client.say(json!({ "interrupt": { "sessionId": session_id } })).await;
    for seq in ["1", "2", "3"] {
        assert_eq!(client.hear().await, json!({ "sent": { "sessionId": session_id, "seq": seq } }));
    }
    assert_eq!(reason(&client.hear().await), "INVALID_ARGUMENT");
    assert_eq!(client.hear().await, json!({ "interrupted": { "sessionId": session_id, "interrupted": true } }));

    let sent = scene.calls.sent.lock().unwrap();
    assert!(
        sent.iter().all(|(identity, _)| identity.tenant == scene.tenant && identity.actor.starts_with("api-key/ck_"))
    );
    let texts: Vec<_> = sent.iter().map(|(_, request)| serde_json::to_value(request).unwrap()).collect();
    let texts: Vec<_> = texts.iter().map(|request| request["content"][0]["text"]["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["one", "two", "three"]);
}

#[tokio::test]
async fn an_approval_is_answered_over_the_same_connection() {
    let scene = Scene::new().await;
    let (replica, session_id) = (scene.replica().await, scene.session().await.to_string());
    let mut client = Client::connect(&scene, &replica).await;
    let denial = json!({ "sessionId": session_id, "approvalId": "a-1", "approved": false, "message": "not today" });
    client.say(json!({ "approve": denial })).await;
    assert_eq!(client.hear().await, json!({ "approved": { "sessionId": session_id, "approvalId": "a-1" } }));
    let answered = scene.calls.answered.lock().unwrap().clone();
    assert_eq!((answered[0].approved, answered[0].message.as_str()), (false, "not today"));
    client.say(json!({ "approve": { "sessionId": session_id } })).await;
    assert_eq!(reason(&client.hear().await), "APPROVAL_NOT_PENDING");
}

#[tokio::test]
async fn who_closes_the_connection_is_answered() {
    let scene = Scene::new().await;
    let replica = scene.replica().await;
    let mut client = Client::connect(&scene, &replica).await;
    let close = CloseFrame { code: CloseCode::Normal, reason: "done".into() };
    client.socket.close(Some(close)).await.unwrap();
    let (code, reason, _) = client.hear_close().await;
    assert_eq!((code, reason.as_str()), (1000, "done"));
    assert!(client.socket.next().await.is_none(), "an orderly end");
}

#[tokio::test]
async fn a_frame_that_is_too_large_closes_the_connection_as_such() {
    let scene = Scene::new().await;
    let replica = scene.replica().await;
    let mut client = Client::connect(&scene, &replica).await;
    let large = json!({ "ping": { "id": "x".repeat(1024 * 1024) } });
    client.socket.send(Message::text(large.to_string())).await.unwrap();
    assert_eq!(client.hear_close().await.0, 1009);
}

/// They were free: who went in and out of sessions had the store look things up for nothing.
#[tokio::test]
async fn subscriptions_are_calls_of_the_tenants_eight_to_one() {
    let scene = Scene::new().await;
    let (replica, session) = (scene.replica().await, scene.session().await);
    let subscribe = || json!({ "subscribe": { "sessionId": session.to_string(), "since": "1" } });
    let unsubscribe = || json!({ "unsubscribe": { "sessionId": session.to_string() } });
    *scene.calls.left.lock().unwrap() = Some(3);
    let mut client = Client::connect(&scene, &replica).await;
    for _ in 0..24 {
        client.subscribe(session, 1).await;
        // What is there already costs nothing.
        client.subscribe(session, 1).await;
        client.say(unsubscribe()).await;
        assert!(client.hear().await["unsubscribed"].is_object());
    }
    assert_eq!(*scene.calls.left.lock().unwrap(), Some(0));
    for _ in 0..2 {
        client.say(subscribe()).await;
        let refused = client.hear().await;
        assert_eq!(
            refused,
            json!({ "error": {
                "reason": "RATE_LIMITED", "message": "the limit of 60 requests in a minute is reached", "retryAfterMs": 1_500,
                "sessionId": session.to_string(),
            } })
        );
    }
    *scene.calls.left.lock().unwrap() = Some(1);
    for _ in 0..8 {
        client.subscribe(session, 1).await;
        client.say(unsubscribe()).await;
        client.hear().await;
    }
    client.say(subscribe()).await;
    assert_eq!(reason(&client.hear().await), "RATE_LIMITED");
}

#[tokio::test]
async fn a_connection_in_place_of_one_that_broke_off_takes_none_of_the_tenants_calls() {
    let scene = Scene::new().await;
    let options = gateway::Options { subscriptions_max: 3, ..Default::default() };
    let replica = scene.replica_with(fanout::Options::default(), options).await;
    let sessions = [scene.session().await, scene.session().await];
    *scene.calls.left.lock().unwrap() = Some(0);
    *scene.calls.resumes_left.lock().unwrap() = Some(3);
    let mut client = Client::connect_at(&scene, &replica, "/v1/ws?resume=true").await;
    for session in sessions {
        client.subscribe(session, 1).await;
    }
    assert_eq!(*scene.calls.resumes_left.lock().unwrap(), Some(0));
    let subscribe = |since| json!({ "subscribe": { "sessionId": sessions[0].to_string(), "since": since } });
    let again = async |client: &mut Client, since: u64| {
        client.say(json!({ "unsubscribe": { "sessionId": sessions[0].to_string() } })).await;
        client.hear().await;
        client.say(subscribe(since)).await;
        client.hear().await["error"]["message"].take()
    };
    // To begin is a call; what was refused is still to be gone on with.
    for (since, of) in [(1, "resumes"), (1, "resumes"), (0, "requests"), (1, "resumes")] {
        assert_eq!(again(&mut client, since).await, format!("the limit of 60 {of} in a minute is reached"));
    }
}

#[tokio::test]
async fn subscriptions_and_frames_of_one_connection_have_a_bound() {
    let scene = Scene::new().await;
    let options =
        gateway::Options { subscriptions_max: 2, frames_per_second: 1, frames_at_once: 5, ..Default::default() };
    let replica = scene.replica_with(fanout::Options::default(), options).await;
    let mut client = Client::connect(&scene, &replica).await;
    for _ in 0..2 {
        let session = scene.session().await;
        client.subscribe(session, 1).await;
    }
    let session = scene.session().await;
    client.say(json!({ "subscribe": { "sessionId": session.to_string() } })).await;
    assert_eq!(reason(&client.hear().await), "SUBSCRIPTION_LIMIT");

    // While the machine stalls, tokens come back.
    let limited = async {
        loop {
            client.say(json!({ "ping": {} })).await;
            let answer = client.hear().await;
            if answer != json!({ "pong": { "id": "" } }) {
                break answer;
            }
        }
    };
    let limited = timeout(PATIENCE, limited).await.expect("no frame is too many");
    assert_eq!((reason(&limited), &limited["error"]["retryAfterMs"]), ("RATE_LIMITED", &json!(1_000)));
    for _ in 0..20 {
        // The connection may be closed before the last of them.
        let _ = client.socket.send(Message::text(json!({ "ping": {} }).to_string())).await;
    }
    assert_eq!(client.hear_close().await.0, 1008);
}

/// They passed by the bound on frames.
#[tokio::test]
async fn far_too_many_frames_of_any_kind_close_the_connection() {
    let scene = Scene::new().await;
    let options = gateway::Options { frames_per_second: 1, frames_at_once: 5, ..Default::default() };
    let replica = scene.replica_with(fanout::Options::default(), options).await;
    let frames = [
        (Message::binary(vec![7]), "far too many frames"),
        (Message::Ping(vec![7].into()), "far too many pings"),
        (Message::Pong(vec![7].into()), "far too many pings"),
    ];
    for (frame, why) in frames {
        let mut client = Client::connect(&scene, &replica).await;
        for _ in 0..300 {
            // The connection may be closed before the last of them.
            let _ = client.socket.send(frame.clone()).await;
        }
        let (code, reason, _) = client.hear_close().await;
        assert_eq!((code, reason.as_str()), (1008, why));
    }
}

/// Each came back, as large as it was, in nobody's room.
#[tokio::test]
async fn a_large_id_is_refused_and_not_said_again() {
    let scene = Scene::new().await;
    let (replica, session) = (scene.replica().await, scene.session().await);
    let mut client = Client::connect(&scene, &replica).await;
    let large = "x".repeat(100 * 1024);
    for frame in [
        json!({ "ping": { "id": large } }),
        json!({ "interrupt": { "sessionId": large } }),
        json!({ "approve": { "sessionId": session.to_string(), "approvalId": large } }),
    ] {
        client.say(frame).await;
        let refused = client.hear().await;
        assert_eq!(reason(&refused), "INVALID_ARGUMENT");
        assert!(refused.to_string().len() < 1_000, "it is said again");
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_is_closed_with_the_number_to_resume_from_and_slows_nobody() {
    let scene = Scene::new().await;
    let bounds = fanout::Options { subscriber_events_max: 16, ..Default::default() };
    let replica = scene.replica_with(bounds, gateway::Options::default()).await;
    let session = scene.session().await;
    let mut stuck = Client::connect(&scene, &replica).await;
    stuck.subscribe(session, 1).await;
    let mut quick = Client::connect(&scene, &replica).await;
    quick.subscribe(session, 1).await;

    // More than the kernel buffers between us and the queue behind them.
    let (large, count) = ("x".repeat(256 * 1024), 120);
    for expected in 2..2 + count {
        scene.publish(&replica, session, user_message(&large)).await;
        assert_eq!(quick.hear_number().await, expected);
    }
    let (code, reason, frames) = stuck.hear_close().await;
    assert_eq!(code, 1013);
    let reason: Value = serde_json::from_str(&reason).unwrap();
    assert_eq!(reason["sessionId"], session.to_string());
    let since: u64 = reason["since"].as_str().unwrap().parse().unwrap();
    assert_eq!(since, 1 + frames as u64, "the last number that came");
    assert!(since < 1 + count);

    let mut again = Client::connect(&scene, &replica).await;
    again.subscribe(session, since).await;
    assert_eq!(again.hear_number().await, since + 1);
}

#[tokio::test]
async fn a_peer_that_is_not_there_any_more_is_noticed() {
    let scene = Scene::new().await;
    let options = gateway::Options { keep_alive: Duration::from_secs(2), ..Default::default() };
    let replica = scene.replica_with(fanout::Options::default(), options).await;
    // It shakes hands, and then answers no ping.
    let mut silent = TcpStream::connect(replica.address).await.unwrap();
    let request = format!(
        "GET /v1/ws HTTP/1.1\r\nhost: heron\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nauthorization: Bearer {}\r\n\r\n",
        scene.key
    );
    silent.write_all(request.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    silent.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 101");
    let mut answering = Client::connect(&scene, &replica).await;
    let (mut hung_up, mut pings, mut rest) = (false, 0, Vec::new());
    let noticed = async {
        while !hung_up || pings < 2 {
            tokio::select! {
                // Its end may come as a reset.
                _ = silent.read_to_end(&mut rest), if !hung_up => hung_up = true,
                message = answering.socket.next() => {
                    assert!(matches!(message, Some(Ok(Message::Ping(_)))), "{message:?}");
                    pings += 1;
                }
            }
        }
    };
    timeout(PATIENCE, noticed).await.expect("it is still there");
    replica.wait_for_connections("websocket", 1).await;
    answering.say(json!({ "ping": {} })).await;
    assert_eq!(answering.hear().await, json!({ "pong": { "id": "" } }));
}

#[tokio::test]
async fn connections_are_closed_with_their_credential_and_at_shutdown() {
    let scene = Scene::new().await;
    let options = gateway::Options { recheck_every: Duration::from_millis(50), ..Default::default() };
    let replica = scene.replica_with(fanout::Options::default(), options).await;
    let mut client = Client::connect(&scene, &replica).await;
    scene.remove_tenants();
    assert_eq!(client.hear_close().await.0, 1008);

    let scene = Scene::new().await;
    let replica = scene.replica().await;
    let session = scene.session().await;
    let mut client = Client::connect(&scene, &replica).await;
    client.subscribe(session, 1).await;
    let Replica { tasks, hub, .. } = replica;
    drop(hub);
    let (left, (code, ..)) = tokio::join!(tasks.shutdown(PATIENCE), client.hear_close());
    assert_eq!((left, code), (0, 1001));
}

#[tokio::test]
async fn many_clients_hear_the_same_in_the_same_order() {
    let scene = Scene::new().await;
    let [ours, theirs] = [scene.replica().await, scene.replica().await];
    let session = scene.session().await;
    let mut clients = Vec::new();
    for client in 0..20 {
        let mut client = Client::connect(&scene, if client % 2 == 0 { &ours } else { &theirs }).await;
        client.subscribe(session, 1).await;
        clients.push(client);
    }
    let publish = async {
        for round in 0..50 {
            let replica = if round % 3 == 0 { &ours } else { &theirs };
            scene.publish(replica, session, user_message("hello")).await;
        }
    };
    let hear = futures::future::join_all(clients.iter_mut().map(|client| async {
        for expected in 2..52 {
            assert_eq!(client.hear_number().await, expected);
        }
    }));
    tokio::join!(publish, hear);
}
