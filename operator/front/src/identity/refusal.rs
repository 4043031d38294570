//! Why a token is not taken. The word goes to the log and a counter; the caller hears the same sentence whatever it is, so that trying
//! teaches nothing. There is one exception: an expired token, whose signature is good by then, is told so, because its owner can do
//! something about it.

use prometheus::{IntCounterVec, Opts, Registry};

use super::NEEDED;
use crate::error::Error;

const EXPIRED: &str = "the token has expired";

/// What is wrong with a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Longer than any that is read.
    TooLong,
    /// No signed JSON web token, or one whose header or claims make no sense.
    Malformed,
    /// Signed in no way that this key, or anyone, is trusted by: `none`, a shared secret, another family.
    Algorithm,
    Issuer,
    /// Names no key, or one that the issuer doesn't have.
    UnknownKey,
    Signature,
    Expired,
    NotYetValid,
    Audience,
    /// It doesn't name its tenant as agreed.
    NoTenant,
    /// It names a tenant that doesn't exist, or that its issuer doesn't speak for.
    ForeignTenant,
}

impl Refusal {
    /// For logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TooLong => "too_long",
            Self::Malformed => "malformed",
            Self::Algorithm => "algorithm",
            Self::Issuer => "issuer",
            Self::UnknownKey => "unknown_key",
            Self::Signature => "signature",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Audience => "audience",
            Self::NoTenant => "no_tenant",
            Self::ForeignTenant => "foreign_tenant",
        }
    }
}

/// A token that is no credential.
#[derive(Debug)]
pub(super) enum Failure {
    Refused(Refusal),
    /// It is good, and gives its owner no role here.
    NoRole,
    /// Nobody can say whether it is good, for want of this.
    Missing(&'static str),
}

impl Failure {
    /// For logs and metrics.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.as_str(),
            Self::NoRole => "no_role",
            Self::Missing(_) => "unavailable",
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(Refusal::Expired) => Self::Unauthenticated { problem: EXPIRED },
            Failure::Refused(_) => Self::Unauthenticated { problem: NEEDED },
            Failure::NoRole => Self::Forbidden { action: "any call" },
            Failure::Missing(what) => {
                Self::unavailable(what, anyhow::anyhow!("nothing came yet, or the last try failed"))
            }
        }
    }
}

/// Instruments of tokens and of the keys they are checked with.
#[derive(Clone)]
pub(super) struct Metrics {
    /// By reason.
    pub(super) refused: IntCounterVec,
    /// By provider and outcome.
    pub(super) fetches: IntCounterVec,
}

impl Metrics {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let refused = Opts::new("croft_refused_tokens_total", "JSON web tokens that were refused, by reason");
        let refused = IntCounterVec::new(refused, &["reason"])?;
        registry.register(Box::new(refused.clone()))?;
        let fetches = Opts::new("croft_jwks_fetches_total", "Fetches of an issuer's keys, by provider and outcome");
        let fetches = IntCounterVec::new(fetches, &["provider", "outcome"])?;
        registry.register(Box::new(fetches.clone()))?;
        Ok(Self { refused, fetches })
    }
}
