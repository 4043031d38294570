//! The words that a tenant's conditions give as reasons. Each leads to an entry of `docs/runbook.md`.

/// Every word that there is, in the order of the runbook.
pub(crate) const ALL: [&str; 49] = [
    // All is well, or will be.
    "AllWell",
    "Applied",
    "AllReady",
    "KeysFound",
    "NotReached",
    "NotLookedFor",
    "Starting",
    "RolloutWaiting",
    "BudgetAmple",
    "BudgetHalfSpent",
    "BudgetNearlySpent",
    // As it was asked for.
    "Suspended",
    "Stopping",
    "Stopped",
    // What someone must mend.
    "BudgetSpent",
    "SpecNotUsable",
    "NamespaceTaken",
    "NamespaceEnding",
    "QuotaTooSmall",
    "QuotaExceeded",
    "Refused",
    "Unschedulable",
    "ImageUnavailable",
    "Crashing",
    "NotStartable",
    "ProgressDeadlineExceeded",
    "KeysMissing",
    "KeyUnusable",
    "PlatformKeyMissing",
    // What the operator tries again.
    "ApiConflict",
    "ApiExpired",
    "ApiForbidden",
    "ApiInvalid",
    "ApiThrottled",
    "ApiFailed",
    "ApiUnreachable",
    "CertificateFailed",
    "StatusFailed",
    "DeadlineExceeded",
    // A tenant's end.
    "Terminating",
    "DeletionPrevented",
    "RemovalBegun",
    "EndingSessions",
    "Draining",
    "Erasing",
    "FrontAway",
    "DeletingNamespace",
    "PastDeadline",
    "ErasingPastDeadline",
];

/// What it means that the API server did not do as it was asked.
pub(crate) fn of_api_error(error: &kube::Error) -> &'static str {
    let kube::Error::Api(status) = error else { return "ApiUnreachable" };
    match status.code {
        409 => "ApiConflict",
        410 => "ApiExpired",
        401 | 403 => "ApiForbidden",
        400 | 404 | 405 | 406 | 413 | 415 | 422 => "ApiInvalid",
        429 => "ApiThrottled",
        _ => "ApiFailed",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_reason_leads_to_an_entry_of_the_runbook() {
        let runbook = include_str!("../../../docs/runbook.md");
        let entries: HashSet<_> = runbook.lines().filter_map(|line| line.strip_prefix("### ")).collect();
        let missing: Vec<_> = ALL.into_iter().filter(|reason| !entries.contains(reason)).collect();
        assert_eq!(missing, [""; 0]);
        assert_eq!(ALL.into_iter().collect::<HashSet<_>>().len(), ALL.len(), "each once");
    }
}
