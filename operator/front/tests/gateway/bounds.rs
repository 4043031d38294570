//! Cursors that lead nowhere, and how much one client and one tenant may ask for.

use std::time::Duration;

use croft_front::seats::Seats;
use croft_front::session::retention::store::RetentionStore;
use croft_proto::Timestamp;
use croft_proto::id::SessionId;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::http::{bearer, get};
use crate::scene::{PATIENCE, Replica, Scene, terminated};
use crate::websocket::{Client, reason};

/// What SSE and WebSocket answer to a cursor.
async fn refusals(scene: &Scene, replica: &Replica, session: SessionId, cursor: u64) -> [Value; 2] {
    let headers: Vec<_> = bearer(&scene.key).into_iter().chain([format!("last-event-id: {cursor}")]).collect();
    let answer = get(replica.address, &format!("/v1/sessions/{session}/events"), &headers).await;
    assert!(answer.status >= 400, "{}", answer.head);
    let by_stream = answer.json().await["error"].take();
    let mut client = Client::connect(scene, replica).await;
    client.say(json!({ "subscribe": { "sessionId": session.to_string(), "since": cursor.to_string() } })).await;
    let mut by_socket = client.hear().await["error"].take();
    assert_eq!(by_socket["sessionId"].take(), session.to_string());
    by_socket.as_object_mut().unwrap().remove("sessionId");
    [by_stream, by_socket]
}

#[tokio::test]
async fn a_cursor_beyond_the_end_says_where_the_end_is() {
    let scene = Scene::new().await;
    let (replica, session) = (scene.replica().await, scene.session().await);
    let expected = json!({
        "reason": "CURSOR_BEYOND_END", "message": "after_seq 7 is beyond the last event, 1",
    });
    assert_eq!(refusals(&scene, &replica, session, 7).await, [expected.clone(), expected]);
}

#[tokio::test]
async fn the_cursor_of_an_erased_session_is_as_one_of_a_session_that_never_was() {
    let scene = Scene::new().await;
    let (replica, session) = (scene.replica().await, scene.session().await);
    scene.publish(&replica, session, terminated()).await;
    let before = Timestamp { seconds: 1_700_000_001, nanos: 0 };
    assert_eq!(scene.store.erase_ended(scene.tenant, before, 10, 100).await.unwrap().sessions, 1);
    let (never, unlike) = (SessionId::generate(), |refusals: [Value; 2], id: SessionId| {
        refusals.map(|refusal| refusal.to_string().replace(&id.to_string(), "…"))
    });
    for cursor in [0, 1, 2, 99] {
        let of_erased = unlike(refusals(&scene, &replica, session, cursor).await, session);
        let of_unknown = unlike(refusals(&scene, &replica, never, cursor).await, never);
        assert_eq!(of_erased, of_unknown);
        assert!(of_erased.iter().all(|refusal| refusal.contains("SESSION_NOT_FOUND")), "{of_erased:?}");
    }
}

#[tokio::test]
async fn to_one_socket_a_foreign_session_is_as_one_that_never_was() {
    let scene = Scene::new().await;
    let replica = scene.replica().await;
    let (other, _) = scene.other_tenant().await;
    let (theirs, never) = (scene.session_of(other).await, SessionId::generate());
    let mut client = Client::connect(&scene, &replica).await;
    let mut answers = Vec::new();
    for id in [theirs, never] {
        client.say(json!({ "subscribe": { "sessionId": id.to_string(), "since": "3" } })).await;
        answers.push(client.hear().await.to_string().replace(&id.to_string(), "…"));
    }
    assert_eq!(answers[0], answers[1]);
    assert!(answers[0].contains("SESSION_NOT_FOUND"), "{}", answers[0]);
}

/// A client that was told to connect again met its own seats, for as long as the connection of before was waited for.
#[tokio::test]
async fn what_a_websocket_listens_to_is_given_back_before_it_is_told_to_go() {
    let mut scene = Scene::new().await;
    scene.seats = Seats::new(3, 100);
    let (replica, session) = (scene.replica().await, scene.session().await);
    let mut client = Client::connect(&scene, &replica).await;
    client.subscribe(session, 1).await;
    // What is left of such a frame is waited for after the close.
    let large = json!({ "ping": { "id": "x".repeat(1024 * 1024) } });
    client.try_say(large).await.unwrap();
    assert_eq!(client.hear_close().await.0, 1009);
    let mut again = Client::connect(&scene, &replica).await;
    again.subscribe(session, 1).await;
}

#[tokio::test]
async fn a_tenant_has_so_many_streams_over_all_its_connections_and_no_other_tenant_feels_it() {
    let mut scene = Scene::new().await;
    scene.seats = Seats::new(3, 100);
    let (replica, session) = (scene.replica().await, scene.session().await);
    let path = format!("/v1/sessions/{session}/events");
    // A WebSocket, its subscription, and a stream.
    let mut client = Client::connect(&scene, &replica).await;
    client.subscribe(session, 1).await;
    let stream = get(replica.address, &path, &bearer(&scene.key)).await;
    assert_eq!(stream.status, 200);

    let refused = get(replica.address, &path, &bearer(&scene.key)).await;
    assert_eq!((refused.status, refused.json().await["error"]["reason"].take()), (429, json!("STREAM_LIMIT")));
    let another = scene.session().await;
    client.say(json!({ "subscribe": { "sessionId": another.to_string() } })).await;
    assert_eq!(reason(&client.hear().await), "STREAM_LIMIT");
    let (other, key) = scene.other_tenant().await;
    let theirs = scene.session_of(other).await;
    let answer = get(replica.address, &format!("/v1/sessions/{theirs}/events"), &bearer(&key)).await;
    assert_eq!(answer.status, 200, "the other tenant has its own");

    // What is closed makes room.
    client.say(json!({ "unsubscribe": { "sessionId": session.to_string() } })).await;
    client.hear().await;
    client.say(json!({ "subscribe": { "sessionId": another.to_string(), "since": "1" } })).await;
    assert_eq!(client.hear().await["subscribed"]["sessionId"], another.to_string());
    drop(client);
    replica.wait_for_connections("websocket", 0).await;
    let mut open = Vec::new();
    for _ in 0..2 {
        open.push(get(replica.address, &path, &bearer(&scene.key)).await);
    }
    assert!(open.iter().all(|answer| answer.status == 200));
}

/// A client that subscribes and leaves as fast as it can is slowed down, then hung up on, and leaves nothing behind.
#[tokio::test]
async fn a_flood_of_subscriptions_ends_and_leaves_nothing_behind() {
    let scene = Scene::new().await;
    let (replica, session) = (scene.replica().await, scene.session().await);
    let mut client = Client::connect(&scene, &replica).await;
    let mut quiet = Client::connect(&scene, &replica).await;
    quiet.subscribe(session, 1).await;
    for round in 0..1_000 {
        let name = if round % 2 == 0 { "subscribe" } else { "unsubscribe" };
        if client.try_say(json!({ name: { "sessionId": session.to_string() } })).await.is_err() {
            break;
        }
    }
    assert_eq!(client.hear_close().await.0, 1008);
    replica.wait_for_connections("websocket", 1).await;
    scene.publish(&replica, session, terminated()).await;
    assert_eq!(quiet.hear_number().await, 2, "another connection has not noticed");
    drop(quiet);
    replica.wait_for_connections("websocket", 0).await;
    let empty = async {
        while scene.seats.of(scene.tenant) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, empty).await.expect("seats are left");
}

/// Once, a megabyte of nothing became a few hundred of values, for as many connections as there were.
#[tokio::test]
async fn a_message_of_a_great_many_parts_is_refused_before_anything_is_made_of_it() {
    let scene = Scene::new().await;
    let (replica, session) = (scene.replica().await, scene.session().await);
    let mut client = Client::connect(&scene, &replica).await;
    let send = |blocks: Vec<Value>| json!({ "send": { "sessionId": session.to_string(), "content": blocks } });
    let frame = send(vec![json!({}); 340_000]);
    assert!(frame.to_string().len() < 1024 * 1024, "it would be refused for its size");
    client.say(frame).await;
    let refused = client.hear().await;
    assert_eq!(
        (reason(&refused), &refused["error"]["message"]),
        ("INVALID_ARGUMENT", &json!("the frame has too many parts"))
    );
    assert!(scene.calls.sent.lock().unwrap().is_empty());
    client.say(send(vec![json!({ "text": { "text": "{[,".repeat(100_000) } }); 3])).await;
    assert_eq!(client.hear().await["sent"]["seq"], "1", "what people mean is taken, whatever it is about");
}

#[tokio::test]
async fn a_frame_that_says_it_is_ten_megabytes_is_not_waited_for() {
    let scene = Scene::new().await;
    let replica = scene.replica().await;
    let mut stream = tokio::net::TcpStream::connect(replica.address).await.unwrap();
    let request = format!(
        "GET /v1/ws HTTP/1.1\r\nhost: heron\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nauthorization: Bearer {}\r\n\r\n",
        scene.key
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    // RFC 6455, section 5.2: the last frame of a text, masked, with a length of eight bytes; then nothing of it.
    stream.write_all(&[0x81, 0xff]).await.unwrap();
    stream.write_all(&10_485_760_u64.to_be_bytes()).await.unwrap();
    stream.write_all(&[1, 2, 3, 4]).await.unwrap();
    let mut close = [0; 4];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut close)).await.expect("it waits for the rest").unwrap();
    assert_eq!((close[0], u16::from_be_bytes([close[2], close[3]])), (0x88, 1009));
}
