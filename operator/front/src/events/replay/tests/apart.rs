//! What comes of other replicas while no relay tells of it.

use super::*;

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
            let log = hooked(scene.log.clone() as Arc<dyn EventLog>, Arc::clone(&reads));
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
