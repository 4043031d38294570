//! Turns whose front has been lost: another takes them over, if it can, and hears of what was said meanwhile.

use std::time::Duration;

use croft_e2e::client::{message, scripted_agent};
use croft_front::core::Options;
use croft_front::events::log::{Append, Authority, IdempotencyKey, NewEvent};
use croft_front::session::snapshot::canonical_hash;
use croft_front::tenants::Tenants;
use croft_front::turn::store::{Begin, Begun};
use croft_proto::Timestamp;
use croft_proto::id::TurnId;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{
    BusyPolicy, InterruptSessionRequest, SendMessageRequest, SessionRunning, SessionState, StopReason, UserMessage,
};

use crate::world::{Ground, World, read_all, stop_reason};

const ENDLESS: &str = r#"{"script": [{"text": "word "}, {"delay_ms": 600000}]}"#;

/// A turn that a front has begun, which has gone since: its lease runs out after so long.
async fn left_behind(world: &World, text: &str, ttl: Duration) -> String {
    let running = NewEvent::now(Kind::SessionRunning(SessionRunning {}));
    left_behind_with(world, text, vec![running], ttl).await
}

/// One of which these events are stored behind its message.
async fn left_behind_with(world: &World, text: &str, events: Vec<NewEvent>, ttl: Duration) -> String {
    let session_id = world.client().create(scripted_agent("left")).await.unwrap().session_id;
    let turn = TurnId::generate();
    let said = UserMessage { content: message(&session_id, text).content, sender: "somebody".into() };
    let said = NewEvent::now(Kind::UserMessage(said));
    let events = [said].into_iter().chain(events).map(|event| event.of_turn(turn)).collect();
    let message = Append::of(world.tenant(), session_id.parse().unwrap(), Authority::Caller, events);
    let begun = world.core.stores.turns.begin(Begin { message, holder: "a lost front".into(), ttl }).await.unwrap();
    assert!(matches!(begun, Begun::New(_)));
    session_id
}

#[tokio::test]
async fn an_interrupt_while_a_turn_is_nobodys_reaches_whoever_takes_it_over() {
    let world = World::start().await;
    let session_id = left_behind(&world, ENDLESS, Duration::from_secs(2)).await;
    let request = InterruptSessionRequest { session_id: session_id.clone() };
    assert!(world.client().lifecycle.interrupt_session(request).await.unwrap().into_inner().interrupted);
    let ended = world.wait_for(&session_id, |session| session.state == SessionState::Idle).await;
    assert_eq!(ended.last_stop_reason, StopReason::Interrupted);
}

/// As after a restart of everything, where the operator comes last. Such a front knows of no worker at all.
#[tokio::test]
async fn a_front_that_does_not_know_the_tenants_yet_takes_no_turn_over() {
    let options = Options { placement_timeout: Duration::from_millis(100), ..Options::default() };
    let world = World::on(Ground { options, ..Ground::default() }).await;
    world.another_front(Tenants::new()).await;
    let mut sessions = Vec::new();
    for _ in 0..20 {
        sessions.push(left_behind(&world, "hello", Duration::from_millis(50)).await);
    }
    for session_id in sessions {
        let ended = world.wait_for(&session_id, |session| session.state == SessionState::Idle).await;
        assert_eq!(ended.last_stop_reason, StopReason::EndTurn);
    }
}

/// It began over the turn that was broken off, which ran on for as long as it liked before.
#[tokio::test]
async fn a_message_that_interrupts_stops_a_turn_that_was_broken_off() {
    let world = World::start().await;
    let session_id = left_behind(&world, ENDLESS, Duration::ZERO).await;
    let policy = BusyPolicy::Interrupt.into();
    let request = SendMessageRequest { busy_policy: policy, ..message(&session_id, "hello") };
    let sent = world.client().lifecycle.send_message(request).await.unwrap().into_inner();
    let events = tokio::time::timeout(Duration::from_secs(20), read_all(sent)).await.expect("the other turn goes on");
    assert_eq!(stop_reason(&events), Some(StopReason::EndTurn), "{events:?}");
}

/// Its first try was stored, and its front lost before it could stop anything.
#[tokio::test]
async fn a_message_that_interrupts_does_so_when_it_is_said_again() {
    let world = World::start().await;
    let mut client = world.client();
    let session_id = client.create(scripted_agent("busy")).await.unwrap().session_id;
    let first = client.lifecycle.send_message(message(&session_id, ENDLESS)).await.unwrap().into_inner();
    let policy = BusyPolicy::Interrupt.into();
    let request =
        SendMessageRequest { busy_policy: policy, idempotency_key: "k".into(), ..message(&session_id, "hello") };
    // As the first try stores it.
    let body = SendMessageRequest { idempotency_key: String::new(), ..request.clone() };
    let said = UserMessage { content: request.content.clone(), sender: "somebody".into() };
    let body_hash = canonical_hash(&serde_json::to_value(&body).unwrap());
    let idempotency_key = Some(IdempotencyKey { key: "k".into(), body_hash });
    let said = vec![NewEvent::now(Kind::UserMessage(said)).of_turn(TurnId::generate())];
    let append =
        Append { idempotency_key, ..Append::of(world.tenant(), session_id.parse().unwrap(), Authority::Caller, said) };
    world.core.stores.events.append(append).await.unwrap();
    let again = client.lifecycle.send_message(request).await.unwrap().into_inner();
    let ended = tokio::time::timeout(Duration::from_secs(20), read_all(first)).await.expect("it is not interrupted");
    assert_eq!(stop_reason(&ended), Some(StopReason::Interrupted), "{ended:?}");
    assert_eq!(stop_reason(&read_all(again).await), Some(StopReason::EndTurn));
}

/// The message took the lease of a turn that was broken off, and waited until that one was over. When its own front was lost too, the time of
/// the other was taken for its own: it ended at its limit without a word.
#[tokio::test]
async fn a_turn_that_is_taken_over_has_run_for_as_long_as_it_ran_itself() {
    let world = World::start().await;
    let running = NewEvent::now(Kind::SessionRunning(SessionRunning {}));
    let began = running.create_time.seconds;
    let told_early = Timestamp { seconds: began - 24 * 60 * 60, ..running.create_time };
    let told_early = NewEvent { create_time: told_early, ..running.clone() };
    let session_id = left_behind_with(&world, "hello", vec![told_early, running], Duration::ZERO).await;
    let ended = world.wait_for(&session_id, |session| session.state == SessionState::Idle).await;
    assert_eq!(ended.last_stop_reason, StopReason::EndTurn);
}
