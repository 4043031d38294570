//! A front that goes away, and all who watched there: each goes on at another, however few calls their tenant has in a minute.

use croft_e2e::client::{Client, message, scripted_agent};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    BusyPolicy, SendMessageRequest, StopReason, StreamEventsRequest, StreamEventsResponse, TenantLimits,
};
use croft_serve::Tasks;
use futures::future::join_all;
use tokio::time::timeout;
use tonic::{Code, Streaming};

use crate::world::{PATIENCE, World, read_all, stop_reason};

/// Of each kind; far more than the tenant has calls.
const WATCHERS: usize = 12;
const CALLS: u32 = 4;

/// What is there of a session before anybody says something.
const BEGUN: u64 = 2;

async fn watch(client: &mut Client, session_id: &str, after_seq: u64) -> Streaming<StreamEventsResponse> {
    let request = StreamEventsRequest { session_id: session_id.to_owned(), after_seq, durable_only: true };
    client.lifecycle.stream_events(request).await.unwrap().into_inner()
}

/// The number of the turn's last event, which comes without a hole.
async fn to_the_turns_end(mut events: Streaming<StreamEventsResponse>, mut last_seq: u64) -> u64 {
    loop {
        let event = events.message().await.unwrap().unwrap().event.unwrap();
        assert_eq!(event.seq, last_seq + 1);
        last_seq = event.seq;
        if let Some(Kind::SessionIdle(_)) = event.kind {
            return last_seq;
        }
    }
}

/// As a browser: the same address, and with what it has had.
async fn event_source(world: &World, address: &str, last_event_id: Option<u64>) -> reqwest::Response {
    let mut request = reqwest::Client::new().get(address).bearer_auth(&world.api_key);
    request = request.header("accept", "text/event-stream");
    if let Some(last_event_id) = last_event_id {
        request = request.header("last-event-id", last_event_id.to_string());
    }
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    response
}

/// Reads on until this is said, or to the end.
async fn heard(stream: &mut reqwest::Response, wanted: &str) -> String {
    let mut text = String::new();
    while !text.contains(wanted) {
        let Some(chunk) = stream.chunk().await.unwrap() else { break };
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    text
}

#[tokio::test]
async fn all_who_watch_at_a_front_that_goes_watch_on_at_another() {
    let world = World::start().await;
    let mut client = world.client();
    let session_id = client.create(scripted_agent("watched")).await.unwrap().session_id;
    let going = Tasks::new();
    let (grpc, http) = world.front_with(&going).await;
    let (session_id, world) = (session_id.as_str(), &world);
    let path = format!("v1/sessions/{session_id}/events?durable_only=true");
    let mut there = Client::new(&grpc.to_string(), &world.api_key).unwrap();
    let (mut programs, mut browsers) = (Vec::new(), Vec::new());
    for _ in 0..WATCHERS {
        let mut events = watch(&mut there, session_id, 0).await;
        for seq in 1..=BEGUN {
            assert_eq!(events.message().await.unwrap().unwrap().event.unwrap().seq, seq);
        }
        programs.push(events);
        let mut stream = event_source(world, &format!("http://{http}/{path}"), None).await;
        assert!(heard(&mut stream, "id: 2\n").await.contains("id: 2\n"));
        browsers.push(stream);
    }

    world.reroute(|route| {
        route.limits = Some(TenantLimits { requests_per_minute: CALLS, ..TenantLimits::default() });
    });
    let programs = join_all(programs.into_iter().map(async |mut events| {
        let cut = events.message().await.unwrap_err();
        assert_eq!(cut.code(), Code::Unavailable, "{cut:?}");
        watch(&mut world.client(), session_id, BEGUN).await
    }));
    let browsers = join_all(browsers.into_iter().map(async |mut stream| {
        heard(&mut stream, "never said").await;
        event_source(world, &format!("http://{}/{path}", world.http), Some(BEGUN)).await
    }));
    let gone = async { tokio::join!(going.shutdown(PATIENCE), programs, browsers) };
    let (left, programs, browsers) = timeout(PATIENCE, gone).await.expect("somebody is still there");
    assert_eq!(left, 0);

    // Nothing of this was a call.
    for _ in 1..CALLS {
        world.client().create(scripted_agent("another")).await.unwrap();
    }
    let turn = client.lifecycle.send_message(message(session_id, r#"{"script": [{"text": "all of you"}]}"#)).await;
    let turn = read_all(turn.unwrap().into_inner()).await;
    assert_eq!(stop_reason(&turn), Some(StopReason::EndTurn));
    let last_seq = turn.last().unwrap().seq;
    for events in programs {
        assert_eq!(timeout(PATIENCE, to_the_turns_end(events, BEGUN)).await.expect("it hears nothing"), last_seq);
    }
    for mut stream in browsers {
        let text = timeout(PATIENCE, heard(&mut stream, "sessionIdle")).await.expect("it hears nothing");
        for seq in BEGUN + 1..=last_seq {
            assert_eq!(text.matches(&format!("id: {seq}\n")).count(), 1, "{text}");
        }
        assert!(!text.contains("RATE_LIMITED"), "{text}");
    }
    let refused = client.create(scripted_agent("one-too-many")).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
}

/// Its front drove nothing for it, and waited for the other's turn until its grace was over.
#[tokio::test]
async fn who_waits_at_a_front_that_goes_for_a_turn_of_another_is_told_to_go_on_there() {
    let world = World::start().await;
    let mut client = world.client();
    let session_id = client.create(scripted_agent("busy")).await.unwrap().session_id;
    let endless = r#"{"script": [{"text": "word "}, {"delay_ms": 600000}]}"#;
    let _running = client.lifecycle.send_message(message(&session_id, endless)).await.unwrap();
    let going = Tasks::new();
    let mut there = world.client_of_a_front_with(&going).await;
    let waits = SendMessageRequest { busy_policy: BusyPolicy::Enqueue.into(), ..message(&session_id, "hello") };
    let mut waiting = there.lifecycle.send_message(waits).await.unwrap().into_inner();
    let told = async {
        loop {
            match waiting.message().await {
                Ok(Some(_)) => {}
                told => return told,
            }
        }
    };
    let (left, told) = tokio::join!(going.shutdown(PATIENCE), told);
    assert_eq!((left, told.unwrap_err().code()), (0, Code::Unavailable));
}

/// The turn ends here in time, and so does the one that waits behind it.
#[tokio::test]
async fn who_waits_at_a_front_that_goes_for_its_own_turn_sees_it_to_its_end() {
    let world = World::start().await;
    let going = Tasks::new();
    let mut client = world.client_of_a_front_with(&going).await;
    let session_id = client.create(scripted_agent("busy")).await.unwrap().session_id;
    // Longer than streams of others go on.
    let slow = r#"{"script": [{"text": "word "}, {"delay_ms": 7000}, {"text": "and end"}]}"#;
    let running = client.lifecycle.send_message(message(&session_id, slow)).await.unwrap().into_inner();
    let waits = SendMessageRequest { busy_policy: BusyPolicy::Enqueue.into(), ..message(&session_id, "hello") };
    let waiting = client.lifecycle.send_message(waits).await.unwrap().into_inner();
    let (left, first, second) = tokio::join!(going.shutdown(PATIENCE), read_all(running), read_all(waiting));
    assert_eq!(left, 0);
    assert_eq!([stop_reason(&first), stop_reason(&second)], [Some(StopReason::EndTurn); 2]);
}
