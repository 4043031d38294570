//! A turn begins when whoever asked for it watches, and when they have gone.

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use croft_e2e::client::{message, scripted_agent};
use croft_front::door::Door;
use croft_front::lifecycle::Lifecycle;
use croft_front::store::Stores;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{SessionEvent, SessionState, StopReason, TenantLimits};
use futures::{StreamExt, TryStreamExt};

use crate::doubles::{Call, Slow, hooked};
use crate::world::{World, read_all, stop_reason};

const ANSWER: &str = "one two three four five six seven";
/// Answered at once, token after token without a delay.
const SCRIPT: &str = r#"{"script": [{"text": "one two three four five six seven", "token_delay_ms": 0}]}"#;

fn previews(events: &[SessionEvent]) -> String {
    let texts = events.iter().filter_map(|event| match &event.kind {
        Some(Kind::TextDelta(delta)) => Some(delta.text.as_str()),
        _ => None,
    });
    texts.collect()
}

/// Once, the turn could be over before its caller's stream was open, and the previews with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_preview_is_shown_however_fast_the_answer_is() {
    let world = World::start().await;
    let mut client = world.client();
    for round in 0..200 {
        let session = client.create(scripted_agent("quick")).await.unwrap();
        let sent = client.lifecycle.send_message(message(&session.session_id, SCRIPT)).await.unwrap();
        let events = read_all(sent.into_inner()).await;
        assert_eq!(previews(&events), ANSWER, "round {round}: {events:?}");
        assert_eq!(stop_reason(&events), Some(StopReason::EndTurn));
    }
}

/// The caller may leave at any moment of its call: a message that was stored is answered.
#[tokio::test]
async fn a_turn_runs_when_its_caller_has_gone() {
    let world = World::start().await;
    let mut client = world.client();
    let lifecycle = Lifecycle::new(Arc::clone(&world.core), Door::Public);
    let identity = world.core.authenticator.authenticate_bearer(&world.api_key).await.unwrap();
    let (mut before, mut between, mut after) = (0, 0, 0);
    for polls in 0..12 {
        let session = client.create(scripted_agent("lonely")).await.unwrap();
        let id = session.session_id;
        let mut is_open = false;
        {
            let mut sending = pin!(lifecycle.send(&identity, message(&id, SCRIPT)));
            for _ in 0..polls {
                if let Poll::Ready(stream) = futures::poll!(&mut sending) {
                    // The stream goes too, unread.
                    drop(stream.unwrap());
                    is_open = true;
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        match (world.stored(&id).await.newest_input_seq > 0, is_open) {
            (false, _) => before += 1,
            (true, false) => between += 1,
            (true, true) => after += 1,
        }
        if world.stored(&id).await.newest_input_seq > 0 {
            let rested = world.wait_for(&id, |session| session.state == SessionState::Idle).await;
            assert_eq!(rested.last_stop_reason, StopReason::EndTurn, "left after {polls} polls");
            assert_eq!(rested.input_seq, rested.newest_input_seq);
        }
    }
    assert!(before > 0 && between > 0 && after > 0, "left before: {before}, in mid call: {between}, after: {after}");
}

tokio::task_local! {
    /// Set where the log is slow.
    static SLOW: ();
}

/// A turn that is over before its caller has read the log leaves nothing but its end to be seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_preview_is_shown_however_slow_the_log_is() {
    let mut stores = Stores::memory();
    // It takes its time for some, and none for the turns: as a database may on a busy machine.
    let is_meant = |call: &Call<'_>| matches!(call, Call::Read) && SLOW.try_with(|()| ()).is_ok();
    stores.events = hooked(stores.events, Slow { is_meant, by: Duration::from_millis(500) });
    let world = World::over(stores, TenantLimits::default()).await;
    let session = world.client().create(scripted_agent("quick")).await.unwrap();
    let lifecycle = Lifecycle::new(Arc::clone(&world.core), Door::Public);
    let identity = world.core.authenticator.authenticate_bearer(&world.api_key).await.unwrap();
    let sending = lifecycle.send(&identity, message(&session.session_id, SCRIPT));
    let events: Vec<_> = SLOW.scope((), sending).await.unwrap().boxed().try_collect().await.unwrap();
    assert_eq!(previews(&events), ANSWER, "{events:?}");
}
