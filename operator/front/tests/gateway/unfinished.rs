//! Messages over a WebSocket of which a part comes, and no more.

use std::time::Duration;

use croft_front::{events::fanout, gateway};
use croft_serve::connections::Bounds;
use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::scene::{PATIENCE, Replica, Scene};
use crate::websocket::Client;

/// A text that goes on behind this part of it: RFC 6455, sections 5.2 and 5.4, with a mask that changes nothing.
fn part(bytes: u16) -> Vec<u8> {
    let [high, low] = bytes.to_be_bytes();
    let mut frame = vec![0x01, 0xfe, high, low, 0, 0, 0, 0];
    frame.resize(frame.len() + usize::from(bytes), b'x');
    frame
}

/// A text of a MiB, of which half has come.
fn half() -> Vec<u8> {
    const WHOLE: usize = 1024 * 1024;
    let mut frame = vec![0x81, 0xff];
    frame.extend((WHOLE as u64).to_be_bytes());
    frame.extend([0; 4]);
    frame.resize(frame.len() + WHOLE / 2, b'x');
    frame
}

async fn say(client: &mut Client, bytes: &[u8]) {
    client.socket.get_mut().write_all(bytes).await.unwrap();
}

async fn quick(scene: &Scene, keep_alive: Duration) -> Replica {
    let options = gateway::Options { keep_alive, frame_within: keep_alive * 2, ..gateway::Options::default() };
    scene.replica_within(fanout::Options::default(), options, Bounds::default()).await
}

/// Each held a MiB that nothing counted: the sockets of one key could fill a replica.
#[tokio::test]
async fn parts_of_messages_take_of_their_tenants_room_and_of_nobody_elses() {
    let mut scene = Scene::new().await;
    let replica = scene.replica().await;
    let mut halves = Vec::new();
    for _ in 0..60 {
        let mut client = Client::connect(&scene, &replica).await;
        say(&mut client, &half()).await;
        halves.push(client);
    }
    let crowded = async {
        // All but what 24 MiB hold.
        while replica.told("croft_gateway_websocket_closes_total") < 12.0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, crowded).await.expect("all of them are kept");
    let closed = halves.pop().unwrap().hear_close().await;
    assert_eq!((closed.0, closed.1.as_str()), (1008, "too much of the tenant's is being read: send it later"));
    let large = json!({ "send": { "sessionId": "…", "content": [{ "text": { "text": "x".repeat(900_000) } }] } });
    let own = scene.key.clone();
    (_, scene.key) = scene.other_tenant().await;
    let mut other = Client::connect(&scene, &replica).await;
    other.say(large.clone()).await;
    assert!(other.hear().await["sent"].is_object());
    scene.key = own;
    // What is small is not reckoned, and there is room again when they have gone.
    let mut client = Client::connect(&scene, &replica).await;
    client.say(json!({ "ping": { "id": "1" } })).await;
    assert_eq!(client.hear().await, json!({ "pong": { "id": "1" } }));
    drop(halves);
    replica.wait_for_connections("websocket", 2).await;
    client.say(large).await;
    assert!(client.hear().await["sent"].is_object());
}

/// The library keeps the room of a socket's largest frame: one large frame of each was enough to fill a replica.
#[tokio::test]
async fn sockets_that_keep_the_room_of_large_frames_go_where_they_are_many() {
    let scene = Scene::new().await;
    let replica = scene.replica().await;
    let large = json!({ "send": { "sessionId": "…", "content": [{ "text": { "text": "x".repeat(1_000_000) } }] } });
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = Client::connect(&scene, &replica).await;
        client.say(large.clone()).await;
        assert!(client.hear().await["sent"].is_object(), "each is answered");
        clients.push(client);
    }
    // Those whose frame was longest ago.
    replica.wait_for_connections("websocket", 16).await;
    for client in &mut clients[..4] {
        let (code, reason, _) = client.hear_close().await;
        assert_eq!((code, reason.as_str()), (1001, "its frames took room that others need: connect again"));
    }
    for client in &mut clients[4..] {
        client.say(json!({ "ping": { "id": "1" } })).await;
        assert_eq!(client.hear().await, json!({ "pong": { "id": "1" } }));
    }
}

#[tokio::test]
async fn a_message_that_does_not_come_to_its_end_is_not_waited_for_though_its_client_is_there() {
    let scene = Scene::new().await;
    let replica = quick(&scene, Duration::from_millis(250)).await;
    let mut client = Client::connect(&scene, &replica).await;
    say(&mut client, &part(1_000)).await;
    // It answers pings meanwhile, in the middle of the message.
    let closed = client.hear_close().await;
    assert_eq!((closed.0, closed.1.as_str()), (1008, "a frame did not come to its end"));
    assert!(closed.2 > 0, "it was asked for no sign of life");
}

#[tokio::test]
async fn a_client_that_answers_pings_and_says_nothing_is_no_message_that_does_not_end() {
    let scene = Scene::new().await;
    let replica = quick(&scene, Duration::from_millis(250)).await;
    let mut client = Client::connect(&scene, &replica).await;
    let pings = async {
        for _ in 0..8 {
            // Reading them answers them.
            let _ = futures::StreamExt::next(&mut client.socket).await.unwrap().unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, pings).await.expect("no pings came");
    client.say(json!({ "ping": { "id": "2" } })).await;
    assert_eq!(client.hear().await, json!({ "pong": { "id": "2" } }));
}
