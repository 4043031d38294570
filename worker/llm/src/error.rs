//! How a model call fails, whichever provider it was.

use std::time::Duration;

/// What a failure means for the caller. The words are part of the contract (`ModelAttempt.error_class`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Too many calls or tokens a minute; later they go through.
    Rate,
    /// The account's money or allowance is spent; waiting does not help.
    Quota,
    /// The provider is overloaded or failed by itself.
    Overload,
    /// The key is missing, wrong, or may not do this.
    Auth,
    /// The provider refuses this request as it is.
    Invalid,
    /// The conversation is too long for the model.
    Context,
    /// The provider's policy refuses the content.
    Content,
    /// Nothing came in time.
    Timeout,
    /// The connection failed, or what came was not the protocol.
    Network,
    /// The answer ended before it was whole.
    Truncated,
}

impl Class {
    /// All classes, for tables and tests.
    pub const ALL: [Self; 10] = [
        Self::Rate,
        Self::Quota,
        Self::Overload,
        Self::Auth,
        Self::Invalid,
        Self::Context,
        Self::Content,
        Self::Timeout,
        Self::Network,
        Self::Truncated,
    ];

    /// The fixed word for events and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Quota => "quota",
            Self::Overload => "overload",
            Self::Auth => "auth",
            Self::Invalid => "invalid",
            Self::Context => "context",
            Self::Content => "content",
            Self::Timeout => "timeout",
            Self::Network => "network",
            Self::Truncated => "truncated",
        }
    }

    /// The class of that word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.as_str() == word)
    }

    /// The same call may well succeed if made again.
    pub fn is_retryable(self) -> bool {
        match self {
            Self::Rate | Self::Overload | Self::Timeout | Self::Network | Self::Truncated => true,
            Self::Quota | Self::Auth | Self::Invalid | Self::Context | Self::Content => false,
        }
    }
}

/// A model call that did not end well. The message is the provider's own where it gave one, with the key blotted out.
#[derive(Debug, thiserror::Error)]
#[error("{provider} failed ({}): {message}", class.as_str())]
pub struct Error {
    pub provider: &'static str,
    pub class: Class,
    pub message: String,
    /// The HTTP status, when the call was refused before an answer began.
    pub status: Option<u16>,
    /// How long the provider asks us to wait.
    pub retry_after: Option<Duration>,
    /// Set where the provider says of this failure whether to try again, whatever its class, and where it was an answer without end.
    pub should_retry: Option<bool>,
    /// The provider's id of the request, for its support.
    pub request_id: Option<String>,
    /// No call was made: a breaker is open. Nothing was used, and another model may be asked at once.
    pub was_not_made: bool,
    /// The request did not get to the provider: nobody was there to take it.
    pub was_not_sent: bool,
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    pub fn new(provider: &'static str, class: Class, message: impl Into<String>) -> Self {
        Self {
            provider,
            class,
            message: message.into(),
            status: None,
            retry_after: None,
            should_retry: None,
            request_id: None,
            was_not_made: false,
            was_not_sent: false,
            source: None,
        }
    }

    /// The same with the failure that caused it.
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same with the wait that the provider asked for, if it did.
    pub(crate) fn asked_to_wait(mut self, wait: Option<Duration>) -> Self {
        self.retry_after = wait;
        self
    }

    /// The same for a call that was not made.
    pub(crate) fn without_a_call(mut self) -> Self {
        self.was_not_made = true;
        self
    }

    /// The same for a request that did not get to the provider.
    pub(crate) fn unsent(mut self, was_not_sent: bool) -> Self {
        self.was_not_sent = was_not_sent;
        self
    }

    /// Nobody charges for the call, if its answer had not begun: it did not get to the provider, or the provider refused it. One that
    /// took it may have worked on it until the connection broke or somebody's time was over.
    pub fn is_free(&self) -> bool {
        let is_refusal = |status| !matches!(status, 408 | 504 | 524);
        let was_refused = match self.class {
            Class::Timeout => false,
            Class::Network | Class::Truncated => self.status.is_some_and(is_refusal),
            Class::Rate
            | Class::Quota
            | Class::Overload
            | Class::Auth
            | Class::Invalid
            | Class::Context
            | Class::Content => self.status.is_none_or(is_refusal),
        };
        self.was_not_made || self.was_not_sent || was_refused
    }

    /// Whether the same call may be made again.
    pub fn is_retryable(&self) -> bool {
        self.should_retry.unwrap_or_else(|| self.class.is_retryable())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_is_found_by_its_word() {
        for class in Class::ALL {
            assert_eq!(Class::parse(class.as_str()), Some(class));
        }
        assert_eq!(Class::parse("weather"), None);
    }

    #[test]
    fn only_what_was_refused_or_never_got_there_is_free() {
        let error = |class, status| Error { status, ..Error::new("anthropic", class, "no") };
        for (class, status) in [(Class::Overload, Some(503)), (Class::Network, Some(418)), (Class::Auth, None)] {
            assert!(error(class, status).is_free(), "{class:?} {status:?}");
        }
        for (class, status) in [
            (Class::Network, None),
            (Class::Truncated, None),
            (Class::Timeout, None),
            (Class::Timeout, Some(504)),
            (Class::Overload, Some(408)),
            (Class::Overload, Some(524)),
        ] {
            assert!(!error(class, status).is_free(), "{class:?} {status:?}");
        }
        assert!(error(Class::Network, None).unsent(true).is_free());
    }

    #[test]
    fn the_providers_word_on_retrying_wins() {
        let mut error = Error::new("anthropic", Class::Rate, "spend limit");
        assert!(error.is_retryable());
        error.should_retry = Some(false);
        assert!(!error.is_retryable());
    }
}
