//! What a follower tells, in which order.

mod apart;
mod idle;
mod pages;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use async_trait::async_trait;
use croft_proto::v1::content_block::Block;
use croft_proto::v1::{ContentBlock, Text, UserMessage};
use futures::FutureExt;
use futures::future::join_all;
use futures::stream::BoxStream;
use tokio::task::yield_now;
use tokio::time::{Instant, timeout};

use super::looks::{AT_ONCE_MAX, LOOKS_FOR_NOTHING};
use super::*;
use crate::doubles::{Call, Hook, Made, hooked};
use crate::events::fanout::Options;
use crate::events::log::{Append, Appended, IdempotencyKey, StoredCheckpoint};
use crate::events::relay::memory::MemoryRelay;
use crate::events::testing::{DownRelay, Scene, agent_message, terminated, user_message};

pub(super) type Events = BoxStream<'static, Result<SessionEvent, Error>>;

pub(super) async fn follow_from(scene: &Scene, hub: &Hub, after_seq: u64) -> Events {
    follow(scene.log.clone(), hub, scene.tenant, scene.session, after_seq, false).await.unwrap().boxed()
}

pub(super) async fn next(events: &mut Events) -> SessionEvent {
    events.next().await.expect("the stream has ended").unwrap()
}

pub(super) async fn next_number(events: &mut Events) -> u64 {
    next(events).await.seq
}

/// A log that can be made to fail, or to have forgotten.
struct Moody {
    scene: Arc<Scene>,
    is_down: AtomicBool,
    is_erased: AtomicBool,
    /// It has none above.
    newest: AtomicU64,
    /// How often it was read.
    reads: AtomicUsize,
}

impl Moody {
    fn new(scene: &Arc<Scene>) -> Arc<Self> {
        let scene = Arc::clone(scene);
        Arc::new(Self {
            scene,
            is_down: false.into(),
            is_erased: false.into(),
            newest: u64::MAX.into(),
            reads: 0.into(),
        })
    }
}

#[async_trait]
impl EventLog for Moody {
    async fn append(&self, append: Append) -> Result<Appended, Error> {
        self.scene.log.append(append).await
    }

    async fn find_sent(
        &self,
        tenant: TenantId,
        session: SessionId,
        key: &IdempotencyKey,
    ) -> Result<Option<u64>, Error> {
        self.scene.log.find_sent(tenant, session, key).await
    }

    async fn read(
        &self,
        tenant: TenantId,
        session: SessionId,
        after_seq: u64,
        limit: u32,
    ) -> Result<Vec<SessionEvent>, Error> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if self.is_down.load(Ordering::Relaxed) {
            return Err(Error::unavailable("postgres", anyhow::anyhow!("connection refused")));
        }
        if self.is_erased.load(Ordering::Relaxed) {
            return Ok(Vec::new());
        }
        let newest = self.newest.load(Ordering::Relaxed);
        let events = self.scene.log.read(tenant, session, after_seq, limit).await?;
        Ok(events.into_iter().take_while(|event| event.seq <= newest).collect())
    }

    async fn waiting(&self, tenant: TenantId, session: SessionId, max: u32) -> Result<u32, Error> {
        self.scene.log.waiting(tenant, session, max).await
    }

    async fn checkpoint(&self, tenant: TenantId, session: SessionId) -> Result<Option<StoredCheckpoint>, Error> {
        self.scene.log.checkpoint(tenant, session).await
    }
}

/// Reads that take their time, counted.
#[derive(Default)]
struct Reads {
    count: AtomicUsize,
    under_way: AtomicUsize,
    /// At the same time.
    most: AtomicUsize,
}

#[async_trait]
impl Hook for Reads {
    async fn around(&self, call: Call<'_>, made: Made<'_>) -> Result<(), Error> {
        if matches!(call, Call::Read) {
            self.count.fetch_add(1, Ordering::Relaxed);
            let under_way = self.under_way.fetch_add(1, Ordering::Relaxed) + 1;
            self.most.fetch_max(under_way, Ordering::Relaxed);
            sleep(Duration::from_millis(20)).await;
            self.under_way.fetch_sub(1, Ordering::Relaxed);
        }
        made.await
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_history_and_what_comes_meanwhile_are_one_story_that_ends_with_the_session() {
    let scene = Scene::new().await;
    let hub = scene.hub(Arc::new(MemoryRelay::default()), Options::default());
    for _ in 0..1_200 {
        scene.append(user_message()).await;
    }
    let mut events = follow_from(&scene, &hub, 0).await;
    for expected in 1..=600 {
        assert_eq!(next_number(&mut events).await, expected);
    }
    for _ in 0..300 {
        scene.publish(&hub, user_message()).await;
    }
    scene.publish(&hub, terminated()).await;
    let rest: Vec<_> = events.map(|event| event.unwrap().seq).collect().await;
    assert_eq!(rest, (601..=1_502).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_cursor_at_the_end_of_a_terminated_session_ends_at_once() {
    let scene = Scene::new().await;
    let hub = scene.hub(Arc::new(MemoryRelay::default()), Options::default());
    let last = scene.append(terminated()).await[0].seq;
    let began = Instant::now();
    assert!(follow_from(&scene, &hub, last).await.next().await.is_none());
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_the_relay_lost_is_read_from_the_log_when_the_next_one_comes() {
    let scene = Scene::new().await;
    let relay = Arc::new(MemoryRelay::default());
    let [ours, theirs] = [(); 2].map(|()| scene.hub(relay.clone(), Options::default()));
    let mut events = follow_from(&scene, &ours, 1).await;
    let began = Instant::now();
    scene.append(user_message()).await;
    scene.publish(&theirs, user_message()).await;
    assert_eq!((next_number(&mut events).await, next_number(&mut events).await), (2, 3));
    assert!(began.elapsed() < Duration::from_millis(100), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_preview_that_comes_after_its_message_is_left_out_and_counted() {
    let scene = Scene::new().await;
    let relay = Arc::new(MemoryRelay::default());
    let [ours, theirs] = [(); 2].map(|()| scene.hub(relay.clone(), Options::default()));
    let _turn = theirs.controls(scene.tenant, scene.session).await;
    let mut events = follow_from(&scene, &ours, 1).await;
    scene.publish(&theirs, user_message()).await;
    scene.preview(&theirs, "on its way");
    // The message overtakes it: we have read it in the log before the relay brings the preview.
    scene.append(agent_message()).await;
    scene.append(user_message()).await;
    scene.publish(&ours, user_message()).await;
    scene.preview(&theirs, "of the next message");
    for expected in 2..=5 {
        assert_eq!(next_number(&mut events).await, expected);
    }
    assert!(events.next().now_or_never().is_none());
    tokio::time::sleep(Duration::from_millis(10)).await;
    // The sender of these knows of number 2 alone, and that is older than the message.
    assert!(events.next().now_or_never().is_none());
    assert_eq!(ours.metrics().stale_previews.get(), 2);
}

#[tokio::test(start_paused = true)]
async fn someone_elses_message_in_mid_sentence_hides_no_preview() {
    let scene = Scene::new().await;
    let hub = scene.hub(Arc::new(MemoryRelay::default()), Options::default());
    let mut events = follow_from(&scene, &hub, 1).await;
    scene.publish(&hub, agent_message()).await;
    // Known to nobody yet: the preview's sender can't know of it.
    scene.append(user_message()).await;
    scene.preview(&hub, "still talking");
    assert_eq!(next_number(&mut events).await, 2);
    assert!(matches!(next(&mut events).await.kind, Some(Kind::TextDelta(_))));
    assert_eq!(next_number(&mut events).await, 3);
    scene.preview(&hub, "and on");
    assert!(matches!(next(&mut events).await.kind, Some(Kind::TextDelta(_))));
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_falls_behind_what_happens_is_sent_away_with_its_number() {
    let scene = Scene::new().await;
    let options = Options { subscriber_events_max: 8, ..Options::default() };
    let hub = scene.hub(Arc::new(MemoryRelay::default()), options);
    let mut events = follow_from(&scene, &hub, 0).await;
    assert_eq!(next_number(&mut events).await, 1);
    scene.publish(&hub, user_message()).await;
    assert_eq!(next_number(&mut events).await, 2);
    for _ in 0..20 {
        scene.publish(&hub, user_message()).await;
    }
    let Some(Err(Error::SlowConsumer { resume_after })) = events.next().await else { panic!("it was let through") };
    assert_eq!(resume_after, 2);
    assert!(events.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_reader_of_a_long_history_may_take_its_time() {
    let scene = Scene::new().await;
    let options = Options { subscriber_events_max: 8, ..Options::default() };
    let hub = scene.hub(Arc::new(MemoryRelay::default()), options);
    for _ in 0..600 {
        scene.append(user_message()).await;
    }
    let mut events = follow_from(&scene, &hub, 0).await;
    for expected in 1..=601 {
        assert_eq!(next_number(&mut events).await, expected);
        // It reads a page that was there when it came, while the world goes on.
        if expected % 20 == 0 {
            scene.publish(&hub, user_message()).await;
        }
    }
    for expected in 602..=631 {
        assert_eq!(next_number(&mut events).await, expected);
    }
    scene.publish(&hub, user_message()).await;
    assert_eq!(next_number(&mut events).await, 632);
}

#[tokio::test(start_paused = true)]
async fn dropped_previews_are_told_and_durable_only_readers_hear_of_neither() {
    let scene = Scene::new().await;
    let options = Options { subscriber_events_max: 4, ..Options::default() };
    let hub = scene.hub(Arc::new(MemoryRelay::default()), options);
    let mut events = follow_from(&scene, &hub, 1).await;
    let quiet = follow(scene.log.clone(), &hub, scene.tenant, scene.session, 1, true).await.unwrap();
    let mut quiet = quiet.boxed();
    scene.publish(&hub, user_message()).await;
    assert_eq!((next_number(&mut events).await, next_number(&mut quiet).await), (2, 2));
    for text in ["a", "b", "c", "d", "e", "f"] {
        scene.preview(&hub, text);
    }
    scene.publish(&hub, agent_message()).await;
    let Some(Kind::Gap(gap)) = next(&mut events).await.kind else { panic!("no gap notice") };
    assert_eq!((gap.dropped_previews, gap.last_seq), (3, 2));
    for expected in ["d", "e", "f"] {
        assert!(matches!(next(&mut events).await.kind, Some(Kind::TextDelta(delta)) if delta.text == expected));
    }
    assert_eq!((next_number(&mut events).await, next_number(&mut quiet).await), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn a_log_that_is_down_matters_only_when_something_is_missing() {
    let scene = Arc::new(Scene::new().await);
    let hub = scene.hub(Arc::new(MemoryRelay::default()), Options::default());
    let log = Moody::new(&scene);
    let mut events = follow(log.clone(), &hub, scene.tenant, scene.session, 0, false).await.unwrap().boxed();
    assert_eq!(next_number(&mut events).await, 1);
    log.is_down.store(true, Ordering::Relaxed);
    let waiting = timeout(LOOK_EVERY_IDLE * 3, events.next()).await;
    assert!(waiting.is_err(), "a look that fails ends nothing");
    scene.publish(&hub, user_message()).await;
    assert_eq!(next_number(&mut events).await, 2);

    scene.append(user_message()).await;
    scene.publish(&hub, user_message()).await;
    let mut waiting = timeout(FILL_AGAIN / 2, events.next()).await;
    assert!(waiting.is_err(), "it is tried again");
    log.is_down.store(false, Ordering::Relaxed);
    assert_eq!((next_number(&mut events).await, next_number(&mut events).await), (3, 4));

    log.is_down.store(true, Ordering::Relaxed);
    scene.append(user_message()).await;
    scene.publish(&hub, user_message()).await;
    waiting = timeout(FILL_AGAIN * FILL_TRIES, events.next()).await;
    assert!(matches!(waiting, Ok(Some(Err(Error::Unavailable { .. })))));
    assert!(events.next().await.is_none());
}
