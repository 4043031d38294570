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
use crate::events::fanout::Options;
use crate::events::log::{Append, Appended, IdempotencyKey, StoredCheckpoint};
use crate::events::relay::memory::MemoryRelay;
use crate::events::testing::{DownRelay, Scene, agent_message, terminated, user_message};
use crate::store::memory::Memory;

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

    async fn checkpoint(&self, tenant: TenantId, session: SessionId) -> Result<Option<StoredCheckpoint>, Error> {
        self.scene.log.checkpoint(tenant, session).await
    }
}

/// A log that takes its time, and counts who reads it.
struct Counted {
    log: Arc<Memory>,
    reads: Arc<Reads>,
}

#[derive(Default)]
struct Reads {
    count: AtomicUsize,
    under_way: AtomicUsize,
    /// At the same time.
    most: AtomicUsize,
}

#[async_trait]
impl EventLog for Counted {
    async fn append(&self, append: Append) -> Result<Appended, Error> {
        self.log.append(append).await
    }

    async fn find_sent(
        &self,
        tenant: TenantId,
        session: SessionId,
        key: &IdempotencyKey,
    ) -> Result<Option<u64>, Error> {
        self.log.find_sent(tenant, session, key).await
    }

    async fn read(
        &self,
        tenant: TenantId,
        session: SessionId,
        after_seq: u64,
        limit: u32,
    ) -> Result<Vec<SessionEvent>, Error> {
        self.reads.count.fetch_add(1, Ordering::Relaxed);
        let under_way = self.reads.under_way.fetch_add(1, Ordering::Relaxed) + 1;
        self.reads.most.fetch_max(under_way, Ordering::Relaxed);
        sleep(Duration::from_millis(20)).await;
        self.reads.under_way.fetch_sub(1, Ordering::Relaxed);
        self.log.read(tenant, session, after_seq, limit).await
    }

    async fn checkpoint(&self, tenant: TenantId, session: SessionId) -> Result<Option<StoredCheckpoint>, Error> {
        self.log.checkpoint(tenant, session).await
    }
}

/// Once, who was slow to read the history of a session that was then erased waited for the rest of it for ever.
#[tokio::test(start_paused = true)]
async fn a_reader_whose_session_is_erased_is_told_so() {
    let scene = Arc::new(Scene::new().await);
    let hub = scene.hub(Arc::new(MemoryRelay::default()), Options::default());
    for _ in 0..2 * PAGE {
        scene.append(user_message()).await;
    }
    scene.append(terminated()).await;
    let log = Moody::new(&scene);
    let follow_from = async |after_seq| follow(log.clone(), &hub, scene.tenant, scene.session, after_seq, false).await;
    let mut events = follow_from(0).await.unwrap().boxed();
    for expected in 1..=10 {
        assert_eq!(next_number(&mut events).await, expected);
    }
    log.is_erased.store(true, Ordering::Relaxed);
    let mut last_seq = 10;
    let told = loop {
        match events.next().await.expect("it ends without a word") {
            Ok(event) => last_seq = event.seq,
            Err(error) => break error,
        }
    };
    assert!(matches!(told, Error::SessionNotFound { .. }), "{told:?}");
    assert_eq!(last_seq, u64::from(FIRST_PAGE) + 1, "what was read already was shown");
    assert!(events.next().await.is_none());
    // And who comes back finds nothing.
    assert!(matches!(follow_from(last_seq).await.err(), Some(Error::SessionNotFound { .. })));
}

/// Once, who read the rest of what was left of it took that for all, and waited for more for ever: its end had gone first.
#[tokio::test(start_paused = true)]
async fn a_reader_whose_session_is_erased_from_its_end_is_told_so() {
    let scene = Arc::new(Scene::new().await);
    let hub = scene.hub(Arc::new(MemoryRelay::default()), Options::default());
    for _ in 0..2 * PAGE {
        scene.append(user_message()).await;
    }
    scene.append(terminated()).await;
    let log = Moody::new(&scene);
    let mut events = follow(log.clone(), &hub, scene.tenant, scene.session, 0, false).await.unwrap().boxed();
    assert_eq!(next_number(&mut events).await, 1);
    log.newest.store(500, Ordering::Relaxed);
    for expected in 2..=500 {
        assert_eq!(next_number(&mut events).await, expected);
    }
    let waiting = timeout(LOOK_EVERY * LOOKS_FOR_NOTHING * 2, events.next()).await;
    assert!(waiting.is_err(), "what it was sent last is still there");
    log.newest.store(499, Ordering::Relaxed);
    let told = timeout(LOOK_EVERY * (LOOKS_FOR_NOTHING + 1), events.next()).await.expect("it waits for ever");
    assert!(matches!(told, Some(Err(Error::SessionNotFound { .. }))), "{told:?}");
    assert!(events.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn an_idle_stream_seldom_asks_whether_its_session_is_there() {
    let scene = Arc::new(Scene::new().await);
    let hub = scene.hub(Arc::new(MemoryRelay::default()), Options::default());
    let log = Moody::new(&scene);
    let mut events = follow(log.clone(), &hub, scene.tenant, scene.session, 1, false).await.unwrap().boxed();
    let before = log.reads.load(Ordering::Relaxed);
    assert!(timeout(LOOK_EVERY_IDLE * 4 * LOOKS_FOR_NOTHING, events.next()).await.is_err());
    let looks = log.reads.load(Ordering::Relaxed) - before;
    let looks_max = 4 * (LOOKS_FOR_NOTHING as usize + 1);
    assert!((looks_max - LOOKS_FOR_NOTHING as usize..=looks_max).contains(&looks), "{looks}");
}

/// It was taken for one whose turn runs, and looked at the log five times as often for as long as it was open.
#[tokio::test(start_paused = true)]
async fn an_alert_behind_a_turns_end_leaves_a_stream_idle() {
    let scene = Arc::new(Scene::new().await);
    let hub = scene.hub(Arc::new(MemoryRelay::default()), Options::default());
    let log = Moody::new(&scene);
    let mut told = follow(log.clone(), &hub, scene.tenant, scene.session, 1, false).await.unwrap().boxed();
    let seq = scene.publish(&hub, Kind::BudgetAlert(v1::BudgetAlert::default())).await;
    assert_eq!(next_number(&mut told).await, seq);
    let resumed = follow(log.clone(), &hub, scene.tenant, scene.session, seq, false).await.unwrap().boxed();
    for mut events in [told, resumed] {
        let before = log.reads.load(Ordering::Relaxed);
        assert!(timeout(LOOK_EVERY_IDLE * 10, events.next()).await.is_err());
        let looks = log.reads.load(Ordering::Relaxed) - before;
        assert!(looks <= 11, "{looks}");
    }
}

/// Follows a history of so many of these; how often the log has been read once so many events have been told.
async fn reads_behind<const N: usize>(of: Kind, count: u32, numbers: [u64; N]) -> [usize; N] {
    let scene = Arc::new(Scene::new().await);
    let hub = scene.hub(Arc::new(MemoryRelay::default()), Options::default());
    for _ in 0..count {
        scene.append(of.clone()).await;
    }
    let log = Moody::new(&scene);
    let mut events = follow(log.clone(), &hub, scene.tenant, scene.session, 0, false).await.unwrap().boxed();
    let (mut last_seq, mut reads) = (0, [0; N]);
    for (reads, number) in reads.iter_mut().zip(numbers) {
        while last_seq < number {
            last_seq += 1;
            assert_eq!(next_number(&mut events).await, last_seq);
        }
        for _ in 0..10 {
            yield_now().await;
        }
        *reads = log.reads.load(Ordering::Relaxed);
    }
    reads
}

#[tokio::test(start_paused = true)]
async fn the_next_page_of_large_events_is_read_once_half_of_one_is_sent_and_no_other() {
    // Five, then four make a page.
    let reads = reads_behind(message(140_000), 30, [1, 2, 3, 5, 6, 7]).await;
    assert_eq!(reads, [1, 1, 2, 2, 2, 3]);
}

/// Of small events a page is sent as fast as one is read.
#[tokio::test(start_paused = true)]
async fn the_next_page_of_small_events_is_read_at_once_and_no_other() {
    let (first, page) = (u64::from(FIRST_PAGE), u64::from(PAGE));
    let numbers = [1, first + 1, first + 2, first + 1 + page, first + 2 + page];
    assert_eq!(reads_behind(user_message(), FIRST_PAGE + 2 * PAGE, numbers).await, [2, 2, 3, 3, 4]);
}

fn long_message() -> Kind {
    message(500_000)
}

fn message(bytes: usize) -> Kind {
    let text = Text { text: "x".repeat(bytes) };
    Kind::UserMessage(UserMessage {
        content: vec![ContentBlock { block: Some(Block::Text(text)) }],
        ..Default::default()
    })
}

/// Once, each reader that did not read held eight megabytes.
#[tokio::test(start_paused = true)]
async fn readers_who_do_not_read_leave_room_for_others() {
    let (ours, theirs) = (Scene::new().await, Scene::new().await);
    let hub = ours.hub(Arc::new(MemoryRelay::default()), Options::default());
    for _ in 0..20 {
        ours.append(long_message()).await;
        theirs.append(long_message()).await;
    }
    let began = Instant::now();
    let unread = (0..64).map(async |_| {
        let mut events = follow_from(&ours, &hub, 0).await;
        assert_eq!(next_number(&mut events).await, 1);
        events
    });
    let mut unread = std::pin::pin!(join_all(unread));
    assert!(timeout(Duration::from_millis(10), &mut unread).await.is_err(), "some wait for room");
    assert!(hub.replays().held() <= room::TENANT_BYTES_MAX, "{} bytes are held", hub.replays().held());

    let mut events = follow_from(&theirs, &hub, 0).await;
    for expected in 1..=21 {
        assert_eq!(next_number(&mut events).await, expected);
    }
    assert!(began.elapsed() < Duration::from_millis(20), "nobody waits for another tenant's readers");

    // Those that wait come to read in turn, and those whose pages made room for them read on.
    let mut unread = unread.await;
    assert!(began.elapsed() >= room::LIES_MAX);
    assert!(hub.replays().held() <= room::TENANT_BYTES_MAX, "{} bytes are held", hub.replays().held());
    for expected in 2..=21 {
        assert_eq!(next_number(&mut unread[0]).await, expected);
    }
    let last = unread.last_mut().unwrap();
    for expected in 2..=21 {
        assert_eq!(next_number(last).await, expected);
    }
    drop((unread, events));
    assert_eq!(hub.replays().held(), 0);
}

/// Once, a reader held its page for as long as it took an event now and then, and some of them all that their tenant has.
#[tokio::test(start_paused = true)]
async fn readers_who_are_slow_leave_room_for_others() {
    let scene = Scene::new().await;
    let hub = scene.hub(Arc::new(MemoryRelay::default()), Options::default());
    for _ in 0..150 {
        scene.append(message(10_000)).await;
    }
    let slow = async || {
        let mut events = follow_from(&scene, &hub, 0).await;
        for expected in 1..=60 {
            assert_eq!(next_number(&mut events).await, expected);
            sleep(Duration::from_secs(4)).await;
        }
    };
    let late = async {
        sleep(Duration::from_secs(20)).await;
        assert!(hub.replays().held() > room::TENANT_BYTES_MAX * 3 / 4, "the room is full");
        let began = Instant::now();
        let mut events = follow_from(&scene, &hub, 0).await;
        assert_eq!(next_number(&mut events).await, 1);
        began.elapsed()
    };
    let (_, waited) = tokio::join!(join_all((0..64).map(|_| slow())), late);
    assert!(waited < Duration::from_mins(1), "{waited:?}");
    assert_eq!(hub.replays().held(), 0);
}

/// Otherwise what happens meanwhile would come late to those who are up to date.
#[tokio::test(start_paused = true)]
async fn a_look_that_finds_nothing_needs_no_room() {
    let scene = Scene::new().await;
    let hub = scene.hub(Arc::new(MemoryRelay::default()), Options::default());
    for _ in 0..20 {
        scene.append(long_message()).await;
    }
    let mut idle = follow_from(&scene, &hub, 20).await;
    assert_eq!(next_number(&mut idle).await, 21);
    assert!(timeout(Duration::from_millis(10), idle.next()).await.is_err(), "it is up to date");
    let began = Instant::now();
    let mut unread = std::pin::pin!(join_all((0..64).map(|_| follow_from(&scene, &hub, 0))));
    // Their pages are read, and nobody asks for them.
    assert!(unread.as_mut().now_or_never().is_none());
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert!(hub.replays().held() > room::TENANT_BYTES_MAX * 3 / 4, "the room is full");
    let nothing = timeout(LOOK_EVERY + Duration::from_millis(100), idle.next()).await;
    assert!(nothing.is_err());
    scene.publish(&hub, user_message()).await;
    assert_eq!(next_number(&mut idle).await, 22);
    assert!(began.elapsed() < LOOK_EVERY * 2, "{:?}", began.elapsed());
}

/// An event may take more room than a page has when it is read.
#[tokio::test(start_paused = true)]
async fn an_event_that_is_larger_than_all_room_is_told() {
    let scene = Scene::new().await;
    let hub = scene.hub(Arc::new(MemoryRelay::default()), Options::default());
    let text = Text { text: "x".repeat(room::TENANT_BYTES_MAX + 1) };
    let content = vec![ContentBlock { block: Some(Block::Text(text)) }];
    scene.append(Kind::UserMessage(UserMessage { content, ..Default::default() })).await;
    scene.append(user_message()).await;
    let mut events = follow_from(&scene, &hub, 0).await;
    for expected in 1..=3 {
        assert_eq!(next_number(&mut events).await, expected);
    }
    assert_eq!(hub.replays().held(), 0);
}

/// The end of a page that has made room is told as if it had never been read.
#[tokio::test(start_paused = true)]
async fn what_comes_while_a_page_is_away_is_told_once() {
    let scene = Arc::new(Scene::new().await);
    let hub = scene.hub(Arc::new(MemoryRelay::default()), Options::default());
    for _ in 0..3 {
        scene.append(long_message()).await;
    }
    let log = Moody::new(&scene);
    let mut slow = follow(log.clone(), &hub, scene.tenant, scene.session, 1, false).await.unwrap().boxed();
    assert_eq!(next_number(&mut slow).await, 2);
    let mut others: Vec<Events> = Vec::new();
    let began = Instant::now();
    while began.elapsed() < room::LIES_MAX {
        others.push(follow_from(&scene, &hub, 0).await);
    }
    scene.publish(&hub, user_message()).await;
    drop(others);
    let reads = log.reads.load(Ordering::Relaxed);
    assert_eq!(next_number(&mut slow).await, 3);
    assert!(log.reads.load(Ordering::Relaxed) > reads, "it had been taken away, and was read again");
    for expected in 4..=5 {
        assert_eq!(next_number(&mut slow).await, expected);
    }
    scene.publish(&hub, terminated()).await;
    assert_eq!(next_number(&mut slow).await, 6);
    assert!(slow.next().await.is_none());
}

/// The room of one tenant's readers is made by themselves.
#[tokio::test(start_paused = true)]
async fn a_tenant_that_is_full_takes_no_page_of_another() {
    let (ours, theirs) = (Scene::new().await, Arc::new(Scene::new().await));
    let hub = ours.hub(Arc::new(MemoryRelay::default()), Options::default());
    for _ in 0..4 {
        ours.append(long_message()).await;
        theirs.append(long_message()).await;
    }
    let log = Moody::new(&theirs);
    let mut slow = follow(log.clone(), &hub, theirs.tenant, theirs.session, 0, false).await.unwrap().boxed();
    assert_eq!(next_number(&mut slow).await, 1);
    let began = Instant::now();
    let unread = join_all((0..30).map(|_| follow_from(&ours, &hub, 0))).await;
    assert!(began.elapsed() >= room::LIES_MAX, "some had to wait");
    let reads = log.reads.load(Ordering::Relaxed);
    assert_eq!(next_number(&mut slow).await, 2);
    assert_eq!(log.reads.load(Ordering::Relaxed), reads, "it still has its page");
    drop(unread);
}

#[tokio::test(start_paused = true)]
async fn the_pages_that_have_lain_longest_make_room_and_no_more_than_it_takes() {
    let scene = Scene::new().await;
    let hub = scene.hub(Arc::new(MemoryRelay::default()), Options::default());
    for _ in 0..4 {
        scene.append(long_message()).await;
    }
    let room = hub.replays();
    let read = || room.read(&*scene.log, scene.tenant, scene.session, 0, PAGE);
    let mut pages = Vec::new();
    while let Ok(page) = timeout(Duration::from_millis(10), read()).await {
        pages.push(page.unwrap());
        sleep(Duration::from_millis(1)).await;
    }
    assert!(pages.len() > 10, "{} pages have room", pages.len());
    sleep(room::LIES_MAX).await;
    assert!(matches!(pages[0].take(), Taken::Event(..)), "somebody reads this one");
    let more = read().await.unwrap();
    let away: Vec<_> = (0..pages.len()).filter(|at| pages[*at].is_away()).collect();
    assert!(matches!(&away[..], [1] | [1, 2]), "{away:?} are away");
    assert!(!more.is_away());
}

/// Once, whoever came back for the end of a session, and was slow to, waited for more for ever.
#[tokio::test(start_paused = true)]
async fn a_first_page_that_was_taken_away_is_read_again() {
    let scene = Arc::new(Scene::new().await);
    let hub = scene.hub(Arc::new(MemoryRelay::default()), Options::default());
    for _ in 0..4 {
        scene.append(long_message()).await;
    }
    let last = scene.append(terminated()).await[0].seq;
    let log = Moody::new(&scene);
    let mut late = std::pin::pin!(follow(log.clone(), &hub, scene.tenant, scene.session, last, false));
    while log.reads.load(Ordering::Relaxed) == 0 {
        assert!(late.as_mut().now_or_never().is_none(), "its page is not read yet");
        yield_now().await;
    }
    let unread = join_all((0..30).map(|_| follow_from(&scene, &hub, 0))).await;
    drop(unread);
    let mut late = late.await.unwrap().boxed();
    assert_eq!(log.reads.load(Ordering::Relaxed), 2, "it had been taken away");
    let told = timeout(Duration::from_mins(1), late.next()).await.expect("it is told that the session has ended");
    assert!(told.is_none());
}

/// A stream that was fine does not end as its next page could not be read before anybody wanted it.
#[tokio::test(start_paused = true)]
async fn a_page_that_could_not_be_read_ahead_is_read_when_it_is_wanted() {
    let scene = Arc::new(Scene::new().await);
    let hub = scene.hub(Arc::new(MemoryRelay::default()), Options::default());
    for _ in 0..2 * FIRST_PAGE {
        scene.append(user_message()).await;
    }
    let log = Moody::new(&scene);
    let mut events = follow(log.clone(), &hub, scene.tenant, scene.session, 0, false).await.unwrap().boxed();
    log.is_down.store(true, Ordering::Relaxed);
    assert_eq!(next_number(&mut events).await, 1);
    while log.reads.load(Ordering::Relaxed) < 2 {
        yield_now().await;
    }
    log.is_down.store(false, Ordering::Relaxed);
    for expected in 2..=u64::from(2 * FIRST_PAGE) + 1 {
        assert_eq!(next_number(&mut events).await, expected);
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
async fn without_a_relay_events_of_other_replicas_come_within_a_second() {
    let scene = Scene::new().await;
    let hub = scene.hub(Arc::new(DownRelay), Options::default());
    let mut events = follow_from(&scene, &hub, 0).await;
    assert_eq!(next_number(&mut events).await, 1);
    for expected in 2..5 {
        // Elsewhere: no word of it comes here.
        scene.append(user_message()).await;
        let began = Instant::now();
        assert_eq!(next_number(&mut events).await, expected);
        assert!(began.elapsed() <= LOOK_EVERY, "{:?}", began.elapsed());
    }
    // More than a page of them.
    let last = 5 + 2 * u64::from(PAGE);
    for _ in 5..=last {
        scene.append(user_message()).await;
    }
    let began = Instant::now();
    while next_number(&mut events).await < last {}
    assert!(began.elapsed() <= LOOK_EVERY, "{:?}", began.elapsed());
}

/// Each of them looked by itself, all at the same time, and turns that wanted to store something waited behind them.
#[tokio::test(start_paused = true)]
async fn without_a_relay_those_who_follow_a_session_share_their_looks() {
    const SESSIONS: usize = 50;
    const SECONDS: usize = 20;
    let scenes = join_all((0..SESSIONS).map(|_| Scene::new())).await;
    let hub = scenes[0].hub(Arc::new(DownRelay), Options::default());
    let reads = Arc::new(Reads::default());
    let mut followers = Vec::new();
    for scene in &scenes {
        for _ in 0..10 {
            let log = Arc::new(Counted { log: Arc::clone(&scene.log), reads: Arc::clone(&reads) });
            followers.push(follow(log, &hub, scene.tenant, scene.session, 1, true).await.unwrap().boxed());
        }
    }
    reads.count.store(0, Ordering::Relaxed);
    reads.most.store(0, Ordering::Relaxed);
    let quiet = timeout(Duration::from_secs(SECONDS as u64), join_all(followers.iter_mut().map(StreamExt::next))).await;
    assert!(quiet.is_err(), "nothing happens");
    let count = reads.count.load(Ordering::Relaxed);
    assert!(count >= SESSIONS * SECONDS / 2, "they look: {count}");
    assert!(count <= SESSIONS * (SECONDS + 1), "{count} reads in {SECONDS} s");
    assert!(reads.most.load(Ordering::Relaxed) <= AT_ONCE_MAX);

    // Elsewhere: no word of it comes here.
    scenes[0].append(user_message()).await;
    let began = Instant::now();
    let told = join_all(followers[..10].iter_mut().map(next_number)).await;
    assert_eq!(told, [2; 10]);
    assert!(began.elapsed() <= LOOK_EVERY * 2, "{:?}", began.elapsed());
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
