//! What becomes of what happens while a follower waits for the log, or its reader takes long.

use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use futures::future::join_all;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::tests::{Events, follow_from, next, next_number};
use super::*;
use crate::doubles::{Call, Hook, Made, hooked};
use crate::events::fanout::Options;
use crate::events::relay::memory::MemoryRelay;
use crate::events::testing::{DownRelay, Scene, agent_message, user_message};

/// A log that answers no read behind the first until it may.
struct Held {
    scene: Scene,
    may: Semaphore,
    /// Answers what stands there by then, and not when it was asked.
    is_late: bool,
    reads: AtomicUsize,
}

impl Held {
    async fn new(is_late: bool) -> Arc<Self> {
        Arc::new(Self { scene: Scene::new().await, may: Semaphore::new(1), is_late, reads: 0.into() })
    }

    async fn follow(self: &Arc<Self>, hub: &Hub) -> Events {
        let log = hooked(self.scene.log.clone() as Arc<dyn EventLog>, Arc::clone(self));
        follow(log, hub, self.scene.tenant, self.scene.session, 1, false).await.unwrap().boxed()
    }

    async fn until_reads(&self, reads: usize) {
        while self.reads.load(Ordering::Relaxed) < reads {
            sleep(Duration::from_millis(10)).await;
        }
    }
}

#[async_trait]
impl Hook for Held {
    async fn around(&self, call: Call<'_>, made: Made<'_>) -> Result<(), Error> {
        if !matches!(call, Call::Read) {
            return made.await;
        }
        self.reads.fetch_add(1, Ordering::Relaxed);
        if self.is_late {
            self.may.acquire().await.unwrap().forget();
            return made.await;
        }
        let made = made.await;
        self.may.acquire().await.unwrap().forget();
        made
    }
}

/// While the relay is away looks wait for one another, and a follower that waited heard nothing of its own front.
#[tokio::test(start_paused = true)]
async fn who_waits_for_a_look_hears_what_happens_here() {
    let log = Held::new(false).await;
    let (scene, hub) = (&log.scene, log.scene.hub(Arc::new(DownRelay), Options::default()));
    let mut events = log.follow(&hub).await;
    assert!(timeout(LOOK_EVERY * 3, events.next()).await.is_err(), "nothing has happened");
    assert_eq!(log.reads.load(Ordering::Relaxed), 2, "it looks");
    for expected in 2..10 {
        scene.publish(&hub, user_message()).await;
        let heard = timeout(Duration::from_millis(1), next_number(&mut events)).await;
        assert_eq!(heard.expect("it hears"), expected);
        scene.preview(&hub, "a word");
        let heard = timeout(Duration::from_millis(1), next(&mut events)).await;
        assert!(matches!(heard.expect("it hears").kind, Some(Kind::TextDelta(_))));
    }
    assert_eq!(log.reads.load(Ordering::Relaxed), 2, "it keeps its place");
    // The look says nothing of what came since, and hides nothing of what comes.
    log.may.add_permits(100);
    scene.append(user_message()).await;
    assert_eq!(timeout(LOOK_EVERY * 2, next_number(&mut events)).await.expect("it is found"), 10);
}

/// It found what had long been told, and had all who follow look anew.
#[tokio::test(start_paused = true)]
async fn a_look_that_finds_what_has_come_meanwhile_is_one_look() {
    let log = Held::new(true).await;
    let (scene, hub) = (&log.scene, log.scene.hub(Arc::new(DownRelay), Options::default()));
    log.may.add_permits(9);
    let mut followers = Vec::new();
    for _ in 0..10 {
        followers.push(log.follow(&hub).await);
    }
    let hearing = join_all(followers.iter_mut().map(StreamExt::next));
    assert!(timeout(LOOK_EVERY * 3, hearing).await.is_err(), "nothing has happened");
    let before = log.reads.load(Ordering::Relaxed);
    for expected in 2..10 {
        scene.publish(&hub, user_message()).await;
        assert_eq!(join_all(followers.iter_mut().map(next_number)).await, [expected; 10]);
    }
    log.may.add_permits(100);
    assert!(timeout(LOOK_EVERY * 2, join_all(followers.iter_mut().map(StreamExt::next))).await.is_err());
    let looks = log.reads.load(Ordering::Relaxed) - before;
    assert!(looks <= 3, "{looks} reads of ten that follow, in two seconds");
}

/// The look was under way when it was told that frames may be missing, and had seen nothing of them.
#[tokio::test(start_paused = true)]
async fn a_look_that_is_in_doubt_before_it_ends_is_taken_again() {
    let log = Held::new(false).await;
    let scene = &log.scene;
    let hub = scene.hub(Arc::new(MemoryRelay::default()), Options::default());
    let mut events = log.follow(&hub).await;
    hub.look_again(scene.tenant, scene.session);
    let tasks = scene.tasks.clone();
    let hearing = tasks.spawn("hearing", async move { next_number(&mut events).await });
    log.until_reads(2).await;
    scene.append(user_message()).await;
    hub.looks().doubt((scene.tenant, scene.session));
    hub.look_again(scene.tenant, scene.session);
    sleep(Duration::from_millis(10)).await;
    log.may.add_permits(100);
    assert_eq!(timeout(Duration::from_millis(100), hearing).await.expect("at once").unwrap(), 2);
}

/// It was ended as slow, though it read all the time.
#[tokio::test(start_paused = true)]
async fn a_reader_of_much_that_it_missed_may_take_its_time() {
    let scene = Scene::new().await;
    let options = Options { subscriber_events_max: 8, ..Options::default() };
    let hub = scene.hub(Arc::new(MemoryRelay::default()), options);
    let mut events = follow_from(&scene, &hub, 1).await;
    // Elsewhere, and lost on their way here.
    for _ in 2..=600 {
        scene.append(user_message()).await;
    }
    scene.publish(&hub, user_message()).await;
    for expected in 2..=601 {
        assert_eq!(next_number(&mut events).await, expected);
        if expected % 20 == 0 {
            scene.publish(&hub, user_message()).await;
            scene.preview(&hub, "a word");
        }
        sleep(Duration::from_millis(500)).await;
    }
    for expected in 602..=631 {
        assert_eq!(next_number(&mut events).await, expected);
    }
    // What was dropped meanwhile is told of before anything else is said.
    scene.preview(&hub, "and on");
    let Some(Kind::Gap(gap)) = next(&mut events).await.kind else { panic!("it is told of no gap") };
    assert!((20..=30).contains(&gap.dropped_previews), "{gap:?}");
    assert!(matches!(next(&mut events).await.kind, Some(Kind::TextDelta(_))));
    scene.publish(&hub, agent_message()).await;
    assert_eq!(next_number(&mut events).await, 632);
}
