//! `grpc.health.v1` says what `/servingz` says.

use std::time::Duration;

use croft_serve::connections::Bounds;
use croft_serve::{Readiness, Tasks, health};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::collector::{Collector, Running, with_health};

const SERVICE: &str = "croft.v1.LifecycleService";

#[tokio::test]
async fn health_follows_readiness_to_the_end() {
    let (readiness, tasks) = (Readiness::new(), Tasks::new());
    let postgres = readiness.check("postgres");
    // Not there, and not needed.
    let redis = readiness.tells("redis");
    let service = health::service(&readiness, &tasks, &[SERVICE]).await;
    let server = Running::start(with_health(&Collector::new(), service), None).await;
    let mut client = HealthClient::new(server.channel().await);

    for name in ["", SERVICE] {
        let request = HealthCheckRequest { service: name.to_owned() };
        let now = client.check(request).await.unwrap().into_inner();
        assert_eq!(now.status(), ServingStatus::NotServing, "{name:?}");
    }
    let request = HealthCheckRequest { service: SERVICE.to_owned() };
    let mut told = client.watch(request).await.unwrap().into_inner();
    assert_eq!(told.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    postgres.ready();
    assert_eq!(told.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    redis.ready();
    redis.not_ready("connection refused");
    postgres.not_ready("connection refused");
    assert_eq!(told.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    postgres.ready();
    assert_eq!(told.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    tasks.stopping().cancel();
    assert_eq!(told.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert_eq!(told.message().await.unwrap(), None);
}

/// Nobody asks who it is, so it must not cost every shutdown its whole grace.
#[tokio::test]
async fn whoever_watches_health_holds_up_no_shutdown() {
    let tasks = Tasks::new();
    let readiness = Readiness::new();
    let service = health::service(&readiness, &tasks, &[SERVICE]).await;
    let server =
        Running::owned_by(tasks.clone(), Bounds::default(), with_health(&Collector::new(), service), None).await;
    let mut client = HealthClient::new(server.channel().await);
    let mut told = client.watch(HealthCheckRequest { service: SERVICE.to_owned() }).await.unwrap().into_inner();
    assert_eq!(told.message().await.unwrap().unwrap().status(), ServingStatus::Serving);

    let began = tokio::time::Instant::now();
    assert_eq!(tasks.shutdown(Duration::from_mins(2)).await, 0);
    assert!(began.elapsed() < Duration::from_mins(1), "{:?}", began.elapsed());
    assert_eq!(told.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert_eq!(told.message().await.unwrap(), None);
}

#[tokio::test]
async fn so_many_may_watch_health_and_one_more_once_somebody_goes() {
    const WATCHES_MAX: usize = 256;
    let tasks = Tasks::new();
    let readiness = Readiness::new();
    let service = health::service(&readiness, &tasks, &[]).await;
    let server = Running::start(with_health(&Collector::new(), service), None).await;
    let mut watching = Vec::new();
    // On connections of their own, as each has only so many streams.
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(HealthClient::new(server.channel().await));
    }
    for number in 0..WATCHES_MAX {
        let client = &mut clients[number % 8];
        watching.push(client.watch(HealthCheckRequest::default()).await.unwrap().into_inner());
    }
    let refused = clients[0].watch(HealthCheckRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    // One that only asks is answered.
    clients[0].check(HealthCheckRequest::default()).await.unwrap();

    watching.pop();
    let again = async {
        while clients[0].watch(HealthCheckRequest::default()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(90), again).await.expect("the place of one that went is free");
}

/// Nobody asks who it is, so that nobody may have the program hold more than a name.
#[tokio::test]
async fn a_question_of_many_bytes_is_refused_unread() {
    let tasks = Tasks::new();
    let service = health::service(&Readiness::new(), &tasks, &[]).await;
    let server = Running::start(with_health(&Collector::new(), service), None).await;
    let mut client = HealthClient::new(server.channel().await);
    let long = || HealthCheckRequest { service: "x".repeat(64 * 1024) };
    assert_eq!(client.check(long()).await.unwrap_err().code(), Code::OutOfRange);
    assert_eq!(client.watch(long()).await.unwrap_err().code(), Code::OutOfRange);
    client.check(HealthCheckRequest::default()).await.unwrap();
}
