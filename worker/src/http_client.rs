//! The one HTTP client of a worker's guardrails and tools, made when it is first needed. Models have clients of their own.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Clones share it.
#[derive(Clone, Default)]
pub(crate) struct HttpClient {
    made: Arc<OnceLock<reqwest::Client>>,
}

impl HttpClient {
    /// Fails when no TLS client can be made, for example without any root certificate on the machine.
    pub(crate) fn get(&self) -> Result<reqwest::Client, reqwest::Error> {
        if let Some(client) = self.made.get() {
            return Ok(client.clone());
        }
        let client = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            // Somebody else's server must not be told what was said, nor with which credential.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("croft/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(self.made.get_or_init(|| client).clone())
    }
}
