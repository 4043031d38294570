//! What there is to say about a tenant after a pass: plain data in, a status out.

#[cfg(test)]
mod fixtures;
mod rollout;
mod verdicts;

use croft_crds::condition;
use croft_crds::tenant::{SessionsStatus, SpendStatus, TenantPhase, WorkersStatus};
use croft_crds::{AgentTenant, AgentTenantStatus};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::bounds::{limits, replicas};
use super::part::{Failure, Part};
use super::report::Pass;
use super::tier::Tiers;
use super::{Error, spending};
use crate::totals::{self, Month, Total};
use crate::worker::Worker;
use rollout::{Rollout, rollout};
pub(super) use verdicts::WORKERS_READY;
use verdicts::{
    applied, budget_untold, came_past_workers, observed_before, part_applied, prevented, providers_ready, ready,
    workers_ready,
};

/// The condition that is there only while a tenant is being deleted.
pub(super) const REMOVED: &str = "Removed";
/// Its reason until the removal begins.
pub(super) const PREVENTED: &str = "DeletionPrevented";

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

/// As with [`sessions`].
fn told_or_before(facts: &Facts<'_>) -> Option<Month> {
    let before = facts.before.spend.clone().map(Month::shown);
    facts.total.as_ref().and_then(|total| total.month.clone()).or(before)
}

fn phase(tenant: &AgentTenant, pass: Pass<'_>, workers: WorkersStatus, rollout: &Rollout) -> TenantPhase {
    let lacks_keys = pass.observed.is_some_and(|observed| observed.key_problems().next().is_some());
    let is_done = matches!(rollout, Rollout::Done | Rollout::Held(_));
    match (pass.outcome.map_err(|failure| &failure.error), is_done) {
        (Err(Error::NamespaceTaken { .. } | Error::Spec { .. }), _) => TenantPhase::Failed,
        (Ok(()), true) if tenant.spec.emergency_stop => TenantPhase::Stopped,
        (Ok(()), true) if tenant.spec.suspend => TenantPhase::Suspended,
        (Ok(()), true) if lacks_keys => TenantPhase::Degraded,
        (Ok(()), true) if tenant.spec.cordon => TenantPhase::Cordoned,
        (Ok(()), true) => TenantPhase::Ready,
        _ if workers.ready > 0 => TenantPhase::Degraded,
        _ => TenantPhase::Pending,
    }
}

#[cfg(test)]
mod tests {
    use croft_crds::tenant::BudgetSpec;

    use super::fixtures::{after, condition, deployment, missing_key, told};
    use super::*;
    use crate::tenant::fixtures;
    use crate::tenant::observe::Observed;
    use crate::tenant::upkeep::KeptUp;

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
            let total =
                tokens.map(|tokens| Total { sessions_open: 0, month: Some(Month { tokens, ..Month::shown(spend) }) });
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
            total: Some(Total { sessions_open: 5, month: Some(Month::shown(spend.clone())) }),
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
