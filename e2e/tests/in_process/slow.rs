//! A caller that stops reading holds nobody up, and is told from where to go on; one that comes back finds the rest at any front.

use std::time::Duration;

use croft_e2e::client::{message, scripted_agent};
use croft_front::core::Options;
use croft_front::events::log::{Append, Appended, Authority, NewEvent};
use croft_proto::v1::content_block::Block;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{ContentBlock, SessionState, StopReason, StreamEventsRequest, Text, UserMessage};
use croft_serve::Tasks;
use tokio::time::timeout;
use tonic::Code;
use tonic_types::StatusExt;

use crate::world::{Ground, PATIENCE, World};

/// Stores an event of so many bytes, and shows it, as a turn does.
async fn publish(world: &World, session_id: &str, bytes: usize) -> u64 {
    let block = Some(Block::Text(Text { text: "x".repeat(bytes) }));
    let kind = Kind::UserMessage(UserMessage { content: vec![ContentBlock { block }], ..UserMessage::default() });
    let (tenant, session) = (world.tenant(), session_id.parse().unwrap());
    let append = Append::of(tenant, session, Authority::Caller, vec![NewEvent::now(kind)]);
    let Appended::New(events) = world.core.stores.events.append(append).await.unwrap() else { panic!("it is new") };
    let seq = events[0].seq;
    world.core.hub.publish(tenant, session, events);
    seq
}

#[tokio::test]
async fn a_caller_that_stops_reading_is_told_where_to_go_on_and_slows_nobody() {
    let world = World::start().await;
    let mut client = world.client();
    let session_id = client.create(scripted_agent("stuck")).await.unwrap().session_id;
    let watch = |after_seq| StreamEventsRequest { session_id: session_id.clone(), after_seq, durable_only: true };
    let mut stuck = client.lifecycle.stream_events(watch(2)).await.unwrap().into_inner();
    let mut quick = world.client().lifecycle.stream_events(watch(2)).await.unwrap().into_inner();
    // More than windows and buffers hold between us and the queue behind them.
    let mut last = 0;
    for _ in 0..600 {
        last = publish(&world, &session_id, 64 * 1024).await;
        let heard = tokio::time::timeout(PATIENCE, quick.message()).await.expect("held up").unwrap().unwrap();
        assert_eq!(heard.event.unwrap().seq, last);
    }
    let mut seen = 2;
    let told = loop {
        match tokio::time::timeout(PATIENCE, stuck.message()).await.expect("neither an event nor the end") {
            Ok(event) => {
                let seq = event.expect("it ends without a word").event.unwrap().seq;
                assert_eq!(seq, seen + 1);
                seen = seq;
            }
            Err(status) => break status,
        }
    };
    assert!(seen < last);
    assert_eq!(told.code(), Code::ResourceExhausted, "{told:?}");
    let details = told.get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!((info.reason.as_str(), &info.metadata["resume_after"]), ("SLOW_CONSUMER", &seen.to_string()));

    let mut elsewhere = world.client_of_another_front().await;
    let mut rest = elsewhere.lifecycle.stream_events(watch(seen)).await.unwrap().into_inner();
    for expected in seen + 1..=last {
        let next = tokio::time::timeout(PATIENCE, rest.message()).await.expect("a hole").unwrap().unwrap();
        assert_eq!(next.event.unwrap().seq, expected);
    }
}

/// Its turns need not wait for their leases to run out, which takes ten minutes.
#[tokio::test]
async fn a_front_that_goes_before_its_turns_are_over_leaves_them_to_another_at_once() {
    let options = Options { lease_ttl: Duration::from_mins(10), ..Options::default() };
    let (world, theirs) = (World::on(Ground { options, ..Ground::default() }).await, Tasks::new());
    let mut client = world.client_of_a_front_with(&theirs).await;
    let session_id = client.create(scripted_agent("long")).await.unwrap().session_id;
    let script = r#"{"script": [{"text": "a b c d e f g h i j k l m n o p q r s t", "token_delay_ms": 100}]}"#;
    let mut turn = client.lifecycle.send_message(message(&session_id, script)).await.unwrap().into_inner();
    while !matches!(turn.message().await.unwrap().unwrap().event.unwrap().kind, Some(Kind::TextDelta(_))) {}
    assert!(theirs.shutdown(Duration::from_millis(50)).await > 0, "the turn is not over");
    let taken_over = async {
        while world.core.metrics.takeovers.get() == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, taken_over).await.expect("its lease is waited for");
    world.wait_for(&session_id, |session| session.state == SessionState::Idle).await;
    let log = world.log(&session_id, 0).await;
    let Some(Kind::SessionIdle(idle)) = &log.last().unwrap().kind else { panic!("{log:?}") };
    assert_eq!(idle.stop_reason(), StopReason::EndTurn);
}

#[tokio::test]
async fn a_turn_that_is_left_in_the_middle_is_picked_up_at_another_front() {
    let world = World::start().await;
    let (mut ours, mut theirs) = (world.client(), world.client_of_another_front().await);
    let session_id = ours.create(scripted_agent("nomad")).await.unwrap().session_id;
    let script = r#"{"script": [{"text": "a b c d e f", "token_delay_ms": 500}]}"#;
    let mut turn = ours.lifecycle.send_message(message(&session_id, script)).await.unwrap().into_inner();
    let mut seen = 0;
    loop {
        let event = turn.message().await.unwrap().unwrap().event.unwrap();
        seen = seen.max(event.seq);
        if matches!(event.kind, Some(Kind::TextDelta(_))) {
            break;
        }
    }
    drop(turn);
    let request = StreamEventsRequest { session_id: session_id.clone(), after_seq: seen, durable_only: false };
    let mut rest = theirs.lifecycle.stream_events(request).await.unwrap().into_inner();
    let (mut text, mut previews) = (String::new(), 0);
    loop {
        let next = tokio::time::timeout(PATIENCE, rest.message()).await.expect("nothing came").unwrap().unwrap();
        let event = next.event.unwrap();
        if event.seq > 0 {
            assert_eq!(event.seq, seen + 1, "a hole or a double");
            seen = event.seq;
        }
        match event.kind {
            Some(Kind::TextDelta(_)) => previews += 1,
            Some(Kind::AgentMessage(message)) => text = format!("{:?}", message.content),
            Some(Kind::SessionIdle(_)) => break,
            _ => {}
        }
    }
    assert!(text.contains("a b c d e f"), "{text}");
    assert!(previews > 0, "what happened meanwhile at the other front was not shown");
}
