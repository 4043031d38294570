//! How a request becomes a WebSocket.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::http::Request;
use axum::http::request::Parts;
use axum::response::Response;
use hyper::upgrade::{OnUpgrade, on};

/// A request that may ask for a WebSocket. axum checks that and makes the answer; the stream it would keep to itself.
pub(in crate::gateway) struct Upgrade {
    checked: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
    stream: OnUpgrade,
}

impl<S: Send + Sync> FromRequestParts<S> for Upgrade {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        // In its place there is one that comes to nothing.
        let never = on(Request::new(()));
        let stream = match parts.extensions.get_mut::<OnUpgrade>() {
            Some(stream) => std::mem::replace(stream, never),
            None => never,
        };
        Ok(Self { checked: WebSocketUpgrade::from_request_parts(parts, state).await, stream })
    }
}

impl Upgrade {
    /// The answer, and the stream that is there once it is given. `None` for what is no such request.
    pub(super) fn accept(self, protocol: &'static str) -> Option<(Response, OnUpgrade)> {
        let checked = self.checked.inspect_err(|rejection| tracing::debug!(%rejection, "no upgrade")).ok()?;
        Some((checked.protocols([protocol]).on_upgrade(|_| std::future::ready(())), self.stream))
    }
}
