//! What every `Relay` promises. Each promise is given the relays of two fronts.

use std::time::Duration;

use croft_front::events::relay::{Envelope, FRAMES_MAX, Frame, Relay};
use croft_proto::id::{SessionId, TenantId, TurnId};
use croft_proto::v1::SessionEvent;
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;
use uuid::Uuid;

/// One test for each promise; `crate::ground` makes the two relays.
macro_rules! relay_promises {
    () => {
        $crate::relay::relay_promises! {
            reaches_every_front_in_order, is_there_once_it_says_so, carries_every_frame, keeps_sessions_apart,
            serves_several_listeners_of_one_session, closes_a_listener_that_falls_behind,
            joins_and_leaves_in_quick_succession, counts_who_listens
        }
    };
    ($($promise:ident),+) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $promise() {
            let ground = crate::ground().await;
            $crate::relay::$promise(&ground.ours, &ground.theirs).await;
            ground.end().await;
        })+
    };
}
pub(crate) use relay_promises;

/// Longer than anything takes, however busy the machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) fn ids() -> (TenantId, SessionId) {
    (TenantId::generate(), SessionId::generate())
}

/// An envelope with one event of this number.
pub(crate) fn numbered(seq: u64) -> Envelope {
    of(Frame::Events(vec![SessionEvent { seq, ..SessionEvent::default() }]))
}

fn of(frame: Frame) -> Envelope {
    Envelope { origin: Uuid::from_u128(7), after_seq: 3, dropped_previews: 2, frame }
}

/// The next frame; `None` once the receiver is closed.
pub(crate) async fn next(receiver: &mut Receiver<Envelope>) -> Option<Envelope> {
    timeout(PATIENCE, receiver.recv()).await.expect("a frame comes")
}

pub(crate) async fn counts_who_listens(ours: &dyn Relay, theirs: &dyn Relay) {
    let (tenant, session) = ids();
    assert_eq!(ours.publish(tenant, session, &numbered(1)).await.unwrap(), 0);
    let here = ours.subscribe(tenant, session).await.unwrap();
    assert_eq!(ours.publish(tenant, session, &numbered(2)).await.unwrap(), 1);
    let there = theirs.subscribe(tenant, session).await.unwrap();
    assert_eq!(ours.publish(tenant, session, &numbered(3)).await.unwrap(), 2);
    drop((here, there));
}

pub(crate) async fn reaches_every_front_in_order(ours: &dyn Relay, theirs: &dyn Relay) {
    let (tenant, session) = ids();
    let mut here = ours.subscribe(tenant, session).await.unwrap();
    let mut there = theirs.subscribe(tenant, session).await.unwrap();
    for seq in 1..=100 {
        ours.publish(tenant, session, &numbered(seq)).await.unwrap();
    }
    for seq in 1..=100 {
        // Also at home.
        assert_eq!(next(&mut here).await, Some(numbered(seq)));
        assert_eq!(next(&mut there).await, Some(numbered(seq)));
    }
}

pub(crate) async fn is_there_once_it_says_so(ours: &dyn Relay, theirs: &dyn Relay) {
    for _ in 0..50 {
        let (tenant, session) = ids();
        let mut there = theirs.subscribe(tenant, session).await.unwrap();
        ours.publish(tenant, session, &numbered(1)).await.unwrap();
        assert_eq!(next(&mut there).await, Some(numbered(1)));
    }
}

pub(crate) async fn carries_every_frame(ours: &dyn Relay, theirs: &dyn Relay) {
    let (tenant, session) = ids();
    let mut there = theirs.subscribe(tenant, session).await.unwrap();
    let large = SessionEvent { session_id: "x".repeat(1 << 20), ..SessionEvent::default() };
    let frames = [
        Frame::Interrupt { turn: None },
        Frame::Interrupt { turn: Some(TurnId::generate()) },
        Frame::Terminated,
        Frame::ApprovalResolved { seq: 12 },
        Frame::Listening,
        Frame::Events(vec![SessionEvent::default(), large]),
    ];
    for frame in frames {
        ours.publish(tenant, session, &of(frame.clone())).await.unwrap();
        assert!(next(&mut there).await == Some(of(frame)));
    }
}

pub(crate) async fn keeps_sessions_apart(ours: &dyn Relay, theirs: &dyn Relay) {
    let (tenant, session) = ids();
    let (other_tenant, other_session) = ids();
    let mut there = theirs.subscribe(tenant, session).await.unwrap();
    // The same session under another tenant is another session.
    ours.publish(other_tenant, session, &numbered(1)).await.unwrap();
    ours.publish(tenant, other_session, &numbered(2)).await.unwrap();
    ours.publish(tenant, session, &numbered(3)).await.unwrap();
    assert_eq!(next(&mut there).await, Some(numbered(3)));
}

pub(crate) async fn serves_several_listeners_of_one_session(ours: &dyn Relay, theirs: &dyn Relay) {
    let (tenant, session) = ids();
    let mut first = theirs.subscribe(tenant, session).await.unwrap();
    let second = theirs.subscribe(tenant, session).await.unwrap();
    let mut third = theirs.subscribe(tenant, session).await.unwrap();
    drop(second);
    for seq in 1..=3 {
        ours.publish(tenant, session, &numbered(seq)).await.unwrap();
        assert_eq!(next(&mut first).await, Some(numbered(seq)));
        assert_eq!(next(&mut third).await, Some(numbered(seq)));
    }
    drop(first);
    ours.publish(tenant, session, &numbered(4)).await.unwrap();
    assert_eq!(next(&mut third).await, Some(numbered(4)));
}

pub(crate) async fn closes_a_listener_that_falls_behind(ours: &dyn Relay, theirs: &dyn Relay) {
    let (tenant, session) = ids();
    let mut stuck = theirs.subscribe(tenant, session).await.unwrap();
    let mut quick = theirs.subscribe(tenant, session).await.unwrap();
    let sent = FRAMES_MAX as u64 + 10;
    for seq in 1..=sent {
        ours.publish(tenant, session, &numbered(seq)).await.unwrap();
        assert_eq!(next(&mut quick).await, Some(numbered(seq)));
    }
    for seq in 1..=FRAMES_MAX as u64 {
        assert_eq!(next(&mut stuck).await, Some(numbered(seq)));
    }
    assert_eq!(next(&mut stuck).await, None);
    // It may come back.
    let mut again = theirs.subscribe(tenant, session).await.unwrap();
    ours.publish(tenant, session, &numbered(1)).await.unwrap();
    assert_eq!(next(&mut again).await, Some(numbered(1)));
}

pub(crate) async fn joins_and_leaves_in_quick_succession(ours: &dyn Relay, theirs: &dyn Relay) {
    let (tenant, session) = ids();
    for seq in 1..=200 {
        let mut there = theirs.subscribe(tenant, session).await.unwrap();
        if seq % 10 == 0 {
            ours.publish(tenant, session, &numbered(seq)).await.unwrap();
            assert_eq!(next(&mut there).await, Some(numbered(seq)));
        }
    }
}
