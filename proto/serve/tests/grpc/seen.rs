//! Each call leaves its count, by method and code.

use std::time::Duration;

use axum::http::{HeaderMap, Request};
use croft_serve::grpc::Unremarkable;
use croft_serve::{Metrics, Readiness, Tasks, health};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::{ErrorDetails, StatusExt as _};
use tower::ServiceExt;

use crate::collector::{Collector, Running, nothing, something, with_health};

const SERVICE: &str = "opentelemetry.proto.collector.trace.v1.TraceService";

fn count(metrics: &Metrics, service: &str, method: &str, code: &str, whose: &str) -> String {
    let series =
        format!(r#"croft_grpc_requests_total{{code="{code}",method="{method}",service="{service}",whose="{whose}"}} "#);
    let text = metrics.text().unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(&series)).unwrap_or("none");
    value.to_owned()
}

/// The count is made as the last bytes leave, which the client may notice first.
async fn counted(metrics: &Metrics, method: &str, code: &str, expected: &str) {
    counted_of(metrics, method, code, "", expected).await;
}

async fn counted_of(metrics: &Metrics, method: &str, code: &str, whose: &str, expected: &str) {
    let service = if method == "unknown" { "unknown" } else { SERVICE };
    let wait = async {
        while count(metrics, service, method, code, whose) != expected {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let outcome = tokio::time::timeout(Duration::from_secs(90), wait).await;
    assert!(outcome.is_ok(), "{method} {code} should be {expected}:\n{}", metrics.text().unwrap());
}

#[tokio::test]
async fn calls_are_counted_by_method_and_code() {
    let collector = Collector::new();
    let server = Running::start(collector.routes(), None).await;
    let mut client = TraceServiceClient::new(server.channel().await);
    client.export(something()).await.unwrap();
    client.export(something()).await.unwrap();
    assert_eq!(client.export(nothing()).await.unwrap_err().code(), Code::InvalidArgument);
    counted(&server.metrics, "Export", "Ok", "2").await;
    counted(&server.metrics, "Export", "InvalidArgument", "1").await;
    let text = server.metrics.text().unwrap();
    assert!(text.contains("croft_grpc_request_duration_seconds_count{code=\"Ok\",method=\"Export\""), "{text}");
}

#[tokio::test]
async fn a_call_that_its_caller_leaves_is_counted_as_cancelled() {
    let collector = Collector::with_answers(0);
    let server = Running::start(collector.routes(), None).await;
    let mut client = TraceServiceClient::new(server.channel().await);
    tokio::select! {
        _ = client.export(something()) => panic!("it should not be answered"),
        arrived = collector.arrived.acquire() => arrived.unwrap().forget(),
    }
    counted(&server.metrics, "Export", "Cancelled", "1").await;
}

/// Whatever it is answered: a server that looks at credentials first never says that it hasn't got the method.
#[tokio::test]
async fn a_name_that_its_caller_made_up_makes_no_series() {
    let refuse = || async { Status::unauthenticated("who is it?").into_http::<Body>() };
    let health = health::service(&Readiness::new(), &Tasks::new(), &[]).await;
    let guarded = Routes::from(Routes::new(health).into_axum_router().fallback(refuse));
    let server = Running::start(guarded, None).await;
    let channel = server.channel().await;
    for path in ["/croft.v1.LifecycleService/Nonsense", "/nonsense/Export", "/nonsense"] {
        let request = Request::post(path).header("content-type", "application/grpc").body(Body::empty()).unwrap();
        let answer = channel.clone().oneshot(request).await.unwrap();
        assert_eq!(answer.headers().get("grpc-status").unwrap(), "16", "UNAUTHENTICATED");
    }
    counted(&server.metrics, "unknown", "Unauthenticated", "3").await;
    let text = server.metrics.text().unwrap();
    assert!(!text.contains("onsense"), "{text}");
}

/// Once, who called without a credential, and a tenant whose workers crash, looked like a failing platform.
#[tokio::test]
async fn what_a_caller_or_a_tenant_brings_about_is_counted_apart() {
    let unavailable = |reason: &str| {
        let details = ErrorDetails::with_error_info(reason, "croft.dev", []);
        Status::with_error_details(Code::Unavailable, "later", details)
    };
    let answer = move |headers: HeaderMap| async move {
        let status = match headers["why"].to_str().unwrap() {
            "anybody" => {
                let mut answer = Status::deadline_exceeded("no time").into_http::<Body>();
                answer.extensions_mut().insert(Unremarkable);
                return answer;
            }
            reason => unavailable(reason),
        };
        status.into_http()
    };
    let health = health::service(&Readiness::new(), &Tasks::new(), &[]).await;
    let server = Running::start(Routes::from(Routes::new(health).into_axum_router().fallback(answer)), None).await;
    let channel = server.channel().await;
    for why in ["anybody", "anybody", "NO_WORKER", "WORKER_LOST", "NO_WORKER", "UNAVAILABLE"] {
        let request = Request::post("/nonsense").header("content-type", "application/grpc").header("why", why);
        channel.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    }
    counted_of(&server.metrics, "unknown", "DeadlineExceeded", "caller", "2").await;
    counted_of(&server.metrics, "unknown", "Unavailable", "tenant", "3").await;
    counted(&server.metrics, "unknown", "Unavailable", "1").await;
    assert_eq!(count(&server.metrics, "unknown", "unknown", "DeadlineExceeded", ""), "none");
}

#[tokio::test]
async fn probes_are_not_counted() {
    let (collector, readiness) = (Collector::new(), Readiness::new());
    let health = health::service(&readiness, &Tasks::new(), &[]).await;
    let server = Running::start(with_health(&collector, health), None).await;
    let mut probe = HealthClient::new(server.channel().await);
    probe.check(HealthCheckRequest::default()).await.unwrap();
    let mut client = TraceServiceClient::new(server.channel().await);
    client.export(something()).await.unwrap();
    counted(&server.metrics, "Export", "Ok", "1").await;
    assert!(!server.metrics.text().unwrap().contains("grpc.health"));
}
