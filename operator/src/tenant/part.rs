//! The parts of a tenant that are told of one by one.

use super::Error;

/// In the order in which they are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Namespace,
    Fence,
    Quota,
    LimitRange,
    /// The workers' ServiceAccount.
    Identity,
    /// The workers' certificate.
    Certificate,
    /// The workers' list of providers, and the platform's keys among theirs.
    Providers,
    /// The Deployment, its Service and its PodDisruptionBudget, and what its image is pulled with.
    Workers,
    /// The owners' Role and RoleBinding, which nothing else waits for.
    Owners,
}

impl Part {
    pub(crate) const ALL: [Self; 9] = [
        Self::Namespace,
        Self::Fence,
        Self::Quota,
        Self::LimitRange,
        Self::Identity,
        Self::Certificate,
        Self::Providers,
        Self::Workers,
        Self::Owners,
    ];

    /// The type of the condition that tells of it.
    pub(crate) fn condition(self) -> &'static str {
        match self {
            Self::Namespace => "NamespaceApplied",
            Self::Fence => "FenceApplied",
            Self::Quota => "QuotaApplied",
            Self::LimitRange => "LimitRangeApplied",
            Self::Identity => "IdentityApplied",
            Self::Certificate => "CertificateApplied",
            Self::Providers => "ProvidersApplied",
            Self::Workers => "WorkersApplied",
            Self::Owners => "OwnersBound",
        }
    }

    /// Says that an error is about this part, and that those before it are as they shall be.
    pub(super) fn failed(self) -> impl FnOnce(Error) -> Failure {
        move |error| Failure { part: Some(self), in_order: true, error }
    }

    /// Says that an error is about this part, which came before its turn.
    pub(super) fn failed_early(self) -> impl FnOnce(Error) -> Failure {
        move |error| Failure { part: Some(self), in_order: false, error }
    }
}

/// Where a pass ended, and why.
#[derive(Debug)]
pub(super) struct Failure {
    /// `None` if it did not come so far.
    pub(super) part: Option<Part>,
    /// Whether the parts before it are as the spec wants them. Of an error that came before their turn nothing follows for them.
    pub(super) in_order: bool,
    pub(super) error: Error,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let part = match &error {
            Error::NamespaceTaken { .. } | Error::NamespaceEnding { .. } => Some(Part::Namespace),
            Error::Certificate(_) => Some(Part::Certificate),
            Error::Read { .. }
            | Error::Apply { .. }
            | Error::Delete { .. }
            | Error::Spec { .. }
            | Error::Status(_)
            | Error::DeadlineExceeded { .. } => None,
        };
        Self { part, in_order: false, error }
    }
}
