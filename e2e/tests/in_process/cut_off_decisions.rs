//! Decisions that were stored and whose turn could not go on with them: they have their effect later, and stay what they were.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use croft_front::Error;
use croft_front::core::Options;
use croft_front::store::Stores;
use croft_proto::v1::{SessionState, StopReason};
use tokio::time::timeout;

use crate::approvals::{answer, asked, assert_refused, failures, impatient, questions, say_yes, went_on};
use crate::doubles::{Call, Gate, Hook, Made, Outage, hooked};
use crate::world::{Ground, World};

/// Ends turns late, and is away behind the first end for what is to begin.
#[derive(Default)]
struct Severed {
    ends: Gate,
    outage: Outage,
    has_ended: AtomicBool,
}

#[async_trait]
impl Hook for Severed {
    async fn around(&self, call: Call<'_>, made: Made<'_>) -> Result<(), Error> {
        match call {
            Call::Begin => self.outage.meet()?,
            Call::End(_) => {
                self.ends.pass().await;
                made.await?;
                if !self.has_ended.swap(true, Ordering::SeqCst) {
                    self.outage.begin();
                }
                return Ok(());
            }
            _ => {}
        }
        made.await
    }
}

/// A session whose turn gives up waiting after three seconds and ends as the gate lets it.
async fn severed() -> (World, String, Arc<Severed>) {
    let (mut stores, turns) = (Stores::memory(), Arc::new(Severed::default()));
    stores.turns = hooked(stores.turns, Arc::clone(&turns));
    let options = Options { lease_ttl: Duration::from_secs(3), ..Options::default() };
    let world = World::on(Ground { stores, options, ..Ground::default() }).await;
    let session_id = world.client().create(impatient()).await.unwrap().session_id;
    (world, session_id, turns)
}

/// Nobody went on with it by themselves, and the call was made only for who said yes again.
#[tokio::test]
async fn a_decision_whose_turn_cannot_go_on_with_it_at_once_has_its_effect_later() {
    let (world, session_id, turns) = severed().await;
    let mut client = world.client();
    let (approval_id, _events) = asked(&mut client, &session_id).await;
    turns.ends.reached().await;
    say_yes(&mut client, &session_id, &approval_id).await;
    turns.ends.open();
    turns.outage.met().await;
    turns.outage.end();
    let log = went_on(&world, &session_id).await;
    assert_eq!(failures(&log), [false], "the call was made: {log:?}");
}

/// The front that ended the turn was lost before it went on with what a person had decided meanwhile. Whoever pressed yes again was told
/// that nothing is pending, and the call was never made.
#[tokio::test]
async fn a_decision_whose_turn_could_not_go_on_with_it_can_be_made_again() {
    let (world, session_id, turns) = severed().await;
    let mut client = world.client();
    let (approval_id, events) = asked(&mut client, &session_id).await;
    turns.ends.reached().await;
    say_yes(&mut client, &session_id, &approval_id).await;
    // The turn is not over, and may hear of it.
    assert_refused(&mut client, &session_id, &approval_id, true).await;
    turns.ends.open();
    // Until it gives up; after a stall of the machine it may be heard of only at the second look.
    let tries_on = async || timeout(Duration::from_secs(1), turns.outage.met()).await.is_ok();
    while tries_on().await || tries_on().await {}
    drop(events);
    let session = world.wait_for(&session_id, |session| session.state == SessionState::Idle).await;
    assert_eq!(session.last_stop_reason, StopReason::RequiresAction, "nothing goes on by itself");

    turns.outage.end();
    say_yes(&mut client, &session_id, &approval_id).await;
    let log = went_on(&world, &session_id).await;
    assert_eq!(failures(&log), [false], "the call was made: {log:?}");
    assert_eq!(questions(&log).len(), 1, "nobody is asked again");
    assert_refused(&mut client, &session_id, &approval_id, true).await;
}

/// The first word counts, also where it came to nothing: who says no to it has it carried out, and is told that they came too late.
#[tokio::test]
async fn another_decision_about_what_was_decided_changes_nothing() {
    let (world, session_id, turns) = severed().await;
    let mut client = world.client();
    let (approval_id, _events) = asked(&mut client, &session_id).await;
    turns.ends.reached().await;
    answer(&mut client, &session_id, &approval_id, false).await.unwrap();
    turns.ends.open();
    turns.outage.met().await;
    turns.outage.end();
    world.wait_for(&session_id, |session| session.state == SessionState::Idle).await;
    assert_refused(&mut client, &session_id, &approval_id, true).await;
    let log = went_on(&world, &session_id).await;
    assert_eq!(failures(&log), [true], "the call was denied: {log:?}");
}
