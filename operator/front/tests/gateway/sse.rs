//! Events of one session as server-sent events.

use std::time::Duration;

use croft_front::{events::fanout, gateway};
use serde_json::{Value, json};

use crate::http::{Answer, bearer, get};
use crate::scene::{PATIENCE, Replica, Scene, agent_message, from_later_on, terminated, user_message};

/// One message of the stream.
#[derive(Debug, Default, PartialEq)]
struct Message {
    id: Option<String>,
    event: Option<String>,
    retry: Option<u64>,
    data: Value,
}

struct Stream {
    answer: Answer,
    read: String,
}

impl Stream {
    async fn open(scene: &Scene, replica: &Replica, path: &str, last_event_id: Option<u64>) -> Self {
        let last_event_id = last_event_id.map(|id| format!("last-event-id: {id}"));
        Self::of(replica, path, bearer(&scene.key).into_iter().chain(last_event_id).collect()).await
    }

    async fn of(replica: &Replica, path: &str, headers: Vec<String>) -> Self {
        let answer = get(replica.address, path, &headers).await;
        assert_eq!(answer.status, 200);
        assert!(answer.head.contains("content-type: text/event-stream"), "{}", answer.head);
        Self { answer, read: String::new() }
    }

    /// The next block of lines, which may be a comment; `None` at the end.
    async fn block(&mut self) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.read.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.read = rest;
                return Some(block);
            }
            self.read.push_str(&self.answer.chunk().await?);
        }
    }

    /// What a browser shows of the stream: the next message that says something, and the time to come back that was told by then.
    async fn message(&mut self) -> Option<Message> {
        let mut message = Message::default();
        while message.data.is_null() {
            self.take_up(&mut message).await?;
        }
        Some(message)
    }

    async fn take_up(&mut self, message: &mut Message) -> Option<()> {
        for line in self.block().await?.lines() {
            match line.split_once(": ") {
                Some(("id", id)) => message.id = Some(id.to_owned()),
                Some(("event", event)) => message.event = Some(event.to_owned()),
                Some(("data", data)) => message.data = serde_json::from_str(data).unwrap(),
                Some(("retry", milliseconds)) => message.retry = Some(milliseconds.parse().unwrap()),
                _ => panic!("what is this: {line}"),
            }
        }
        Some(())
    }

    async fn id(&mut self) -> String {
        self.message().await.expect("the stream has ended").id.expect("it is no durable event")
    }
}

#[tokio::test]
async fn history_and_what_happens_at_another_replica_are_one_stream_that_ends_with_the_session() {
    let scene = Scene::new().await;
    let [ours, theirs] = [scene.replica().await, scene.replica().await];
    let session = scene.session().await;
    scene.publish(&theirs, session, user_message("hello")).await;
    let _turn = theirs.hub.controls(scene.tenant, session).await;
    let mut stream = Stream::open(&scene, &ours, &format!("/v1/sessions/{session}/events"), None).await;
    assert_eq!(stream.id().await, "1");
    let message = stream.message().await.unwrap();
    assert_eq!(message.id.as_deref(), Some("2"));
    assert_eq!(message.data["seq"], "2");
    assert_eq!(message.data["userMessage"], json!({ "content": [{ "text": { "text": "hello" } }] }));

    scene.publish(&theirs, session, user_message("go on")).await;
    assert_eq!(stream.id().await, "3");
    scene.preview(&theirs, session, "so");
    let preview = stream.message().await.unwrap();
    assert_eq!((preview.id, preview.data["textDelta"]["text"].as_str()), (None, Some("so")));
    scene.publish(&theirs, session, agent_message()).await;
    scene.publish(&theirs, session, terminated()).await;
    assert_eq!((stream.id().await, stream.id().await), ("4".to_owned(), "5".to_owned()));
    assert_eq!(stream.message().await, None);
}

#[tokio::test]
async fn a_stream_goes_on_from_its_cursor_at_any_replica() {
    let scene = Scene::new().await;
    let [ours, theirs] = [scene.replica().await, scene.replica().await];
    let session = scene.session().await;
    for _ in 0..5 {
        scene.publish(&ours, session, user_message("hello")).await;
    }
    let path = format!("/v1/sessions/{session}/events");
    let mut stream = Stream::open(&scene, &ours, &format!("{path}?after_seq=3"), None).await;
    assert_eq!(stream.id().await, "4");
    drop(stream);
    // The browser asks for the same address again, and says what it has had.
    let mut stream = Stream::open(&scene, &theirs, &format!("{path}?after_seq=3"), Some(4)).await;
    assert_eq!((stream.id().await, stream.id().await), ("5".to_owned(), "6".to_owned()));
}

/// The stream broke off there, and so did each that followed it.
#[tokio::test]
async fn an_event_that_a_later_release_has_stored_is_told_by_its_number() {
    let scene = Scene::new().await;
    let (replica, session) = (scene.replica().await, scene.session().await);
    scene.publish(&replica, session, from_later_on()).await;
    scene.publish(&replica, session, agent_message()).await;
    let mut stream = Stream::open(&scene, &replica, &format!("/v1/sessions/{session}/events?after_seq=1"), None).await;
    let message = stream.message().await.unwrap();
    assert_eq!((message.id.as_deref(), message.data["seq"].as_str()), (Some("2"), Some("2")));
    assert_eq!(stream.id().await, "3");
}

#[tokio::test]
async fn a_key_in_the_query_will_do_and_previews_can_be_left_out() {
    let scene = Scene::new().await;
    let (replica, session) = (scene.replica().await, scene.session().await);
    let _turn = replica.hub.controls(scene.tenant, session).await;
    let path = format!("/v1/sessions/{session}/events?durable_only=true&access_token={}", scene.key);
    let mut stream = Stream { answer: get(replica.address, &path, &[]).await, read: String::new() };
    assert_eq!(stream.id().await, "1");
    scene.publish(&replica, session, user_message("hello")).await;
    scene.preview(&replica, session, "so");
    scene.publish(&replica, session, agent_message()).await;
    assert_eq!((stream.id().await, stream.id().await), ("2".to_owned(), "3".to_owned()));
}

#[tokio::test]
async fn a_quiet_stream_shows_signs_of_life() {
    let scene = Scene::new().await;
    let options = gateway::Options { keep_alive: Duration::from_millis(50), ..Default::default() };
    let replica = scene.replica_with(fanout::Options::default(), options).await;
    let session = scene.session().await;
    let mut stream = Stream::open(&scene, &replica, &format!("/v1/sessions/{session}/events"), None).await;
    assert_eq!(stream.id().await, "1");
    assert!(stream.block().await.unwrap().starts_with(':'), "a comment");
}

#[tokio::test]
async fn streams_end_at_shutdown_and_with_their_credential() {
    let scene = Scene::new().await;
    let options = gateway::Options { recheck_every: Duration::from_millis(50), ..Default::default() };
    let replica = scene.replica_with(fanout::Options::default(), options).await;
    let session = scene.session().await;
    let path = format!("/v1/sessions/{session}/events");

    let mut stream = Stream::open(&scene, &replica, &path, None).await;
    assert_eq!(stream.id().await, "1");
    scene.remove_tenants();
    let last = stream.message().await.unwrap();
    assert_eq!((last.event.as_deref(), &last.data["error"]["reason"]), (Some("error"), &json!("CREDENTIAL_ENDED")));
    assert_eq!(stream.message().await, None);
    replica.wait_for_connections("sse", 0).await;

    let scene = Scene::new().await;
    let replica = scene.replica().await;
    let session = scene.session().await;
    let mut stream = Stream::open(&scene, &replica, &format!("/v1/sessions/{session}/events"), None).await;
    assert_eq!(stream.id().await, "1");
    let Replica { tasks, hub, .. } = replica;
    drop(hub);
    let (left, last) = tokio::join!(tasks.shutdown(PATIENCE), stream.message());
    assert_eq!((left, last), (0, None));
}

#[tokio::test]
async fn at_its_bound_the_port_refuses_and_says_when_to_come_back() {
    let scene = Scene::new().await;
    let options = gateway::Options { connections_max: 1, ..Default::default() };
    let replica = scene.replica_with(fanout::Options::default(), options).await;
    let session = scene.session().await;
    let path = format!("/v1/sessions/{session}/events");
    let mut stream = Stream::open(&scene, &replica, &path, None).await;
    assert_eq!(stream.id().await, "1");
    let refused = get(replica.address, &path, &bearer(&scene.key)).await;
    assert_eq!(refused.status, 503);
    assert!(refused.head.contains("retry-after: 1"));
    drop(stream);
    replica.wait_for_connections("sse", 0).await;
    Stream::open(&scene, &replica, &path, None).await;
}

/// Browsers never come back from any answer but 200, so that one refusal ended a page's stream for good.
#[tokio::test]
async fn a_browser_that_can_not_go_on_for_now_is_told_to_come_back() {
    let scene = Scene::new().await;
    let options = gateway::Options { connections_max: 1, ..Default::default() };
    let replica = scene.replica_with(fanout::Options::default(), options).await;
    let session = scene.session().await;
    for _ in 0..3 {
        scene.publish(&replica, session, user_message("hello")).await;
    }
    let path = format!("/v1/sessions/{session}/events");
    let behind = format!("{path}?after_seq=3");
    let with = |header: &str| bearer(&scene.key).into_iter().chain([header.to_owned()]).collect::<Vec<_>>();
    let (comes_back, accepts) = (with("last-event-id: 3"), with("accept: text/event-stream"));

    // Neither a call of the tenant's is left, nor a stream that it may resume.
    *scene.calls.left.lock().unwrap() = Some(0);
    *scene.calls.resumes_left.lock().unwrap() = Some(0);
    for (path, headers) in [(&path, &comes_back), (&behind, &comes_back), (&behind, &accepts)] {
        let mut stream = Stream::of(&replica, path, headers.clone()).await;
        let told = stream.message().await.unwrap();
        assert_eq!((told.event.as_deref(), &told.data["error"]["reason"]), (Some("error"), &json!("RATE_LIMITED")));
        assert_eq!(told.id.as_deref(), Some("3"), "it would forget where it was");
        let retry = told.retry.unwrap();
        assert!((1_500..=6_500).contains(&retry), "{retry}");
        assert_eq!(stream.message().await, None);
    }
    // Whoever begins, or asks as a program does, sees it in the status.
    for (path, headers) in [(&path, &accepts), (&behind, &bearer(&scene.key))] {
        assert_eq!(get(replica.address, path, headers).await.status, 429, "{path} {headers:?}");
    }

    // There is room in the one window again, which is all that goes on.
    *scene.calls.resumes_left.lock().unwrap() = Some(1);
    let mut stream = Stream::of(&replica, &path, comes_back.clone()).await;
    let served = stream.message().await.unwrap();
    assert_eq!((served.id.as_deref(), served.retry), (Some("4"), Some(3_000)), "it comes back as soon as ever again");
    *scene.calls.resumes_left.lock().unwrap() = None;
    let told = Stream::of(&replica, &path, comes_back.clone()).await.message().await.unwrap();
    assert_eq!(told.data["error"]["reason"], "UNAVAILABLE", "the port has no more connections");
    let never = get(replica.address, &path, &["last-event-id: 3".to_owned()]).await;
    assert_eq!(never.status, 401, "what no time mends");
}
