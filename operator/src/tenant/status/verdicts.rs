//! What is said of a tenant after a pass, a condition each.

use croft_crds::condition::Verdict;
use croft_crds::tenant::WorkersStatus;
use croft_crds::{AgentTenant, AgentTenantStatus};
use croft_serve::log::chain;

use super::rollout::Rollout;
use super::{Facts, PREVENTED, REMOVED};
use crate::controller::PassError as _;
use crate::tenant::bounds::{budget, quota_problem};
use crate::tenant::part::{Failure, Part};
use crate::tenant::report::Pass;
use crate::tenant::spending;
use crate::worker::Problem;

/// The condition that tells of a spec only once its workers are applied.
pub(in crate::tenant) const WORKERS_READY: &str = "WorkersReady";

/// Whether the workers' Deployment is as the spec wants it.
pub(super) fn came_past_workers(pass: Pass<'_>) -> bool {
    match pass.outcome {
        Ok(()) => true,
        Err(Failure { part: Some(at), in_order: true, .. }) => *at > Part::Workers,
        Err(_) => false,
    }
}

/// Which generation a condition told of.
pub(super) fn observed_before(before: &AgentTenantStatus, kind: &str) -> Option<i64> {
    before.conditions.iter().find(|condition| condition.type_ == kind)?.observed_generation
}

/// Whether what was said of the budget before is the last that is known. A status keeps no count of tokens, money to the cent, and no
/// thresholds, so until the fronts have told this replica, a budget would read as less spent than it is.
pub(super) fn budget_untold(facts: &Facts<'_>) -> bool {
    let Facts { tenant, before, tiers, total, .. } = facts;
    let budget = budget(tenant, tiers);
    total.as_ref().is_none_or(|total| total.month.is_none())
        && (budget.monthly_tokens.is_some() || budget.monthly_usd.is_some())
        && before.conditions.iter().any(|condition| condition.type_ == spending::KIND)
}

pub(super) fn applied(pass: Pass<'_>) -> Verdict {
    let (holds, reason, message) = match pass.outcome {
        Ok(()) => (true, "Applied", "all parts are as the spec wants them".to_owned()),
        Err(failure) => (false, failure.error.reason(), chain(&failure.error)),
    };
    Verdict { kind: "Applied", holds: Some(holds), reason, message }
}

/// `None` leaves it as it was: the pass ended before it came there, so what was said of it then is the last that is known.
pub(super) fn part_applied(part: Part, facts: &Facts<'_>) -> Option<Verdict> {
    let kind = part.condition();
    let verdict = |holds, reason, message| Some(Verdict { kind, holds, reason, message });
    let well = || "it is as the spec wants it".to_owned();
    let is_known = facts.before.conditions.iter().any(|condition| condition.type_ == kind);
    let not_reached = || verdict(None, "NotReached", "the pass ended before it".to_owned());
    match facts.pass.kept_up.get(&part) {
        Some(Err(error)) => return verdict(Some(false), error.reason(), chain(error)),
        // These are as the spec wants them; of the others just what may not wait.
        Some(Ok(())) if matches!(part, Part::Fence | Part::Owners | Part::Certificate) => {
            return verdict(Some(true), "Applied", well());
        }
        Some(Ok(())) if facts.before.conditions.iter().any(|told| told.type_ == kind && told.status == "False") => {
            return not_reached();
        }
        Some(Ok(())) | None => {}
    }
    match facts.pass.outcome {
        Ok(()) => match quota_problem(facts.tenant, facts.tiers).filter(|_| part == Part::Quota) {
            Some(problem) => verdict(Some(false), problem.reason, problem.message),
            None => verdict(Some(true), "Applied", well()),
        },
        Err(Failure { part: Some(at), error, .. }) if *at == part => verdict(Some(false), error.reason(), chain(error)),
        Err(Failure { part: Some(at), in_order: true, .. }) if part < *at => verdict(Some(true), "Applied", well()),
        Err(_) if is_known => None,
        Err(_) => not_reached(),
    }
}

pub(super) fn workers_ready(tenant: &AgentTenant, workers: WorkersStatus, rollout: &Rollout) -> Verdict {
    let WorkersStatus { desired, ready } = workers;
    let count = || format!("{ready} of {desired} workers are ready");
    let rolling = || format!("{}, and their rollout is not over", count());
    let (holds, reason, message) = match rollout {
        Rollout::Done if tenant.spec.emergency_stop => (false, "Stopped", "spec.emergencyStop is on".to_owned()),
        Rollout::Done if tenant.spec.suspend => (false, "Suspended", "the tenant is suspended".to_owned()),
        Rollout::Done => (true, "AllReady", count()),
        Rollout::Held(Problem { reason, message }) => (true, *reason, format!("{}, and {message}", count())),
        Rollout::Waiting(_) if desired == 0 => (false, "Stopping", "workers are being taken away".to_owned()),
        Rollout::Waiting(Some(problem)) => (false, problem.reason, problem.message.clone()),
        Rollout::Waiting(None) if ready >= desired => (false, "Starting", rolling()),
        Rollout::Waiting(None) => (false, "Starting", count()),
    };
    Verdict { kind: WORKERS_READY, holds: Some(holds), reason, message }
}

pub(super) fn providers_ready(tenant: &AgentTenant, pass: Pass<'_>) -> Option<Verdict> {
    if tenant.spec.llm.providers.is_empty() {
        return None;
    }
    let kind = "ProvidersReady";
    let Some(observed) = pass.observed else {
        let message = "the pass ended before keys were looked for".to_owned();
        return Some(Verdict { kind, holds: None, reason: "NotLookedFor", message });
    };
    let problems: Vec<_> = observed.key_problems().collect();
    let Some(first) = problems.first() else {
        let message = "every key that the spec refers to is there".to_owned();
        return Some(Verdict { kind, holds: Some(true), reason: "KeysFound", message });
    };
    let messages: Vec<_> = problems.iter().map(|problem| problem.message.as_str()).collect();
    Some(Verdict { kind, holds: Some(false), reason: first.reason, message: messages.join("; ") })
}

pub(super) fn prevented(tenant: &AgentTenant) -> Option<Verdict> {
    tenant.metadata.deletion_timestamp.is_some().then(|| Verdict {
        kind: REMOVED,
        holds: Some(false),
        reason: PREVENTED,
        message: "it was deleted while spec.preventDeletion is on: it goes when that is off".to_owned(),
    })
}

/// The first of the others that doesn't hold, or that all do.
pub(super) fn ready(others: &[Verdict]) -> Verdict {
    match others.iter().find(|verdict| verdict.holds != Some(true)) {
        Some(verdict) => Verdict { kind: "Ready", ..verdict.clone() },
        None => Verdict {
            kind: "Ready",
            holds: Some(true),
            reason: "AllWell",
            message: "all is as the spec wants it".to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use croft_crds::tenant::TenantPhase;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::json;

    use super::*;
    use crate::tenant::observe::Observed;
    use crate::tenant::status::fixtures::{after, condition, deployment, missing_key, told};
    use crate::tenant::status::status;
    use crate::tenant::tier::Tiers;
    use crate::tenant::upkeep::KeptUp;
    use crate::tenant::{Error, fixtures};

    #[test]
    fn a_pass_that_fails_says_where_and_leaves_the_rest_as_it_was() {
        let tenant = fixtures::minimal();
        let observed = Observed::default();
        let well = told(&tenant, Ok(&observed), Some(&deployment(2, 2)));
        let source = kube::Error::Api(Box::new(
            serde_json::from_value(json!({ "code": 429, "message": "slow down", "reason": "TooManyRequests" }))
                .unwrap(),
        ));
        let error = Error::Apply { kind: "ResourceQuota".into(), name: "tenant".into(), source };
        let failure = Part::Quota.failed()(error);
        let mut edited = tenant.clone();
        edited.metadata.generation = Some(4);
        let status = after(&well, &edited, Err(&failure), Some(&deployment(2, 2)), "2026-01-01T00:01:00Z");
        assert_eq!(condition(&status, "QuotaApplied").reason, "ApiThrottled");
        assert_eq!(condition(&status, "QuotaApplied").observed_generation, Some(4));
        assert_eq!(
            condition(&status, "WorkersReady"),
            condition(&well, "WorkersReady"),
            "the edit has not come to them"
        );
        let workers = Part::Workers.failed()(Error::NamespaceTaken { name: "tenant-heron".into() });
        let at = after(&well, &edited, Err(&workers), Some(&deployment(2, 2)), "2026-01-01T00:01:00Z");
        assert_eq!(condition(&at, "WorkersApplied").observed_generation, Some(4));
        assert_eq!(condition(&at, "WorkersReady").observed_generation, Some(3), "it has not come to them still");
        let owners = Part::Owners.failed()(Error::NamespaceTaken { name: "tenant-heron".into() });
        let past = after(&well, &edited, Err(&owners), Some(&deployment(2, 2)), "2026-01-01T00:01:00Z");
        assert_eq!(condition(&past, "WorkersReady").observed_generation, Some(4));
        assert_eq!(condition(&status, "Ready").reason, "ApiThrottled");
        assert_eq!(condition(&status, "FenceApplied").status, "True");
        assert_eq!(condition(&status, "WorkersApplied"), condition(&well, "WorkersApplied"));
        assert_eq!(status.phase, Some(TenantPhase::Degraded));
    }

    #[test]
    fn what_is_kept_up_of_an_unusable_spec_is_told_part_by_part_and_hides_no_key() {
        let (tenant, observed) = (fixtures::full(), missing_key());
        let (now, tiers) = (Time("2026-01-01T00:00:00Z".parse().unwrap()), Tiers::default());
        let unusable =
            Failure::from(Error::Spec { field: "workers.resources", problem: "they are too much".to_owned() });
        let told_of = |before: &AgentTenantStatus, kept_up: &KeptUp| {
            let pass = Pass { outcome: Err(&unusable), observed: Some(&observed), kept_up };
            let facts = Facts {
                tenant: &tenant,
                before,
                pass,
                deployment: None,
                is_outdated: false,
                pods: &[],
                total: None,
                tiers: &tiers,
                now: &now,
            };
            status(&facts)
        };
        let gone = || kube::Error::Api(Box::new(serde_json::from_value(json!({ "code": 500 })).unwrap()));
        let failed = || Err(Error::Apply { kind: "ConfigMap".into(), name: "providers".into(), source: gone() });
        let kept_up = KeptUp::from([(Part::Owners, Ok(())), (Part::Providers, failed())]);
        let first = told_of(&AgentTenantStatus::default(), &kept_up);
        assert_eq!(condition(&first, "Applied").reason, "SpecNotUsable");
        assert_eq!(condition(&first, "ProvidersReady").reason, "KeysMissing");
        assert_eq!(condition(&first, "ProvidersApplied").reason, "ApiFailed");
        assert_eq!(condition(&first, "OwnersBound").status, "True");
        assert_eq!(condition(&first, "FenceApplied").reason, "NotReached");

        let then = told_of(&first, &KeptUp::from([(Part::Owners, Ok(())), (Part::Providers, Ok(()))]));
        assert_eq!(condition(&then, "Applied"), condition(&first, "Applied"));
        assert_eq!(condition(&then, "ProvidersApplied").reason, "NotReached", "the failure is over");
    }

    #[test]
    fn a_failure_before_its_turn_says_nothing_of_other_parts() {
        let tenant = fixtures::minimal();
        let observed = Observed::default();
        let gone = || kube::Error::Api(Box::new(serde_json::from_value(json!({ "code": 500 })).unwrap()));
        let error = |kind: &str| Error::Apply { kind: kind.into(), name: "owners".into(), source: gone() };
        let nothing = AgentTenantStatus::default();
        let owners = Part::Owners.failed()(error("RoleBinding"));
        let before = after(&nothing, &tenant, Err(&owners), None, "2026-01-01T00:00:00Z");
        assert_eq!(condition(&before, "OwnersBound").reason, "ApiFailed");
        // As where workers can't be stopped, before anything else is looked at.
        let stop = Part::Workers.failed_early()(error("Deployment"));
        let status = after(&before, &tenant, Err(&stop), None, "2026-01-01T00:01:00Z");
        for kind in ["OwnersBound", "FenceApplied", "ProvidersApplied"] {
            assert_eq!(condition(&status, kind), condition(&before, kind), "{kind}");
        }
        assert_eq!(condition(&status, "WorkersApplied").reason, "ApiFailed");
        assert_eq!(condition(&status, "Applied").status, "False");
        let new = after(&nothing, &tenant, Err(&stop), None, "2026-01-01T00:01:00Z");
        assert_eq!(condition(&new, "FenceApplied").reason, "NotReached");
        let well = after(&nothing, &tenant, Ok(&observed), None, "2026-01-01T00:00:00Z");
        assert_eq!(condition(&well, "OwnersBound").status, "True");
    }

    #[test]
    fn a_quota_that_is_too_small_is_never_ready() {
        let mut tenant = fixtures::minimal();
        tenant.spec.quota.cpu = Some("300m".into());
        let observed = Observed::default();
        let status = told(&tenant, Ok(&observed), Some(&deployment(0, 0)));
        for kind in ["QuotaApplied", "Ready", "WorkersReady"] {
            assert_eq!(condition(&status, kind).reason, "QuotaTooSmall", "{kind}");
        }
        assert_eq!(status.phase, Some(TenantPhase::Pending));
    }

    #[test]
    fn a_missing_key_is_named_and_its_value_never_known() {
        let status = told(&fixtures::full(), Ok(&missing_key()), Some(&deployment(4, 4)));
        assert_eq!(condition(&status, "ProvidersReady").message, "namespace tenant-heron lacks models/anthropic-key");
        assert_eq!(condition(&status, "Ready").reason, "KeysMissing");
        assert_eq!(status.phase, Some(TenantPhase::Degraded));
    }

    #[test]
    fn a_prevented_deletion_is_told_and_changes_nothing_else() {
        let mut tenant = fixtures::minimal();
        tenant.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        tenant.spec.prevent_deletion = true;
        let observed = Observed::default();
        let status = told(&tenant, Ok(&observed), Some(&deployment(2, 2)));
        assert_eq!(condition(&status, "Removed").reason, "DeletionPrevented");
        assert_eq!((condition(&status, "Ready").status.as_str(), status.phase), ("True", Some(TenantPhase::Ready)));
    }
}
