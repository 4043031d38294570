//! `grpc.health.v1` says what `/readyz` says.

use croft_serve::{Readiness, Tasks, health};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::collector::{Collector, Running, with_health};

const SERVICE: &str = "croft.v1.LifecycleService";

#[tokio::test]
async fn health_follows_readiness_to_the_end() {
    let (readiness, tasks) = (Readiness::new(), Tasks::new());
    let postgres = readiness.check("postgres");
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
    postgres.not_ready("connection refused");
    assert_eq!(told.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    postgres.ready();
    assert_eq!(told.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    tasks.stopping().cancel();
    assert_eq!(told.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
}
