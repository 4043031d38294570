//! Callers of gRPC that open streams and take nothing of them, over a connection that lives.

use std::time::Duration;

use croft_e2e::client::{Client, scripted_agent};
use croft_front::events::log::{Append, Authority, NewEvent};
use croft_front::unread;
use croft_proto::v1::content_block::Block;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{ContentBlock, StreamEventsRequest, Text, UserMessage};
use tokio::time::timeout;
use tonic::transport::Endpoint;

use crate::world::{PATIENCE, World};

const EVENT_BYTES: usize = 1024 * 1024;

fn told(world: &World, name: &str) -> usize {
    let text = world.metrics.text().unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().parse().unwrap()
}

/// Each held an event of its own, which nothing counted, for as long as it answered pings: a key that may read could fill a front.
#[tokio::test]
async fn what_callers_of_grpc_do_not_take_is_bounded_and_a_caller_that_does_goes_on() {
    let world = World::start().await;
    let session_id = world.client().create(scripted_agent("unread")).await.unwrap().session_id;
    let block = Some(Block::Text(Text { text: "x".repeat(EVENT_BYTES) }));
    let kind = Kind::UserMessage(UserMessage { content: vec![ContentBlock { block }], ..UserMessage::default() });
    let (tenant, session) = (world.tenant(), session_id.parse().unwrap());
    let append = Append::of(tenant, session, Authority::Caller, vec![NewEvent::now(kind)]);
    world.core.stores.events.append(append).await.unwrap();

    let watch = || StreamEventsRequest { session_id: session_id.clone(), after_seq: 2, durable_only: true };
    let endpoint = Endpoint::from_shared(format!("http://{}", world.grpc)).unwrap().initial_stream_window_size(64);
    let mut deaf = Client::over(endpoint.connect().await.unwrap(), &world.api_key).unwrap();
    let mut stuck = Vec::new();
    for _ in 0..40 {
        stuck.push(deaf.lifecycle.stream_events(watch()).await.unwrap());
    }
    let mut reading = world.client().lifecycle.stream_events(watch()).await.unwrap().into_inner();
    let bounded = async {
        while told(&world, "croft_unread_cut_total") == 0 {
            let held = told(&world, "croft_unread_bytes");
            // And two whose size nobody knew before they were there.
            let bound = unread::Options::default().tenant_bytes_max + 3 * EVENT_BYTES;
            assert!(held < bound, "{held} bytes are held");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, bounded).await.expect("nobody is cut off");
    let event = timeout(PATIENCE, reading.message()).await.expect("it is kept waiting").unwrap().unwrap();
    assert_eq!(event.event.unwrap().seq, 3);
    drop(stuck);
}
