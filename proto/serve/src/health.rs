//! The standard `grpc.health.v1` service, kept in step with [`Readiness`].

mod watches;

use axum::http::StatusCode;
use axum::routing::get;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::{HealthReporter, HealthService};

use crate::{Readiness, Tasks};
use watches::Watches;

/// Of what anybody may ask: the name of a service. At the bound it is refused with `OUT_OF_RANGE`, unread.
const REQUEST_BYTES_MAX: usize = 1024;

/// The service to add to a gRPC server. The empty name and each of `services` (full names, such as
/// `croft.v1.LifecycleService`) serve exactly while [`Readiness::serves`]. 256 may watch at a time; once
/// [`Tasks::stopping`], they are told that nothing serves any more, and their streams end.
pub async fn service(
    readiness: &Readiness,
    tasks: &Tasks,
    services: &[&'static str],
) -> HealthServer<impl Health + use<>> {
    let (reporter, told) = (HealthReporter::new(), CancellationToken::new());
    let server = HealthServer::new(Watches::new(HealthService::from_health_reporter(reporter.clone()), told.clone()))
        .max_decoding_message_size(REQUEST_BYTES_MAX);
    let names: Vec<&'static str> = std::iter::once("").chain(services.iter().copied()).collect();
    let mut changes = readiness.watch();
    let stopping = tasks.stopping();
    for name in &names {
        reporter.set_service_status(name, status(readiness.serves())).await;
    }
    tasks.spawn_endless("grpc-health", async move {
        let _told = told.drop_guard();
        while let Some(Some(serves)) = stopping.run_until_cancelled(changes.next()).await {
            for name in &names {
                reporter.set_service_status(name, status(serves)).await;
            }
        }
        // Whoever still asks must go elsewhere.
        for name in &names {
            reporter.set_service_status(name, ServingStatus::NotServing).await;
        }
    });
    server
}

fn status(serves: bool) -> ServingStatus {
    if serves { ServingStatus::Serving } else { ServingStatus::NotServing }
}

/// `/healthz`, which answers 200 as long as the process does; `/readyz`, which answers 503 with a line per problem while there are any;
/// and `/servingz`, which does the same of those for which nobody can be served: whoever sends calls here goes by it.
pub fn routes(readiness: &Readiness) -> axum::Router {
    let told = |problems: fn(&Readiness) -> Vec<String>| {
        let readiness = readiness.clone();
        get(move || std::future::ready(answer(&problems(&readiness))))
    };
    axum::Router::new()
        .route("/healthz", get(|| std::future::ready("ok\n")))
        .route("/readyz", told(Readiness::problems))
        .route("/servingz", told(Readiness::obstacles))
}

fn answer(problems: &[String]) -> (StatusCode, String) {
    if problems.is_empty() {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, problems.join("\n") + "\n")
    }
}
