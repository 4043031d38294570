//! How much of a log is read at a time, and what is held of it.

use super::*;

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
