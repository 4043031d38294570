//! Answers to a turn that is over, or ends just then: people may take longer than a turn.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use croft_e2e::client::{Client, message};
use croft_front::Error;
use croft_front::events::log::Append;
use croft_front::store::Stores;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{ResolveApprovalRequest, SessionState, StopReason};
use tokio::sync::Notify;
use tonic::Code;

use crate::approvals::{asked, assert_refused, failures, impatient, questions, say_yes, went_on};
use crate::doubles::{Call, Gate, Hook, Made, away, hooked};
use crate::world::{Ground, World, read_all, stop_reason};

/// A session whose turn has ended with its question open.
async fn asked_in_vain(world: &World, client: &mut Client) -> (String, String) {
    let session_id = client.create(impatient()).await.unwrap().session_id;
    let (approval_id, events) = asked(client, &session_id).await;
    assert_eq!(stop_reason(&read_all(events).await), Some(StopReason::RequiresAction));
    world.wait_for(&session_id, |session| session.state == SessionState::Idle).await;
    (session_id, approval_id)
}

/// A yes at minute eleven was taken, told to all who watched, recorded as done, and nothing came of it.
#[tokio::test]
async fn an_answer_to_a_turn_that_is_over_begins_the_next() {
    for approved in [true, false] {
        let world = World::start().await;
        let mut client = world.client();
        let (session_id, approval_id) = asked_in_vain(&world, &mut client).await;
        let before = world.stored(&session_id).await.last_seq;
        let answer = ResolveApprovalRequest {
            session_id: session_id.clone(),
            approval_id,
            approved,
            message: "as I say".into(),
            ..ResolveApprovalRequest::default()
        };
        client.lifecycle.resolve_approval(answer.clone()).await.unwrap();
        let again = client.lifecycle.resolve_approval(answer).await.unwrap_err();
        assert_eq!(again.code(), Code::FailedPrecondition, "the first word counts");
        world
            .wait_for(&session_id, |session| session.state == SessionState::Idle && session.last_seq > before + 3)
            .await;
        let log = world.log(&session_id, before).await;
        assert_eq!(stop_reason(&log), Some(StopReason::EndTurn), "{log:?}");
        let Some(Kind::UserMessage(opening)) = &log[0].kind else { panic!("{log:?}") };
        let first = world.log(&session_id, 2).await;
        let Some(Kind::UserMessage(asker)) = &first[0].kind else { panic!("{first:?}") };
        let runs_for = (opening.content.len(), &opening.sender);
        assert_eq!(runs_for, (0, &asker.sender), "it runs for whoever it ran for before");
        assert_eq!(questions(&log), Vec::<String>::new(), "what is decided is not asked again");
        let results: Vec<_> = log
            .iter()
            .filter_map(|event| match &event.kind {
                Some(Kind::ToolResult(result)) => Some(result),
                _ => None,
            })
            .collect();
        assert_eq!(results.len(), 1, "{log:?}");
        assert_eq!(results[0].is_error, !approved, "{results:?}");
        assert_eq!(format!("{results:?}").contains("as I say"), !approved, "the model is told why");
    }
}

/// The turn's time is over, and the person decides in that moment: just before the turn's last word is stored, or just behind it. Either
/// was taken, told to all who watched, and nothing came of it.
#[tokio::test]
async fn an_answer_while_its_turn_ends_has_its_effect() {
    for is_before in [true, false] {
        let (mut stores, ends, answers) = (Stores::memory(), Gate::default(), Gate::default());
        stores.turns = hooked(stores.turns, ends.before(|call| matches!(call, Call::End(_))));
        let decides = |call: &Call<'_>| call.appends(|kind| matches!(kind, Kind::ApprovalResolved(_)));
        stores.events = hooked(stores.events, answers.before(decides));
        let world = World::on(Ground { stores, ..Ground::default() }).await;
        let mut client = world.client();
        let session_id = client.create(impatient()).await.unwrap().session_id;
        let (approval_id, events) = asked(&mut client, &session_id).await;
        let answering = async {
            if is_before {
                ends.reached().await;
                answers.open();
            }
            say_yes(&mut client, &session_id, &approval_id).await;
            ends.open();
        };
        let ending = async {
            if !is_before {
                answers.reached().await;
                ends.reached().await;
                ends.open();
                world.wait_for(&session_id, |session| session.state == SessionState::Idle).await;
                answers.open();
            }
        };
        tokio::join!(answering, ending);
        assert_eq!(stop_reason(&read_all(events).await), Some(StopReason::RequiresAction), "{is_before}");
        let log = went_on(&world, &session_id).await;
        assert_eq!(failures(&log), [false], "the call was made: {log:?}");
        assert_eq!(questions(&log).len(), 1, "nobody is asked again");
    }
}

/// Says at once that nobody knows what has become of the first end, and keeps it for the test.
#[derive(Default)]
struct UnknownEnd {
    last: Mutex<Option<Append>>,
    is_under_way: Notify,
    has_come: AtomicBool,
}

#[async_trait]
impl Hook for UnknownEnd {
    async fn around(&self, call: Call<'_>, made: Made<'_>) -> Result<(), Error> {
        match call {
            Call::End(last) if !self.has_come.swap(true, Ordering::SeqCst) => {
                *self.last.lock().unwrap() = Some(last.clone());
                self.is_under_way.notify_one();
                Err(away())
            }
            _ => made.await,
        }
    }
}

/// The turn looked as if it went on, and was left to hear of the answer by itself.
#[tokio::test]
async fn an_answer_to_a_turn_whose_end_takes_its_time_has_its_effect() {
    let (mut stores, unknown) = (Stores::memory(), Arc::new(UnknownEnd::default()));
    stores.turns = hooked(stores.turns, Arc::clone(&unknown));
    let world = World::on(Ground { stores, ..Ground::default() }).await;
    let mut client = world.client();
    let session_id = client.create(impatient()).await.unwrap().session_id;
    let (approval_id, _events) = asked(&mut client, &session_id).await;
    unknown.is_under_way.notified().await;
    say_yes(&mut client, &session_id, &approval_id).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let last = unknown.last.lock().unwrap().take().unwrap();
    world.core.stores.turns.end(last).await.unwrap();
    let log = went_on(&world, &session_id).await;
    assert_eq!(failures(&log), [false], "the call was made: {log:?}");
}

#[tokio::test]
async fn an_answer_that_comes_behind_another_message_is_refused() {
    let world = World::start().await;
    let mut client = world.client();
    let (session_id, approval_id) = asked_in_vain(&world, &mut client).await;
    let script = r#"{"script": [{"text": "done"}]}"#;
    let events = client.lifecycle.send_message(message(&session_id, script)).await.unwrap().into_inner();
    assert_eq!(stop_reason(&read_all(events).await), Some(StopReason::EndTurn));
    assert_refused(&mut client, &session_id, &approval_id, true).await;
}
