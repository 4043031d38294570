use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::{FutureExt, StreamExt};
use tokio::time::{sleep, timeout};

use super::*;
use crate::error::Error;
use crate::events::relay::Envelope;
use crate::events::relay::memory::MemoryRelay;
use crate::events::testing::{DownRelay, Scene, agent_message, terminated, user_message};

const PREVIEWS: SubscribeOptions = SubscribeOptions { previews: true };

async fn next(subscription: &mut Subscription) -> Item {
    timeout(Duration::from_mins(1), subscription.next()).await.expect("nothing came").unwrap()
}

fn number(item: &Item) -> u64 {
    match item {
        Item::Durable(event) => event.seq,
        other => panic!("no durable event: {other:?}"),
    }
}

/// Gives everything that is under way the time to arrive.
async fn settle() {
    sleep(Duration::from_millis(50)).await;
}

#[tokio::test(start_paused = true)]
async fn what_one_replica_publishes_reaches_each_subscriber_of_every_replica_once() {
    let scene = Scene::new().await;
    let relay = Arc::new(MemoryRelay::default());
    let [ours, theirs] = [(); 2].map(|()| scene.hub(relay.clone(), Options::default()));
    let mut here = ours.subscribe(scene.tenant, scene.session, PREVIEWS).await;
    let mut durable = ours.subscribe(scene.tenant, scene.session, SubscribeOptions { previews: false }).await;
    let mut there = theirs.subscribe(scene.tenant, scene.session, PREVIEWS).await;

    let seq = scene.publish(&ours, user_message()).await;
    scene.preview(&ours, "he");
    let last = scene.publish(&ours, agent_message()).await;
    settle().await;

    for subscription in [&mut here, &mut there] {
        assert_eq!(number(&next(subscription).await), seq);
        let Item::Preview { after_seq, .. } = next(subscription).await else { panic!("no preview") };
        assert_eq!(after_seq, seq);
        assert_eq!(number(&next(subscription).await), last);
        assert!(subscription.next().now_or_never().is_none(), "nothing comes twice");
    }
    assert_eq!(number(&next(&mut durable).await), seq);
    assert_eq!(number(&next(&mut durable).await), last);
}

#[tokio::test(start_paused = true)]
async fn a_turn_hears_each_control_once_wherever_it_runs() {
    let scene = Scene::new().await;
    let relay = Arc::new(MemoryRelay::default());
    let [ours, theirs] = [(); 2].map(|()| scene.hub(relay.clone(), Options::default()));
    let (tenant, session) = (scene.tenant, scene.session);
    let mut controls = ours.controls(tenant, session).await;

    assert!(ours.control(tenant, session, Frame::Interrupt { turn: None }), "the turn is here");
    assert!(!theirs.control(tenant, session, Frame::ApprovalResolved { seq: 7 }), "it is not there");
    settle().await;
    assert_eq!(controls.recv().await, Some(Frame::Interrupt { turn: None }));
    assert_eq!(controls.recv().await, Some(Frame::ApprovalResolved { seq: 7 }));
    assert!(controls.recv().now_or_never().is_none());

    drop(controls);
    assert!(!ours.control(tenant, session, Frame::Terminated), "the turn is over");
}

/// Counts the previews that pass.
#[derive(Default)]
struct Counting(MemoryRelay, AtomicUsize);

#[async_trait]
impl Relay for Counting {
    async fn publish(&self, tenant: TenantId, session: SessionId, envelope: &Envelope) -> Result<u64, Error> {
        if let Frame::Events(events) = &envelope.frame {
            self.1.fetch_add(events.iter().filter(|event| event.seq == 0).count(), Ordering::Relaxed);
        }
        self.0.publish(tenant, session, envelope).await
    }

    async fn subscribe(&self, tenant: TenantId, session: SessionId) -> Result<mpsc::Receiver<Envelope>, Error> {
        self.0.subscribe(tenant, session).await
    }
}

#[tokio::test(start_paused = true)]
async fn previews_go_to_the_relay_only_while_another_replica_listens() {
    let scene = Scene::new().await;
    let relay = Arc::new(Counting::default());
    let [ours, theirs] = [(); 2].map(|()| scene.hub(relay.clone(), Options::default()));
    let _turn = ours.controls(scene.tenant, scene.session).await;
    let sent = async || {
        let before = relay.1.load(Ordering::Relaxed);
        for _ in 0..3 {
            scene.preview(&ours, "he");
            settle().await;
        }
        relay.1.load(Ordering::Relaxed) - before
    };
    assert_eq!(sent().await, 1, "the relay tells with the first that nobody listens");
    scene.publish(&ours, user_message()).await;
    settle().await;
    assert_eq!(sent().await, 0);

    let mut there = theirs.subscribe(scene.tenant, scene.session, PREVIEWS).await;
    settle().await;
    assert_eq!(sent().await, 3, "somebody has come");
    assert!(matches!(next(&mut there).await, Item::Preview { .. }));
    scene.publish(&ours, user_message()).await;
    settle().await;
    assert_eq!(sent().await, 3, "and is still there");
    drop(there);
    settle().await;
    scene.publish(&ours, user_message()).await;
    settle().await;
    assert_eq!(sent().await, 0, "and has gone");
}

#[tokio::test(start_paused = true)]
async fn tenants_and_sessions_do_not_hear_each_other() {
    let scene = Scene::new().await;
    let hub = scene.hub(Arc::new(MemoryRelay::default()), Options::default());
    let mut other_tenant = hub.subscribe(TenantId::generate(), scene.session, PREVIEWS).await;
    let mut other_session = hub.subscribe(scene.tenant, SessionId::generate(), PREVIEWS).await;
    scene.publish(&hub, user_message()).await;
    settle().await;
    assert!(other_tenant.next().now_or_never().is_none());
    assert!(other_session.next().now_or_never().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_stuck_subscriber_ends_alone_and_holds_nothing() {
    let scene = Scene::new().await;
    let options = Options { subscriber_events_max: 8, ..Options::default() };
    let hub = scene.hub(Arc::new(MemoryRelay::default()), options);
    let mut stuck = hub.subscribe(scene.tenant, scene.session, PREVIEWS).await;
    let mut quick = hub.subscribe(scene.tenant, scene.session, PREVIEWS).await;
    let first = scene.publish(&hub, user_message()).await;
    assert_eq!(number(&next(&mut stuck).await), first);
    assert_eq!(number(&next(&mut quick).await), first);
    for _ in 0..100 {
        let seq = scene.publish(&hub, user_message()).await;
        assert_eq!(number(&next(&mut quick).await), seq);
    }
    assert!(stuck.has_lagged());
    assert_eq!(next(&mut stuck).await, Item::Lagged { last_seq: first });
    assert_eq!(hub.metrics().slow_subscribers.get(), 1);
}

/// Two results of a superstep, each a large image, ended the streams of all who watched.
#[tokio::test(start_paused = true)]
async fn large_events_that_are_published_together_all_arrive() {
    let scene = Scene::new().await;
    let relay = Arc::new(MemoryRelay::default());
    let [ours, theirs] = [(); 2].map(|()| scene.hub(relay.clone(), Options::default()));
    let mut here = ours.subscribe(scene.tenant, scene.session, PREVIEWS).await;
    let mut there = theirs.subscribe(scene.tenant, scene.session, PREVIEWS).await;
    let large = |seq| SessionEvent { seq, turn_id: "x".repeat(2_200_000), ..SessionEvent::default() };
    ours.publish(scene.tenant, scene.session, vec![large(2), large(3)]);
    ours.publish(scene.tenant, scene.session, vec![SessionEvent { seq: 4, ..SessionEvent::default() }]);
    for seq in 2..=4 {
        assert_eq!(number(&next(&mut here).await), seq);
    }
    let Item::Durable(last) = next(&mut there).await else { panic!("not even the last came") };
    assert!(!there.has_lagged() && last.seq >= 2, "what the relay leaves out is in the log");
    assert_eq!(ours.metrics().slow_subscribers.get(), 0);
}

fn large(seq: u64) -> SessionEvent {
    SessionEvent { seq, turn_id: "x".repeat(1_000), ..SessionEvent::default() }
}

/// Two hundred streams of one connection that reads nothing held 4 MiB each.
#[tokio::test(start_paused = true)]
async fn streams_that_are_not_read_hold_no_more_than_their_bound_together() {
    let scene = Scene::new().await;
    let options = Options { tenant_bytes_max: 40_000, ..Options::default() };
    let hub = scene.hub(Arc::new(MemoryRelay::default()), options);
    let sessions: Vec<_> = (0..20).map(|_| SessionId::generate()).collect();
    let mut stuck = Vec::new();
    for session in &sessions {
        stuck.push(hub.subscribe(scene.tenant, *session, PREVIEWS).await);
    }
    let mut quick = hub.subscribe(scene.tenant, scene.session, PREVIEWS).await;
    let (others, theirs) = (TenantId::generate(), SessionId::generate());
    let mut of_others = hub.subscribe(others, theirs, PREVIEWS).await;
    hub.publish(others, theirs, vec![large(1), large(2)]);
    for seq in 1..=50 {
        for session in &sessions {
            hub.publish(scene.tenant, *session, vec![large(seq)]);
        }
        hub.publish(scene.tenant, scene.session, vec![large(seq)]);
        assert_eq!(number(&next(&mut quick).await), seq, "who reads is told");
        assert!(hub.shared.crowd.held_bytes() < 45_000, "{} bytes are held", hub.shared.crowd.held_bytes());
    }
    let ended = stuck.iter().filter(|one| one.has_lagged()).count();
    assert_eq!(hub.metrics().slow_subscribers.get(), u64::try_from(ended).unwrap());
    assert!(ended > 0);
    assert_eq!((number(&next(&mut of_others).await), number(&next(&mut of_others).await)), (1, 2));
}

/// Streams for which a word had waited for two seconds were ended before the one that held nearly all.
#[tokio::test(start_paused = true)]
async fn the_streams_that_hold_most_make_room_and_those_that_hold_next_to_nothing_never() {
    let scene = Scene::new().await;
    let options = Options { tenant_bytes_max: 40_000, ..Options::default() };
    let hub = scene.hub(Arc::new(MemoryRelay::default()), options);
    let mut small = Vec::new();
    for _ in 0..20 {
        let session = SessionId::generate();
        small.push(hub.subscribe(scene.tenant, session, PREVIEWS).await);
        hub.publish(scene.tenant, session, vec![SessionEvent { seq: 1, ..SessionEvent::default() }]);
    }
    sleep(Duration::from_secs(5)).await;
    let stuck = hub.subscribe(scene.tenant, scene.session, PREVIEWS).await;
    for seq in 1..=50 {
        hub.publish(scene.tenant, scene.session, vec![large(seq)]);
    }
    assert!(stuck.has_lagged());
    assert!(!small.iter().any(Subscription::has_lagged));

    // What has just come is too much, and nobody is to blame.
    let mut watching = Vec::new();
    for _ in 0..10 {
        let session = SessionId::generate();
        watching.push(hub.subscribe(scene.tenant, session, PREVIEWS).await);
        let event = SessionEvent { seq: 1, turn_id: "x".repeat(10_000), ..SessionEvent::default() };
        hub.publish(scene.tenant, session, vec![event]);
    }
    assert!(hub.shared.crowd.held_bytes() > 40_000);
    assert!(!small.iter().chain(&watching).any(Subscription::has_lagged));
    assert_eq!(hub.metrics().slow_subscribers.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_previews_of_all_go_before_any_stream_ends() {
    let scene = Scene::new().await;
    let options = Options { tenant_bytes_max: 40_000, ..Options::default() };
    let hub = scene.hub(Arc::new(MemoryRelay::default()), options);
    let talking = SessionId::generate();
    let mut of_events = hub.subscribe(scene.tenant, scene.session, PREVIEWS).await;
    let mut of_previews = hub.subscribe(scene.tenant, talking, PREVIEWS).await;
    for seq in 1..=30 {
        hub.publish(scene.tenant, scene.session, vec![large(seq)]);
    }
    for _ in 0..15 {
        hub.publish(scene.tenant, talking, vec![large(0)]);
    }
    assert!(hub.shared.crowd.held_bytes() < 40_000);
    assert_eq!(hub.metrics().slow_subscribers.get(), 0);
    assert!(matches!(next(&mut of_previews).await, Item::Gap { .. }));
    for seq in 1..=30 {
        assert_eq!(number(&next(&mut of_events).await), seq);
    }
}

#[tokio::test(start_paused = true)]
async fn one_preview_for_each_of_many_streams_is_no_more_than_the_bound_either() {
    let scene = Scene::new().await;
    let options = Options { tenant_bytes_max: 40_000, ..Options::default() };
    let hub = scene.hub(Arc::new(MemoryRelay::default()), options);
    let mut stuck = Vec::new();
    for _ in 0..60 {
        let session = SessionId::generate();
        stuck.push(hub.subscribe(scene.tenant, session, PREVIEWS).await);
        hub.publish(scene.tenant, session, vec![large(0)]);
        assert!(hub.shared.crowd.held_bytes() < 42_000, "{} bytes are held", hub.shared.crowd.held_bytes());
    }
    assert!(!stuck.iter().any(Subscription::has_lagged));
}

/// So many that what each holds is next to nothing, but for what all do.
#[tokio::test(start_paused = true)]
async fn a_crowd_of_small_streams_holds_no_more_than_its_bound() {
    let scene = Scene::new().await;
    let options = Options { tenant_bytes_max: 40_000, ..Options::default() };
    let hub = scene.hub(Arc::new(MemoryRelay::default()), options);
    let mut stuck = Vec::new();
    for _ in 0..400 {
        let session = SessionId::generate();
        stuck.push(hub.subscribe(scene.tenant, session, PREVIEWS).await);
        let event = SessionEvent { seq: 1, turn_id: "x".repeat(120), ..SessionEvent::default() };
        hub.publish(scene.tenant, session, vec![event]);
    }
    assert!(!stuck.iter().any(Subscription::has_lagged), "it has just come");
    sleep(Duration::from_secs(3)).await;
    let mut quick = hub.subscribe(scene.tenant, scene.session, PREVIEWS).await;
    hub.publish(scene.tenant, scene.session, vec![large(1)]);
    assert_eq!(number(&next(&mut quick).await), 1);
    assert!(hub.shared.crowd.held_bytes() < 40_000);
    let ended = stuck.iter().filter(|one| one.has_lagged()).count();
    assert!((1..400).contains(&ended), "{ended} have ended");
}

#[tokio::test(start_paused = true)]
async fn an_event_that_many_wait_for_is_counted_once() {
    let scene = Scene::new().await;
    let options = Options { held_bytes_max: 4_000, tenant_bytes_max: 4_000, ..Options::default() };
    let hub = scene.hub(Arc::new(MemoryRelay::default()), options);
    let mut watching = Vec::new();
    for _ in 0..100 {
        watching.push(hub.subscribe(scene.tenant, scene.session, PREVIEWS).await);
    }
    for seq in 1..=3 {
        hub.publish(scene.tenant, scene.session, vec![large(seq)]);
    }
    assert!((3_000..4_000).contains(&hub.shared.crowd.held_bytes()));
    for one in &mut watching {
        for seq in 1..=3 {
            assert_eq!(number(&next(one).await), seq);
        }
    }
    assert_eq!(hub.shared.crowd.held_bytes(), 0);
}

/// As of a connection that has a hundred other streams to take from meanwhile.
#[tokio::test(start_paused = true)]
async fn a_stream_that_is_read_now_and_then_goes_on() {
    let scene = Scene::new().await;
    let hub = scene.hub(Arc::new(MemoryRelay::default()), Options::default());
    let mut slow = hub.subscribe(scene.tenant, scene.session, PREVIEWS).await;
    for _ in 0..5 {
        scene.preview(&hub, "he");
    }
    let seq = scene.publish(&hub, user_message()).await;
    for _ in 0..5 {
        sleep(Options::default().unread_max / 2).await;
        assert!(matches!(next(&mut slow).await, Item::Preview { .. }));
    }
    sleep(Options::default().unread_max / 2).await;
    assert_eq!(number(&next(&mut slow).await), seq);
}

/// Of a session in which little happens: its queue would never be full.
#[tokio::test(start_paused = true)]
async fn a_stream_that_is_not_read_for_long_ends_and_holds_nothing() {
    let scene = Scene::new().await;
    let hub = scene.hub(Arc::new(MemoryRelay::default()), Options::default());
    let mut stuck = hub.subscribe(scene.tenant, scene.session, PREVIEWS).await;
    let mut idle = hub.subscribe(scene.tenant, scene.session, PREVIEWS).await;
    let first = scene.publish(&hub, user_message()).await;
    for one in [&mut stuck, &mut idle] {
        assert_eq!(number(&next(one).await), first);
    }
    let second = scene.publish(&hub, user_message()).await;
    scene.preview(&hub, "he");
    assert_eq!(number(&next(&mut idle).await), second);
    assert!(matches!(next(&mut idle).await, Item::Preview { .. }));
    sleep(Options::default().unread_max.saturating_sub(Duration::from_secs(1))).await;
    assert!(!stuck.has_lagged());
    sleep(Duration::from_secs(3)).await;
    assert_eq!(next(&mut stuck).await, Item::Lagged { last_seq: first });
    assert_eq!(hub.shared.crowd.held_bytes(), 0);
    assert!(!idle.has_lagged(), "it has read all there was");
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_is_down_holds_up_neither_a_turn_nor_those_who_listen_here() {
    let scene = Scene::new().await;
    let hub = scene.hub(Arc::new(DownRelay), Options::default());
    let controls = hub.controls(scene.tenant, scene.session).await;
    let mut here = hub.subscribe(scene.tenant, scene.session, PREVIEWS).await;
    for _ in 0..5_000 {
        scene.preview(&hub, "he");
        while let Some(item) = here.next().now_or_never() {
            assert!(matches!(item, Some(Item::Preview { .. } | Item::Resync)), "{item:?}");
        }
    }
    settle().await;
    assert!(!hub.relay_is_up());
    assert!(hub.shared.outbox.len() <= 5_000);
    assert!(hub.metrics().relay_shed.with_label_values(&["preview"]).get() > 0, "the outbox has its bound");
    drop(controls);
}

/// Once, a quiet front told that the relay was down until somebody published or listened.
#[tokio::test(start_paused = true)]
async fn a_relay_that_answers_is_up_unless_calls_of_it_fail_meanwhile() {
    let scene = Scene::new().await;
    let hub = scene.hub(Arc::new(DownRelay), Options::default());
    let fails = async || {
        drop(hub.subscribe(scene.tenant, scene.session, PREVIEWS).await);
        settle().await;
        assert!(!hub.relay_is_up());
    };
    for _ in 0..3 {
        fails().await;
        hub.relay_answered();
        assert!(!hub.relay_is_up(), "it takes no call");
    }
    hub.relay_answered();
    assert!(hub.relay_is_up());
    assert_eq!(hub.metrics().relay_up.get(), 1);
    fails().await;
}

#[tokio::test(start_paused = true)]
async fn a_session_that_nobody_listens_to_any_more_leaves_nothing_behind() {
    let scene = Scene::new().await;
    let hub = scene.hub(Arc::new(MemoryRelay::default()), Options::default());
    let subscription = hub.subscribe(scene.tenant, scene.session, PREVIEWS).await;
    let controls = hub.controls(scene.tenant, scene.session).await;
    assert_eq!(hub.metrics().sessions_watched.get(), 1);
    drop(subscription);
    assert_eq!(hub.shared.topics().len(), 1);
    drop(controls);
    assert_eq!(hub.shared.topics().len(), 0);
    assert_eq!((hub.metrics().sessions_watched.get(), hub.metrics().subscribers.get()), (0, 0));
    drop(hub);
    // Pumps and senders have ended too.
    assert_eq!(scene.tasks.shutdown(Duration::from_secs(1)).await, 0);
}

#[tokio::test(start_paused = true)]
async fn at_shutdown_the_senders_wait_for_the_turns() {
    let scene = Scene::new().await;
    let relay = Arc::new(MemoryRelay::default());
    let [ours, theirs] = [(); 2].map(|()| scene.hub(relay.clone(), Options::default()));
    let mut there = theirs.subscribe(scene.tenant, scene.session, PREVIEWS).await;
    let controls = ours.controls(scene.tenant, scene.session).await;
    let tasks = scene.tasks.clone();
    let turn = async {
        settle().await;
        let seq = scene.publish(&ours, terminated()).await;
        drop(controls);
        assert_eq!(number(&next(&mut there).await), seq);
        drop(there);
    };
    let (left, ()) = tokio::join!(tasks.shutdown(Duration::from_secs(5)), turn);
    assert_eq!(left, 0);
}
