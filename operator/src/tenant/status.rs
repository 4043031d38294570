//! What there is to say about a tenant after a pass: plain data in, a status out.

use croft_crds::condition::{self, Verdict};
use croft_crds::tenant::{SessionsStatus, SpendStatus, TenantPhase, WorkersStatus};
use croft_crds::{AgentTenant, AgentTenantStatus};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::bounds::{budget, limits, quota_problem, replicas};
use super::part::{Failure, Part};
use super::report::Pass;
use super::tier::Tiers;
use super::{Error, health, spending};
use crate::controller::{PassError as _, chain};
use crate::totals::{self, Month, Total};
use crate::worker::{Problem, Worker};

/// The condition that is there only while a tenant is being deleted.
pub(super) const REMOVED: &str = "Removed";
/// Its reason until the removal begins.
pub(super) const PREVENTED: &str = "DeletionPrevented";

const WORKERS_READY: &str = "WorkersReady";

/// All that a status is made of.
pub(super) struct Facts<'a> {
    pub(super) tenant: &'a AgentTenant,
    pub(super) before: &'a AgentTenantStatus,
    pub(super) pass: Pass<'a>,
    pub(super) deployment: Option<&'a Deployment>,
    /// The copy of the Deployment is from before our last write: what it tells is of what was wanted then.
    pub(super) is_outdated: bool,
    pub(super) pods: &'a [Worker],
    /// What the fronts last told.
    pub(super) total: Option<Total>,
    pub(super) tiers: &'a Tiers,
    pub(super) now: &'a Time,
}

/// How far the workers are from what is wanted.
#[derive(Debug, PartialEq)]
enum Rollout {
    Done,
    /// Not yet, and this is why, if it is known.
    Waiting(Option<Problem>),
}

pub(super) fn status(facts: &Facts<'_>) -> AgentTenantStatus {
    let Facts { tenant, before, pass, .. } = *facts;
    let workers = count(facts);
    let rollout = rollout(facts, workers);
    let mut verdicts = vec![applied(pass)];
    verdicts.extend(Part::ALL.into_iter().filter_map(|part| part_applied(part, facts)));
    verdicts.push(workers_ready(tenant, workers, &rollout));
    verdicts.extend(providers_ready(tenant, pass));
    verdicts.insert(0, ready(&verdicts));
    let budget_untold = budget_untold(facts);
    if !budget_untold {
        verdicts.extend(spending::within_budget(tenant, facts.tiers, told_or_before(facts).as_ref()));
    }
    verdicts.extend(prevented(tenant));
    let mut conditions = before.conditions.clone();
    conditions.retain(|condition| {
        verdicts.iter().any(|verdict| verdict.kind == condition.type_)
            || Part::ALL.iter().any(|part| part.condition() == condition.type_)
            || budget_untold && condition.type_ == spending::KIND
    });
    for verdict in verdicts {
        // Of workers to which an edit has not come nothing is said about it.
        let is_behind = verdict.kind == WORKERS_READY && !came_past_workers(pass);
        let generation = if is_behind { observed_before(before, verdict.kind) } else { tenant.metadata.generation };
        condition::set(&mut conditions, verdict, generation, facts.now);
    }
    let taken = matches!(pass.outcome, Err(Failure { error: Error::NamespaceTaken { .. }, .. }));
    AgentTenantStatus {
        observed_generation: tenant.metadata.generation,
        phase: Some(phase(tenant, pass, workers, &rollout)),
        namespace: (!taken).then(|| tenant.namespace_name()),
        workers: Some(workers),
        sessions: Some(sessions(facts)),
        spend: Some(spend(facts)),
        conditions,
    }
}

/// Whether the workers' Deployment is as the spec wants it.
fn came_past_workers(pass: Pass<'_>) -> bool {
    match pass.outcome {
        Ok(()) => true,
        Err(Failure { part: Some(at), in_order: true, .. }) => *at > Part::Workers,
        Err(_) => false,
    }
}

/// Which generation a condition told of.
fn observed_before(before: &AgentTenantStatus, kind: &str) -> Option<i64> {
    before.conditions.iter().find(|condition| condition.type_ == kind)?.observed_generation
}

/// What is wanted comes from the spec: the copy of a Deployment that was applied a moment ago may be behind.
fn count(facts: &Facts<'_>) -> WorkersStatus {
    let ready = facts.deployment.and_then(|deployment| deployment.status.as_ref()?.ready_replicas).unwrap_or(0);
    WorkersStatus { desired: replicas(facts.tenant, facts.tiers), ready }
}

/// What the fronts have not told yet since this replica leads is as the one before it wrote. A tenant without a status is
/// new and has none: said at once, it costs no write of its own when the fronts say the same.
fn sessions(facts: &Facts<'_>) -> SessionsStatus {
    let told = facts.total.as_ref().map(|total| total.sessions_open);
    let open = told.or(facts.before.sessions.map(|sessions| sessions.open)).unwrap_or(0);
    SessionsStatus { open, max: limits(facts.tenant, facts.tiers).max_sessions.unwrap_or(0).into() }
}

/// As with [`sessions`].
fn spend(facts: &Facts<'_>) -> SpendStatus {
    let told = facts.total.as_ref().and_then(|total| Some(total.month.as_ref()?.spend.clone()));
    told.or_else(|| facts.before.spend.clone()).unwrap_or_else(|| totals::nothing_spent(facts.now.0))
}

/// Whether what was said of the budget before is the last that is known. Of tokens no status keeps a count, so until the fronts
/// have told this replica, a budget of tokens would read as unspent.
fn budget_untold(facts: &Facts<'_>) -> bool {
    let Facts { tenant, before, tiers, total, .. } = facts;
    total.as_ref().is_none_or(|total| total.month.is_none())
        && budget(tenant, tiers).monthly_tokens.is_some()
        && before.conditions.iter().any(|condition| condition.type_ == spending::KIND)
}

/// As with [`sessions`].
fn told_or_before(facts: &Facts<'_>) -> Option<Month> {
    let before = facts.before.spend.clone().map(|spend| Month { spend, tokens: 0 });
    facts.total.as_ref().and_then(|total| total.month.clone()).or(before)
}

fn rollout(facts: &Facts<'_>, workers: WorkersStatus) -> Rollout {
    let Facts { tenant, deployment, pods, tiers, is_outdated, .. } = *facts;
    let is_done = !is_outdated && deployment.is_some_and(|deployment| is_rolled_out(deployment, workers, pods));
    if is_done {
        return Rollout::Done;
    }
    let too_small = if workers.desired > 0 { quota_problem(tenant, tiers) } else { None };
    Rollout::Waiting(too_small.or_else(|| health::problem(deployment, pods)))
}

/// As `kubectl rollout status` sees it. A new worker that never starts is counted as updated, and the old one that stays for it as
/// ready: only that there is one too many tells them from workers that are as they shall be.
fn is_rolled_out(deployment: &Deployment, workers: WorkersStatus, pods: &[Worker]) -> bool {
    let status = deployment.status.as_ref();
    let is_current = status.and_then(|status| status.observed_generation) >= deployment.metadata.generation;
    let count = |of: fn(&DeploymentStatus) -> Option<i32>| status.and_then(of).unwrap_or(0);
    let (all, updated) = (count(|status| status.replicas), count(|status| status.updated_replicas));
    let scaled = deployment.spec.as_ref().and_then(|spec| spec.replicas) == Some(workers.desired);
    let emptied = workers.desired > 0 || pods.is_empty();
    let replaced = updated >= workers.desired && all <= updated;
    let available = count(|status| status.available_replicas) >= workers.desired && workers.ready >= workers.desired;
    is_current && scaled && emptied && replaced && available
}

fn applied(pass: Pass<'_>) -> Verdict {
    let (holds, reason, message) = match pass.outcome {
        Ok(()) => (true, "Applied", "all parts are as the spec wants them".to_owned()),
        Err(failure) => (false, failure.error.reason(), chain(&failure.error)),
    };
    Verdict { kind: "Applied", holds: Some(holds), reason, message }
}

/// `None` leaves it as it was: the pass ended before it came there, so what was said of it then is the last that is known.
fn part_applied(part: Part, facts: &Facts<'_>) -> Option<Verdict> {
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

fn workers_ready(tenant: &AgentTenant, workers: WorkersStatus, rollout: &Rollout) -> Verdict {
    let WorkersStatus { desired, ready } = workers;
    let count = || format!("{ready} of {desired} workers are ready");
    let rolling = || format!("{}, and their rollout is not over", count());
    let (holds, reason, message) = match rollout {
        Rollout::Done if tenant.spec.emergency_stop => (false, "Stopped", "spec.emergencyStop is on".to_owned()),
        Rollout::Done if tenant.spec.suspend => (false, "Suspended", "the tenant is suspended".to_owned()),
        Rollout::Done => (true, "AllReady", count()),
        Rollout::Waiting(_) if desired == 0 => (false, "Stopping", "workers are being taken away".to_owned()),
        Rollout::Waiting(Some(problem)) => (false, problem.reason, problem.message.clone()),
        Rollout::Waiting(None) if ready >= desired => (false, "Starting", rolling()),
        Rollout::Waiting(None) => (false, "Starting", count()),
    };
    Verdict { kind: WORKERS_READY, holds: Some(holds), reason, message }
}

fn providers_ready(tenant: &AgentTenant, pass: Pass<'_>) -> Option<Verdict> {
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

fn prevented(tenant: &AgentTenant) -> Option<Verdict> {
    tenant.metadata.deletion_timestamp.is_some().then(|| Verdict {
        kind: REMOVED,
        holds: Some(false),
        reason: PREVENTED,
        message: "it was deleted while spec.preventDeletion is on: it goes when that is off".to_owned(),
    })
}

/// The first of the others that doesn't hold, or that all do.
fn ready(others: &[Verdict]) -> Verdict {
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

fn phase(tenant: &AgentTenant, pass: Pass<'_>, workers: WorkersStatus, rollout: &Rollout) -> TenantPhase {
    let lacks_keys = pass.observed.is_some_and(|observed| observed.key_problems().next().is_some());
    match (pass.outcome.map_err(|failure| &failure.error), rollout) {
        (Err(Error::NamespaceTaken { .. } | Error::Spec { .. }), _) => TenantPhase::Failed,
        (Ok(()), Rollout::Done) if tenant.spec.emergency_stop => TenantPhase::Stopped,
        (Ok(()), Rollout::Done) if tenant.spec.suspend => TenantPhase::Suspended,
        (Ok(()), Rollout::Done) if lacks_keys => TenantPhase::Degraded,
        (Ok(()), Rollout::Done) if tenant.spec.cordon => TenantPhase::Cordoned,
        (Ok(()), Rollout::Done) => TenantPhase::Ready,
        _ if workers.ready > 0 => TenantPhase::Degraded,
        _ => TenantPhase::Pending,
    }
}

#[cfg(test)]
mod tests {
    use croft_crds::tenant::{BudgetSpec, ProviderName};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
    use serde_json::json;

    use super::*;
    use crate::tenant::fixtures;
    use crate::tenant::observe::Observed;
    use crate::tenant::reason;
    use crate::tenant::upkeep::KeptUp;
    use crate::tenant::wanted::{Key, Keys};

    fn deployment(desired: i32, ready: i32) -> Deployment {
        serde_json::from_value(json!({
            "metadata": { "generation": 2 },
            "spec": { "replicas": desired, "selector": {}, "template": {} },
            "status": {
                "observedGeneration": 2, "replicas": desired, "updatedReplicas": desired, "readyReplicas": ready,
                "availableReplicas": ready,
            },
        }))
        .unwrap()
    }

    fn after(
        before: &AgentTenantStatus,
        tenant: &AgentTenant,
        outcome: Result<&Observed, &Failure>,
        deployment: Option<&Deployment>,
        at: &str,
    ) -> AgentTenantStatus {
        let (now, tiers) = (Time(at.parse().unwrap()), Tiers::default());
        let nothing = KeptUp::new();
        let pass = Pass { outcome: outcome.map(drop), observed: outcome.ok(), kept_up: &nothing };
        let facts = Facts {
            tenant,
            before,
            pass,
            deployment,
            is_outdated: false,
            pods: &[],
            total: None,
            tiers: &tiers,
            now: &now,
        };
        let status = status(&facts);
        for condition in &status.conditions {
            assert!(reason::ALL.contains(&condition.reason.as_str()), "{} is in no runbook", condition.reason);
        }
        status
    }

    fn told(
        tenant: &AgentTenant,
        outcome: Result<&Observed, &Failure>,
        deployment: Option<&Deployment>,
    ) -> AgentTenantStatus {
        after(&AgentTenantStatus::default(), tenant, outcome, deployment, "2026-01-01T00:00:00Z")
    }

    fn condition<'a>(status: &'a AgentTenantStatus, kind: &str) -> &'a Condition {
        status.conditions.iter().find(|condition| condition.type_ == kind).unwrap()
    }

    fn missing_key() -> Observed {
        let message = "namespace tenant-heron lacks models/anthropic-key".to_owned();
        let keys = Keys::from([(ProviderName::Anthropic, Key::Missing(Problem { reason: "KeysMissing", message }))]);
        Observed { keys, ..Observed::default() }
    }

    #[test]
    fn a_tenant_is_ready_when_all_of_its_workers_are() {
        let tenant = fixtures::minimal();
        let observed = Observed { has_namespace: true, ..Observed::default() };
        let status = told(&tenant, Ok(&observed), Some(&deployment(2, 2)));
        assert_eq!(status.phase, Some(TenantPhase::Ready));
        for part in Part::ALL {
            assert_eq!(condition(&status, part.condition()).status, "True");
        }
        assert_eq!(condition(&status, "Ready").status, "True");
        assert_eq!(status.observed_generation, Some(3));
        let status = told(&tenant, Ok(&observed), Some(&deployment(2, 1)));
        assert_eq!(status.phase, Some(TenantPhase::Degraded));
        assert_eq!(condition(&status, "Ready").reason, "Starting");
        assert_eq!(told(&tenant, Ok(&observed), None).phase, Some(TenantPhase::Pending));
    }

    #[test]
    fn a_budget_of_tokens_that_is_spent_stays_so_until_the_fronts_have_told_of_it() {
        let (tenant, observed) = (fixtures::full(), Observed::default());
        let (now, tiers) = (Time("2026-01-01T00:00:00Z".parse().unwrap()), Tiers::default());
        let status_of = |before: &AgentTenantStatus, tenant: &AgentTenant, tokens: Option<i64>| {
            let spend = SpendStatus { month: "2026-01".into(), usd: "0.00".into(), unpriced_attempts: 0 };
            let total = tokens.map(|tokens| Total { sessions_open: 0, month: Some(Month { spend, tokens }) });
            let pass = Pass { outcome: Ok(()), observed: Some(&observed), kept_up: &KeptUp::new() };
            status(&Facts {
                tenant,
                before,
                pass,
                deployment: None,
                is_outdated: false,
                pods: &[],
                total,
                tiers: &tiers,
                now: &now,
            })
        };
        let new = status_of(&AgentTenantStatus::default(), &tenant, None);
        assert_eq!(condition(&new, "WithinBudget").reason, "BudgetAmple", "a new tenant has spent nothing");
        let spent = status_of(&new, &tenant, Some(1_000_000));
        assert_eq!(condition(&spent, "WithinBudget").reason, "BudgetSpent");
        let untold = status_of(&spent, &tenant, None);
        assert_eq!(condition(&untold, "WithinBudget"), condition(&spent, "WithinBudget"));
        let mut unbounded = tenant.clone();
        unbounded.spec.budget = BudgetSpec::default();
        let unbounded = status_of(&spent, &unbounded, None);
        assert!(
            unbounded.conditions.iter().all(|condition| condition.type_ != "WithinBudget"),
            "no budget, no word of it"
        );
    }

    #[test]
    fn an_older_deployments_numbers_are_not_taken_for_the_new_ones() {
        let mut deployment = deployment(2, 2);
        deployment.metadata.generation = Some(3);
        let observed = Observed::default();
        assert_eq!(told(&fixtures::minimal(), Ok(&observed), Some(&deployment)).phase, Some(TenantPhase::Degraded));
    }

    #[test]
    fn a_new_worker_that_never_starts_is_named_though_the_old_one_is_ready() {
        let rolling = |status: serde_json::Value| -> Deployment {
            let mut deployment = deployment(1, 1);
            let mut all = json!({ "observedGeneration": 2, "readyReplicas": 1, "availableReplicas": 1 });
            all.as_object_mut().unwrap().extend(status.as_object().unwrap().clone());
            deployment.status = serde_json::from_value(all).unwrap();
            deployment
        };
        let mut tenant = fixtures::minimal();
        tenant.spec.workers.replicas = Some(1);
        let image = Problem { reason: "ImageUnavailable", message: "the image w:2 can't be had".to_owned() };
        let worker = |name: &str, ready, problem| {
            let address = Some("10.1.0.7:50052".to_owned());
            Worker { name: name.to_owned(), address, ready, problem, ends_within_seconds: None }
        };
        let pods = [worker("workers-old", true, None), worker("workers-new", false, Some(image))];
        let (now, tiers) = (Time("2026-01-01T00:00:00Z".parse().unwrap()), Tiers::default());
        let told_of = |deployment: &Deployment, pods: &[Worker], is_outdated| {
            let pass = Pass { outcome: Ok(()), observed: Some(&Observed::default()), kept_up: &KeptUp::new() };
            let before = &AgentTenantStatus::default();
            let deployment = Some(deployment);
            status(&Facts {
                tenant: &tenant,
                before,
                pass,
                deployment,
                is_outdated,
                pods,
                total: None,
                tiers: &tiers,
                now: &now,
            })
        };
        let stuck = told_of(&rolling(json!({ "replicas": 2, "updatedReplicas": 1 })), &pods, false);
        let ready = condition(&stuck, "Ready");
        assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "ImageUnavailable"));
        assert_eq!(stuck.phase, Some(TenantPhase::Degraded));
        let under_way = told_of(&rolling(json!({ "replicas": 2, "updatedReplicas": 1 })), &pods[..1], false);
        let message = "1 of 1 workers are ready, and their rollout is not over";
        assert_eq!(condition(&under_way, "Ready").message, message);
        let done = rolling(json!({ "replicas": 1, "updatedReplicas": 1 }));
        assert_eq!(condition(&told_of(&done, &pods[..1], false), "Ready").status, "True");
        let before_it_began = told_of(&done, &pods[..1], true);
        assert_eq!(condition(&before_it_began, "Ready").reason, "Starting", "another template has just been applied");
    }

    #[test]
    fn a_taken_namespace_is_told_and_not_claimed() {
        let failure = Failure::from(Error::NamespaceTaken { name: "tenant-egret".into() });
        let status = told(&fixtures::minimal(), Err(&failure), None);
        assert_eq!(status.phase, Some(TenantPhase::Failed));
        assert_eq!(status.namespace, None);
        assert_eq!(condition(&status, "Ready").reason, "NamespaceTaken");
        assert_eq!(condition(&status, "Ready").message, "namespace tenant-egret exists and belongs to someone else");
        assert_eq!(condition(&status, "NamespaceApplied").reason, "NamespaceTaken");
        assert_eq!(condition(&status, "FenceApplied").status, "Unknown");
    }

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
    fn what_was_asked_for_is_the_phase() {
        let observed = Observed::default();
        let mut tenant = fixtures::minimal();
        let phase =
            |tenant: &AgentTenant, workers| told(tenant, Ok(&observed), Some(&deployment(workers, workers))).phase;
        tenant.spec.cordon = true;
        assert_eq!(phase(&tenant, 2), Some(TenantPhase::Cordoned));
        tenant.spec.suspend = true;
        assert_eq!(phase(&tenant, 0), Some(TenantPhase::Suspended));
        tenant.spec.emergency_stop = true;
        assert_eq!(phase(&tenant, 0), Some(TenantPhase::Stopped));
        assert_eq!(condition(&told(&tenant, Ok(&observed), Some(&deployment(0, 0))), "Ready").reason, "Stopped");
        assert_eq!(phase(&tenant, 2), Some(TenantPhase::Degraded), "they are still there");
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

    #[test]
    fn totals_are_shown_and_stay_until_the_fronts_tell_others() {
        let (tenant, observed, now) = (fixtures::full(), Observed::default(), "2026-01-01T00:00:00Z");
        let spend = SpendStatus { month: "2026-11".into(), usd: "12.34".into(), unpriced_attempts: 1 };
        let time = Time(now.parse().unwrap());
        let first = status(&Facts {
            tenant: &tenant,
            before: &AgentTenantStatus::default(),
            pass: Pass { outcome: Ok(()), observed: Some(&observed), kept_up: &KeptUp::new() },
            deployment: None,
            is_outdated: false,
            pods: &[],
            total: Some(Total { sessions_open: 5, month: Some(Month { spend: spend.clone(), tokens: 0 }) }),
            tiers: &Tiers::default(),
            now: &time,
        });
        assert_eq!(first.sessions, Some(SessionsStatus { open: 5, max: 77 }));
        assert_eq!(first.spend, Some(spend));
        assert_eq!(after(&first, &tenant, Ok(&observed), None, now), first, "by a replica that has heard nothing yet");
    }

    #[test]
    fn a_new_tenant_has_nothing_open_and_nothing_spent_so_that_the_fronts_tell_nothing_new() {
        let (tenant, observed) = (fixtures::full(), Observed::default());
        let first = told(&tenant, Ok(&observed), None);
        assert_eq!(first.sessions, Some(SessionsStatus { open: 0, max: 77 }));
        let nothing = SpendStatus { month: "2026-01".into(), usd: "0.00".into(), unpriced_attempts: 0 };
        assert_eq!(first.spend, Some(nothing));
    }

    #[test]
    fn the_same_again_changes_nothing_later() {
        let (tenant, observed) = (fixtures::full(), missing_key());
        let first = told(&tenant, Ok(&observed), Some(&deployment(4, 4)));
        assert_eq!(after(&first, &tenant, Ok(&observed), Some(&deployment(4, 4)), "2026-01-01T01:00:00Z"), first);
    }
}
