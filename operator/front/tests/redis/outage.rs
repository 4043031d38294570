//! Redis goes away and comes back; the fronts stay.

use std::time::Duration;

use croft_front::Error;
use croft_front::events::relay::Relay;
use tokio::time::{Instant, sleep, timeout};

use crate::on;
use crate::relay::{PATIENCE, ids, next, numbered};
use crate::server::Server;

fn is_down<T>(result: &Result<T, Error>) -> bool {
    matches!(result, Err(Error::Unavailable { part: "redis", .. }))
}

#[tokio::test]
async fn a_restart_is_told_and_survived() {
    let mut server = Server::start().await;
    let ground = on(&server.url()).await;
    let (tenant, session) = ids();
    let mut listener = ground.theirs.subscribe(tenant, session).await.unwrap();
    ground.ours.publish(tenant, session, &numbered(1)).await.unwrap();
    assert_eq!(next(&mut listener).await, Some(numbered(1)));

    server.kill().await;
    // The listener learns that it may miss something, although nobody says a word.
    assert_eq!(next(&mut listener).await, None);
    let mut shortest = Duration::MAX;
    for _ in 0..3 {
        let asked = Instant::now();
        assert!(is_down(&ground.ours.publish(tenant, session, &numbered(2)).await));
        assert!(is_down(&ground.theirs.subscribe(tenant, session).await));
        assert!(is_down(&ground.ours.check().await));
        shortest = shortest.min(asked.elapsed());
    }
    assert!(shortest < Duration::from_secs(5), "it says so at once, but for stalls of the machine: {shortest:?}");

    server.run().await;
    let mut listener = timeout(PATIENCE, async {
        loop {
            match ground.theirs.subscribe(tenant, session).await {
                Ok(listener) => return listener,
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    })
    .await
    .expect("listening works again");
    let publishing = async {
        while ground.ours.publish(tenant, session, &numbered(3)).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, publishing).await.expect("publishing works again");
    assert_eq!(next(&mut listener).await, Some(numbered(3)));
    ground.ours.check().await.unwrap();
    drop(listener);
    ground.end().await;
}

#[tokio::test]
async fn a_front_may_start_before_its_redis() {
    let mut server = Server::stopped();
    let ground = on(&server.url()).await;
    let (tenant, session) = ids();
    assert!(is_down(&ground.ours.check().await));
    assert!(is_down(&ground.theirs.subscribe(tenant, session).await));
    server.run().await;
    let listening = async {
        loop {
            if let Ok(listener) = ground.theirs.subscribe(tenant, session).await {
                return listener;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    let mut listener = timeout(PATIENCE, listening).await.expect("listening works");
    let publishing = async {
        while ground.ours.publish(tenant, session, &numbered(1)).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, publishing).await.expect("publishing works");
    assert_eq!(next(&mut listener).await, Some(numbered(1)));
    drop(listener);
    ground.end().await;
}

/// A listener of one session does not keep another from hearing that the link broke.
#[tokio::test]
async fn every_listener_is_told_of_a_broken_link() {
    let mut server = Server::start().await;
    let ground = on(&server.url()).await;
    let mut listeners = Vec::new();
    for _ in 0..20 {
        let (tenant, session) = ids();
        listeners.push(ground.ours.subscribe(tenant, session).await.unwrap());
    }
    server.kill().await;
    for listener in &mut listeners {
        assert_eq!(next(listener).await, None);
    }
    ground.end().await;
}

/// Nothing tells of a machine that vanished: its connection must be asked.
#[tokio::test]
async fn a_silent_redis_is_found_out() {
    let server = Server::start().await;
    let ground = on(&server.url()).await;
    let (tenant, session) = ids();
    let mut listener = ground.ours.subscribe(tenant, session).await.unwrap();
    server.freeze().await;
    assert!(is_down(&ground.ours.publish(tenant, session, &numbered(1)).await));
    assert_eq!(next(&mut listener).await, None);
    assert!(is_down(&ground.ours.subscribe(tenant, session).await));
    ground.end().await;
}

/// The connection that was refused once was kept for ever.
#[tokio::test]
async fn a_redis_that_refused_the_password_takes_what_is_published_once_it_knows_it() {
    let server = Server::start().await;
    server.ask_for("another").await;
    let ground = on(&server.url_with("ours")).await;
    let (tenant, session) = ids();
    for _ in 0..3 {
        assert!(is_down(&ground.ours.check().await));
        assert!(is_down(&ground.ours.publish(tenant, session, &numbered(1)).await));
        assert!(is_down(&ground.theirs.subscribe(tenant, session).await));
    }
    server.ask_for_another("another", "ours").await;
    let publishing = async {
        while ground.ours.publish(tenant, session, &numbered(2)).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, publishing).await.expect("publishing works");
    ground.ours.check().await.unwrap();
    let listening = async {
        loop {
            match ground.theirs.subscribe(tenant, session).await {
                Ok(listener) => return listener,
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    };
    drop(timeout(PATIENCE, listening).await.expect("listening works"));
    ground.end().await;
}
