//! A mistake of our own in one turn, of which no other turn hears, and which comes only once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use croft_e2e::client::{message, scripted_agent};
use croft_front::store::Stores;
use croft_proto::v1::StopReason;
use croft_proto::v1::session_event::Kind;
use futures::FutureExt as _;
use tokio::time::timeout;

use crate::paused_log::paused;
use crate::world::{Ground, World, names, read_all, stop_reason};

#[tokio::test]
async fn a_turn_whose_driver_panics_ends_with_an_error_at_once_and_the_session_goes_on() {
    let (mut stores, panics) = (Stores::memory(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&panics);
    // As often as it is tried.
    stores.events = paused(stores.events, move |moment| {
        if moment.appends(|kind| matches!(kind, Kind::ToolResult(_))) {
            counted.fetch_add(1, Ordering::SeqCst);
            panic!("on purpose");
        }
        async {}.boxed()
    });
    let world = World::on(Ground { stores, ..Ground::default() }).await;
    let mut client = world.client();
    let session_id = client.create(scripted_agent("unlucky")).await.unwrap().session_id;
    let script = r#"{"script": [{"tool_call": {"name": "clock", "arguments": {}}}, {"text": "never"}]}"#;
    let sent = client.lifecycle.send_message(message(&session_id, script)).await.unwrap();
    let within = world.core.options.lease_ttl / 2;
    let events = timeout(within, read_all(sent.into_inner())).await.expect("nobody waits for the lease to run out");
    assert_eq!(stop_reason(&events), Some(StopReason::Error), "{:?}", names(&events));
    let told = events.iter().find_map(|event| match &event.kind {
        Some(Kind::Error(error)) => Some((error.reason.as_str(), error.message.as_str())),
        _ => None,
    });
    assert_eq!(told, Some(("INTERNAL", "the request could not be carried out")));
    assert_eq!(panics.load(Ordering::SeqCst), 1, "it is not tried again");

    let sent = client.lifecycle.send_message(message(&session_id, "hello")).await.unwrap();
    let events = read_all(sent.into_inner()).await;
    assert_eq!(stop_reason(&events), Some(StopReason::EndTurn), "{:?}", names(&events));
    world.wait_for(&session_id, |_| world.core.metrics.turns_running.get() == 0).await;
}
