//! A mistake of our own in one turn, of which no other turn hears, and which comes only once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use croft_e2e::client::{message, scripted_agent};
use croft_front::Error;
use croft_front::core::Options;
use croft_front::events::log::Append;
use croft_front::store::Stores;
use croft_front::turn::store::{Begin, Begun, Ended, TurnStore};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{BusyPolicy, SendMessageRequest, StopReason};
use futures::FutureExt as _;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::paused_log::paused;
use crate::world::{Ground, PATIENCE, World, names, read_all, stop_reason};

/// Whoever waited for such a lease to run out would wait for much longer than the tests do.
fn long_leases() -> Options {
    Options { lease_ttl: Duration::from_mins(10), ..Options::default() }
}

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
    assert_eq!(panics.load(Ordering::SeqCst), 1, "it is not tried again");

    let sent = client.lifecycle.send_message(message(&session_id, "hello")).await.unwrap();
    let events = read_all(sent.into_inner()).await;
    assert_eq!(stop_reason(&events), Some(StopReason::EndTurn), "{:?}", names(&events));
    world.wait_for(&session_id, |_| world.core.metrics.turns_running.get() == 0).await;
}

/// Panics behind the first last word, which it holds up until it may be stored.
struct PanicsBehindEnd {
    behind: Arc<dyn TurnStore>,
    has_panicked: AtomicBool,
    ends: Arc<Notify>,
    goes_on: Arc<Notify>,
}

#[async_trait]
impl TurnStore for PanicsBehindEnd {
    async fn begin(&self, begin: Begin) -> Result<Begun, Error> {
        self.behind.begin(begin).await
    }

    async fn end(&self, last: Append) -> Result<Ended, Error> {
        let is_first = !self.has_panicked.swap(true, Ordering::SeqCst);
        if is_first {
            self.ends.notify_one();
            self.goes_on.notified().await;
        }
        let ended = self.behind.end(last).await;
        assert!(!is_first, "on purpose");
        ended
    }
}

/// It ended with the error of a turn that was over.
#[tokio::test]
async fn a_message_that_waits_behind_a_turn_whose_driver_panics_at_its_very_end_is_answered() {
    let (mut stores, ends, goes_on) = (Stores::memory(), Arc::new(Notify::new()), Arc::new(Notify::new()));
    stores.turns = Arc::new(PanicsBehindEnd {
        behind: stores.turns,
        has_panicked: AtomicBool::new(false),
        ends: Arc::clone(&ends),
        goes_on: Arc::clone(&goes_on),
    });
    let world = World::on(Ground { stores, options: long_leases(), ..Ground::default() }).await;
    let mut client = world.client();
    let session_id = client.create(scripted_agent("unlucky")).await.unwrap().session_id;
    let first = client.lifecycle.send_message(message(&session_id, "hello")).await.unwrap();
    ends.notified().await;
    let waits = SendMessageRequest { busy_policy: BusyPolicy::Enqueue.into(), ..message(&session_id, "and again") };
    let second = client.lifecycle.send_message(waits).await.unwrap();
    goes_on.notify_one();
    let second = timeout(PATIENCE, read_all(second.into_inner())).await.expect("nobody waits for the lease to run out");
    assert_eq!(stop_reason(&second), Some(StopReason::EndTurn), "{:?}", names(&second));
    assert_eq!(stop_reason(&read_all(first.into_inner()).await), Some(StopReason::EndTurn));
}
