//! Recorded bodies, decoded without a call: for measurements, and for whoever has to find out what a provider meant.

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use tokio::time::Instant;

use crate::answer::decoded;
use crate::body::Limits;
use crate::provider::DeltaStream;
use crate::{anthropic, gemini, openai};

/// The interfaces that bodies are recorded from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Anthropic,
    OpenAiChat,
    OpenAiResponses,
    Gemini,
}

impl Format {
    /// All of them, for tables and tests.
    pub const ALL: [Self; 4] = [Self::Anthropic, Self::OpenAiChat, Self::OpenAiResponses, Self::Gemini];

    /// The folder of its golden streams.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Anthropic => "anthropic",
            Self::OpenAiChat => "openai-chat",
            Self::OpenAiResponses => "openai-responses",
            Self::Gemini => "gemini",
        }
    }

    /// What a body comes to. The answer must begin within `limits.opened` from now.
    pub fn deltas<S, E>(self, bytes: S, limits: Limits) -> DeltaStream
    where
        S: Stream<Item = Result<Bytes, E>> + Send + Unpin + 'static,
        E: std::error::Error + Send + Sync + 'static,
    {
        let until = Instant::now() + limits.opened;
        // Of the conversation before it nothing is known.
        let messages = 0;
        match self {
            Self::Anthropic => decoded(bytes, anthropic::Decoder::default(), limits, until).boxed(),
            Self::OpenAiChat => decoded(bytes, openai::chat::Decoder::new(messages), limits, until).boxed(),
            Self::OpenAiResponses => decoded(bytes, openai::responses::Decoder::default(), limits, until).boxed(),
            Self::Gemini => decoded(bytes, gemini::Decoder::new(messages), limits, until).boxed(),
        }
    }
}
