//! Streams of sessions in which nothing happens any more, or which are gone.

use super::*;

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
