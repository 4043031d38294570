//! Chat Completions, streamed: `POST {base_url}/v1/chat/completions`.
//!
//! Format: <https://platform.openai.com/docs/api-reference/chat-streaming>.

mod calls;
mod decode;
mod dialect;
mod encode;

use std::sync::Arc;

use super::{MANNER, NAME, Settings};
use crate::provider::{DeltaStream, Provider};
use crate::request::Request;
use crate::wire::{Wire, root};
pub(crate) use decode::Decoder;
pub(crate) use decode::REASONING_CONTENT;
pub(super) use decode::Usage;
use dialect::Dialect;
pub(super) use encode::url;

/// See the module.
#[derive(Clone)]
pub struct Chat {
    wire: Arc<Wire>,
    url: String,
    dialect: Dialect,
}

impl Chat {
    /// Fails when no TLS client can be made, for example without any root certificate on the machine.
    pub fn new(settings: Settings) -> Result<Self, reqwest::Error> {
        let Settings { base_url, api_key, limits } = settings;
        let url = format!("{}/v1/chat/completions", root(&base_url, "/v1"));
        Ok(Self { wire: Wire::new(MANNER, api_key, limits)?, url, dialect: Dialect::of(&base_url) })
    }
}

impl Provider for Chat {
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
        let (decoder, dialect) = (Decoder::new(request.messages.len()), self.dialect);
        self.wire.stream(self.url.clone(), move || encode::body(&request, dialect), decoder)
    }
}
