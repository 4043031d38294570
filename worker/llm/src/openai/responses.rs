//! The Responses API, streamed: `POST {base_url}/v1/responses`. Nothing is stored at OpenAI: what it reasoned comes back
//! encrypted, and goes to it again with the conversation.
//!
//! Format: <https://platform.openai.com/docs/api-reference/responses-streaming>.

mod decode;
mod encode;

use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde_json::Value;

use super::{MANNER, NAME, Settings};
use crate::error::Error;
use crate::provider::{DeltaStream, Provider};
use crate::request::Request;
use crate::wire::{Wire, root};
pub(crate) use decode::Decoder;

/// See the module.
#[derive(Clone)]
pub struct Responses {
    wire: Arc<Wire>,
    url: String,
}

impl Responses {
    /// Fails when no TLS client can be made, for example without any root certificate on the machine.
    pub fn new(settings: Settings) -> Result<Self, reqwest::Error> {
        let Settings { base_url, api_key, limits } = settings;
        let url = format!("{}/v1/responses", root(&base_url, "/v1"));
        Ok(Self { wire: Wire::new(MANNER, api_key, limits)?, url })
    }
}

impl Provider for Responses {
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
        self.wire.stream(self.url.clone(), move || encode::body(&request), Decoder::default())
    }

    fn count_tokens(&self, request: Request) -> BoxFuture<'_, Result<Option<u32>, Error>> {
        async move {
            let url = format!("{}/input_tokens", self.url);
            let told = self.wire.ask(&url, &encode::count(&request)).await?;
            Ok(told.get("input_tokens").and_then(Value::as_u64).and_then(|count| u32::try_from(count).ok()))
        }
        .boxed()
    }
}
