//! The Anthropic Messages API, streamed: `POST {base_url}/v1/messages`, version 2023-06-01.
//!
//! Format: <https://docs.anthropic.com/en/docs/build-with-claude/streaming>.

mod cache;
mod decode;
mod encode;
mod failure;

use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde_json::Value;

use crate::error::Error;
use crate::provider::{DeltaStream, Provider};
use crate::request::Request;
pub use crate::wire::Settings;
use crate::wire::{Manner, Wire, root};
pub(crate) use decode::Decoder;

/// The name by which it is configured and granted.
pub const NAME: &str = "anthropic";
/// Where it is, unless configured otherwise.
pub const BASE_URL: &str = "https://api.anthropic.com";

const MANNER: Manner = Manner {
    provider: NAME,
    key_header: ("x-api-key", ""),
    headers: &[("anthropic-version", "2023-06-01")],
    refused: failure::of_status,
};

/// See the module.
#[derive(Clone)]
pub struct Anthropic {
    wire: Arc<Wire>,
    root: String,
}

impl Anthropic {
    /// Fails when no TLS client can be made, for example without any root certificate on the machine.
    pub fn new(settings: Settings) -> Result<Self, reqwest::Error> {
        let Settings { base_url, api_key, limits } = settings;
        Ok(Self { wire: Wire::new(MANNER, api_key, limits)?, root: root(&base_url, "/v1") })
    }
}

impl Provider for Anthropic {
    fn name(&self) -> &'static str {
        NAME
    }

    fn account(&self) -> u64 {
        self.wire.account()
    }

    fn has_key(&self) -> bool {
        self.wire.has_key()
    }

    fn stream(&self, request: Request) -> DeltaStream {
        let url = format!("{}/v1/messages", self.root);
        self.wire.stream(url, move || encode::body(&request), Decoder::default())
    }

    fn count_tokens(&self, request: Request) -> BoxFuture<'_, Result<Option<u32>, Error>> {
        async move {
            let url = format!("{}/v1/messages/count_tokens", self.root);
            let told = self.wire.ask(&url, &encode::count(&request)).await?;
            Ok(told.get("input_tokens").and_then(Value::as_u64).and_then(|count| u32::try_from(count).ok()))
        }
        .boxed()
    }
}
