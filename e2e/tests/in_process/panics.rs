//! A mistake of our own in one turn, of which no other turn hears, and which comes only once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use croft_e2e::client::{message, scripted_agent};
use croft_front::Error;
use croft_front::core::Options;
use croft_front::store::Stores;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{BusyPolicy, SendMessageRequest, StopReason};
use tokio::time::timeout;

use crate::doubles::{Call, Gate, Hook, Made, hooked};
use crate::world::{Ground, PATIENCE, World, names, read_all, stop_reason};

/// Whoever waited for such a lease to run out would wait for much longer than the tests do.
fn long_leases() -> Options {
    Options { lease_ttl: Duration::from_mins(10), ..Options::default() }
}

/// Panics as often as a result is to be stored, and counts that.
#[derive(Default)]
struct PanicsAtResult(AtomicUsize);

#[async_trait]
impl Hook for PanicsAtResult {
    async fn around(&self, call: Call<'_>, made: Made<'_>) -> Result<(), Error> {
        if call.appends(|kind| matches!(kind, Kind::ToolResult(_))) {
            self.0.fetch_add(1, Ordering::SeqCst);
            panic!("on purpose");
        }
        made.await
    }
}

#[tokio::test]
async fn a_turn_whose_driver_panics_ends_with_an_error_at_once_and_the_session_goes_on() {
    let (mut stores, log) = (Stores::memory(), Arc::new(PanicsAtResult::default()));
    stores.events = hooked(stores.events, Arc::clone(&log));
    let world = World::on(Ground { stores, options: long_leases(), ..Ground::default() }).await;
    let mut client = world.client();
    let session_id = client.create(scripted_agent("unlucky")).await.unwrap().session_id;
    let script = r#"{"script": [{"tool_call": {"name": "clock", "arguments": {}}}, {"text": "never"}]}"#;
    let sent = client.lifecycle.send_message(message(&session_id, script)).await.unwrap();
    let events = timeout(PATIENCE, read_all(sent.into_inner())).await.expect("nobody waits for the lease to run out");
    assert_eq!(stop_reason(&events), Some(StopReason::Error), "{:?}", names(&events));
    let told = events.iter().find_map(|event| match &event.kind {
        Some(Kind::Error(error)) => Some((error.reason.as_str(), error.message.as_str())),
        _ => None,
    });
    assert_eq!(told, Some(("INTERNAL", "the request could not be carried out")));
    assert_eq!(log.0.load(Ordering::SeqCst), 1, "it is not tried again");

    let sent = client.lifecycle.send_message(message(&session_id, "hello")).await.unwrap();
    let events = read_all(sent.into_inner()).await;
    assert_eq!(stop_reason(&events), Some(StopReason::EndTurn), "{:?}", names(&events));
    world.wait_for(&session_id, |_| world.core.metrics.turns_running.get() == 0).await;
}

/// Panics behind the first last word, which it holds up until it may be stored.
#[derive(Default)]
struct PanicsBehindEnd {
    ends: Gate,
    has_panicked: AtomicBool,
}

#[async_trait]
impl Hook for PanicsBehindEnd {
    async fn around(&self, call: Call<'_>, made: Made<'_>) -> Result<(), Error> {
        if matches!(call, Call::End(_)) && !self.has_panicked.swap(true, Ordering::SeqCst) {
            self.ends.pass().await;
            drop(made.await);
            panic!("on purpose");
        }
        made.await
    }
}

/// It ended with the error of a turn that was over.
#[tokio::test]
async fn a_message_that_waits_behind_a_turn_whose_driver_panics_at_its_very_end_is_answered() {
    let (mut stores, turns) = (Stores::memory(), Arc::new(PanicsBehindEnd::default()));
    stores.turns = hooked(stores.turns, Arc::clone(&turns));
    let world = World::on(Ground { stores, options: long_leases(), ..Ground::default() }).await;
    let mut client = world.client();
    let session_id = client.create(scripted_agent("unlucky")).await.unwrap().session_id;
    let first = client.lifecycle.send_message(message(&session_id, "hello")).await.unwrap();
    turns.ends.reached().await;
    let waits = SendMessageRequest { busy_policy: BusyPolicy::Enqueue.into(), ..message(&session_id, "and again") };
    let second = client.lifecycle.send_message(waits).await.unwrap();
    turns.ends.open();
    let second = timeout(PATIENCE, read_all(second.into_inner())).await.expect("nobody waits for the lease to run out");
    assert_eq!(stop_reason(&second), Some(StopReason::EndTurn), "{:?}", names(&second));
    assert_eq!(stop_reason(&read_all(first.into_inner()).await), Some(StopReason::EndTurn));
}
