//! What browsers need beyond SSE and WebSocket: gRPC-Web on the same port, and leave to call from pages of other origins.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::response::Response;
use tonic_web::GrpcWebLayer;
use tower::{Layer, Service};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::{Shared, failure};

/// How long a browser may remember what it was allowed.
const PREFLIGHT_MAX_AGE: std::time::Duration = std::time::Duration::from_mins(10);

/// Of the calls that browsers make here.
const ASKED: [HeaderName; 9] = [
    AUTHORIZATION,
    CONTENT_TYPE,
    ACCEPT,
    HeaderName::from_static("x-grpc-web"),
    HeaderName::from_static("x-user-agent"),
    HeaderName::from_static("grpc-timeout"),
    HeaderName::from_static("last-event-id"),
    // By which a page's trace goes on here: <https://www.w3.org/TR/trace-context/>.
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
];

/// Of the answers; a page sees no other.
const ANSWERED: [HeaderName; 4] = [
    HeaderName::from_static("grpc-status"),
    HeaderName::from_static("grpc-message"),
    HeaderName::from_static("grpc-status-details-bin"),
    RETRY_AFTER,
];

/// Lets pages of these origins call; `*` is any. Credentials are tokens that a page must have, not cookies that a browser
/// adds, so nobody is spoken for by a page that he only looks at.
pub(super) fn cors(allowed_origins: &[HeaderValue]) -> CorsLayer {
    let origins = if allowed_origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(allowed_origins.iter().cloned())
    };
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(ASKED)
        .expose_headers(ANSWERED)
        .max_age(PREFLIGHT_MAX_AGE)
}

/// Every path that is not one of the gateway's own: a call of gRPC-Web, or a mistake.
pub(super) async fn elsewhere(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let is_grpc_web = request
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .is_some_and(|kind| kind.starts_with("application/grpc-web"));
    if !is_grpc_web {
        return failure::response(StatusCode::NOT_FOUND, "NO_SUCH_PATH", "there is nothing at this path");
    }
    let mut calls = GrpcWebLayer::new().layer(shared.gateway.grpc.clone());
    match calls.call(request).await {
        Ok(answer) => answer.map(Body::new),
        Err(never) => match never {},
    }
}
