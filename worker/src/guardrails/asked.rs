//! A check that a server of the tenant's makes: it is told the text, and says whether it may go on.

use std::time::Duration;

use croft_proto::v1::HttpCheck;
use croft_serve::config::http_url;
use croft_serve::log::chain;
use serde::{Deserialize, Serialize};

use super::Verdict;
use crate::http_client::HttpClient;

/// How long a server may take if the agent says nothing.
const TIMEOUT: Duration = Duration::from_secs(5);
/// No agent may give it longer.
const TIMEOUT_MAX: Duration = Duration::from_mins(5);
/// Bytes of an answer. A longer one is no answer.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Bytes of a text that a server is asked about. Of a longer one it is not asked, which counts as no answer.
const TEXT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The fixed word for that a text does not pass because no answer came, which may come another time.
pub(super) const UNANSWERED: &str = "http_unanswered";
/// The fixed word for that a text does not pass because what came is no answer, and would be none another time.
const UNUSABLE: &str = "http_unusable";

/// A server that is asked.
pub(super) struct Asked {
    client: reqwest::Client,
    url: String,
    timeout: Duration,
    /// What it does not answer in time goes on.
    fail_open: bool,
}

#[derive(Serialize)]
struct Question<'a> {
    guardrail: &'a str,
    /// `input`, `tool_arguments`, `tool_result` or `output`.
    stage: &'a str,
    text: &'a str,
}

#[derive(Deserialize)]
struct Answer {
    allowed: bool,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the text is longer than {TEXT_BYTES_MAX} bytes")]
    TooLong,
    #[error("the server gave no answer in time")]
    Late,
    #[error("the server can't be asked")]
    Unreachable(#[source] reqwest::Error),
    #[error("the server answered with status {0}")]
    Status(u16),
    #[error("the server's answer is longer than {ANSWER_BYTES_MAX} bytes")]
    Endless,
    #[error("the server's answer is not understood")]
    NotUnderstood(#[source] serde_json::Error),
}

impl Error {
    /// The fixed word for why a text does not pass.
    fn reason(&self) -> &'static str {
        match self {
            Self::Late | Self::Unreachable(_) | Self::Status(408 | 429 | 500..) => UNANSWERED,
            Self::TooLong | Self::Status(_) | Self::Endless | Self::NotUnderstood(_) => UNUSABLE,
        }
    }
}

impl Asked {
    pub(super) fn open(spec: &HttpCheck, client: &HttpClient) -> Result<Self, String> {
        let url = http_url(&spec.url).map_err(|problem| format!("its url {problem}"))?;
        let client = client.get().map_err(|error| format!("no TLS client can be made: {}", chain(&error)))?;
        let timeout = match u64::try_from(spec.timeout_ms) {
            Ok(0) | Err(_) => TIMEOUT,
            Ok(milliseconds) => Duration::from_millis(milliseconds).min(TIMEOUT_MAX),
        };
        Ok(Self { client, url, timeout, fail_open: spec.fail_open })
    }

    /// What the server says of a text.
    pub(super) async fn about(&self, guardrail: &str, stage: &str, text: &str) -> Verdict {
        let asked = async {
            match tokio::time::timeout(self.timeout, self.ask(&Question { guardrail, stage, text })).await {
                Ok(answer) => answer,
                Err(_) => Err(Error::Late),
            }
        };
        match asked.await {
            Ok(Answer { allowed: true }) => Verdict::Passed,
            Ok(Answer { allowed: false }) => Verdict::Refused("http"),
            Err(error) => {
                let fail_open = self.fail_open;
                tracing::warn!(guardrail, fail_open, error = %chain(&error), "a guardrail's server gave no answer");
                if fail_open { Verdict::Passed } else { Verdict::Refused(error.reason()) }
            }
        }
    }

    async fn ask(&self, question: &Question<'_>) -> Result<Answer, Error> {
        if question.text.len() > TEXT_BYTES_MAX {
            return Err(Error::TooLong);
        }
        let unreachable = |error: reqwest::Error| Error::Unreachable(error.without_url());
        let mut response = self.client.post(&self.url).json(question).send().await.map_err(unreachable)?;
        if response.status() != reqwest::StatusCode::OK {
            return Err(Error::Status(response.status().as_u16()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(Error::Endless);
            }
            body.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&body).map_err(Error::NotUnderstood)
    }
}
