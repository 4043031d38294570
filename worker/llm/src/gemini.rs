//! The Gemini API, streamed: `POST {base_url}/v1beta/models/{model}:streamGenerateContent?alt=sse`.
//!
//! Format: <https://ai.google.dev/api/generate-content>.

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
pub(crate) use decode::{Decoder, SIGNATURE};

/// The name by which it is configured and granted.
pub const NAME: &str = "gemini";
/// Where it is, unless configured otherwise.
pub const BASE_URL: &str = "https://generativelanguage.googleapis.com";

const MANNER: Manner =
    Manner { provider: NAME, key_header: ("x-goog-api-key", ""), headers: &[], refused: failure::of_status };

/// See the module.
#[derive(Clone)]
pub struct Gemini {
    wire: Arc<Wire>,
    root: String,
}

impl Gemini {
    /// Fails when no TLS client can be made, for example without any root certificate on the machine.
    pub fn new(settings: Settings) -> Result<Self, reqwest::Error> {
        let Settings { base_url, api_key, limits } = settings;
        Ok(Self { wire: Wire::new(MANNER, api_key, limits)?, root: root(&base_url, "/v1beta") })
    }

    fn url(&self, model: &str, method: &str) -> String {
        // The name is a part of the path, and must stay one.
        let model: String = model.chars().map(|letter| if is_of_a_name(letter) { letter } else { '_' }).collect();
        format!("{}/v1beta/models/{model}:{method}", self.root)
    }
}

fn is_of_a_name(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.')
}

impl Provider for Gemini {
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
        let url = self.url(&request.model, "streamGenerateContent?alt=sse");
        let decoder = Decoder::new(request.messages.len());
        self.wire.stream(url, move || encode::body(&request), decoder)
    }

    fn count_tokens(&self, request: Request) -> BoxFuture<'_, Result<Option<u32>, Error>> {
        async move {
            let url = self.url(&request.model, "countTokens");
            let told = self.wire.ask(&url, &encode::count(&request)).await?;
            Ok(told.get("totalTokens").and_then(Value::as_u64).and_then(|count| u32::try_from(count).ok()))
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;

    use super::*;
    use crate::body::Limits;

    #[test]
    fn a_models_name_does_not_lead_elsewhere() {
        let (base_url, api_key) = ("https://x.test/v1beta/".into(), SecretString::from("k").into());
        let settings = Settings { base_url, api_key, limits: Limits::default() };
        let url = Gemini::new(settings).unwrap().url("../files?x=gemini-3.8-flash", "countTokens");
        assert_eq!(url, "https://x.test/v1beta/models/.._files_x_gemini-3.8-flash:countTokens");
    }
}
