//! Decisions of a turn behind which another has begun: that one has closed what was open.

use std::time::Duration;

use croft_front::events::log::{Append, Appended, Authority, NewEvent};
use croft_front::turn::store::{Begin, Begun};
use croft_proto::id::{SessionId, TurnId};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{ApprovalRequired, ApprovalResolved, SessionIdle, SessionRunning, StopReason, UserMessage};
use tonic::Code;

use crate::approvals::{answer, cautious};
use crate::world::World;

/// What is stored of turns that nobody drives.
struct Written<'world> {
    world: &'world World,
    session: SessionId,
    epoch: u64,
}

impl Written<'_> {
    fn append(&self, authority: Authority, turn: TurnId, kind: Kind) -> Append {
        Append::of(self.world.tenant(), self.session, authority, vec![NewEvent::now(kind).of_turn(turn)])
    }

    /// By the turn itself, which takes up the message of this number if there is one.
    async fn told(&self, turn: TurnId, kind: Kind, input_seq: Option<u64>) {
        let append = Append { input_seq, ..self.append(Authority::Lease { epoch: self.epoch }, turn, kind) };
        self.world.core.stores.events.append(append).await.unwrap();
    }

    async fn said(&self, turn: TurnId, kind: Kind) -> u64 {
        let append = self.append(Authority::Caller, turn, kind);
        let Appended::New(events) = self.world.core.stores.events.append(append).await.unwrap() else { panic!() };
        events[0].seq
    }
}

/// A message that had waited since before the question began the next turn, and whoever said yes again was told that it counts, or had
/// a turn begun for a call that was closed long ago.
#[tokio::test]
async fn a_decision_of_a_turn_behind_which_another_has_begun_is_not_gone_on_with() {
    let world = World::start().await;
    let session_id = world.client().create(cautious()).await.unwrap().session_id;
    let (first, second) = (TurnId::generate(), TurnId::generate());
    let mut written = Written { world: &world, session: session_id.parse().unwrap(), epoch: 0 };
    let words = || Kind::UserMessage(UserMessage { sender: "somebody".into(), ..UserMessage::default() });
    let running = || Kind::SessionRunning(SessionRunning {});
    let asks = |approval_id: &str| {
        let (approval_id, tool_call_id) = (approval_id.to_owned(), format!("call of {approval_id}"));
        Kind::ApprovalRequired(ApprovalRequired { approval_id, tool_call_id, ..ApprovalRequired::default() })
    };
    let stops = || Kind::SessionIdle(SessionIdle { stop_reason: StopReason::RequiresAction.into() });
    let message = written.append(Authority::Caller, first, words());
    let begin = Begin { message, holder: "nobody".into(), ttl: Duration::from_hours(1) };
    let Begun::New(opened) = world.core.stores.turns.begin(begin).await.unwrap() else { panic!("a turn runs") };
    written.epoch = opened.epoch;
    written.told(first, running(), Some(opened.events[0].seq)).await;
    let waits = written.said(second, words()).await;
    written.told(first, asks("a"), None).await;
    let decided = ApprovalResolved { approval_id: "a".into(), approved: true, ..ApprovalResolved::default() };
    written.said(first, Kind::ApprovalResolved(decided)).await;
    written.told(first, stops(), None).await;

    let refused = async |when: &str| {
        let before = world.stored(&session_id).await.last_seq;
        for approved in [true, false] {
            let told = answer(&mut world.client(), &session_id, "a", approved).await.expect_err(when);
            assert_eq!(told.code(), Code::FailedPrecondition, "{when}: {told:?}");
        }
        assert_eq!(world.stored(&session_id).await.last_seq, before, "{when}");
    };
    refused("before the next turn has begun").await;
    written.told(second, running(), Some(waits)).await;
    refused("while the next turn runs").await;
    written.told(second, asks("b"), None).await;
    let last = written.append(Authority::Lease { epoch: written.epoch }, second, stops());
    assert!(world.core.stores.turns.end(last).await.unwrap().released);
    refused("behind a turn that has ended with a question of its own").await;
}
