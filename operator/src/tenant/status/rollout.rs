//! How far a tenant's workers are from what is wanted.

use croft_crds::tenant::WorkersStatus;
use k8s_openapi::api::apps::v1::Deployment;

use super::Facts;
use crate::rollouts::Waiting;
use crate::tenant::bounds::quota_problem;
use crate::tenant::health;
use crate::worker::{Problem, Worker};

/// How far the workers are from what is wanted.
#[derive(Debug, PartialEq)]
pub(super) enum Rollout {
    Done,
    /// All of them run, and others shall take their place when this is over.
    Held(Problem),
    /// Not yet, and this is why, if it is known.
    Waiting(Option<Problem>),
}

pub(super) fn rollout(facts: &Facts<'_>, workers: WorkersStatus) -> Rollout {
    let Facts { tenant, pass, deployment, pods, tiers, is_outdated, .. } = *facts;
    let waits = pass.observed.and_then(|observed| observed.waiting).map(waits);
    let is_done = !is_outdated && deployment.is_some_and(|deployment| is_rolled_out(deployment, workers, pods));
    if is_done {
        return waits.map_or(Rollout::Done, Rollout::Held);
    }
    let too_small = if workers.desired > 0 { quota_problem(tenant, tiers) } else { None };
    Rollout::Waiting(too_small.or_else(|| health::problem(deployment, pods)).or(waits))
}

/// The same for as long as they wait: whatever changes would be a write for each tenant that does.
fn waits(Waiting { most }: Waiting) -> Problem {
    let message = format!("other workers take their place in turn, at a time those of {most} tenants at most");
    Problem { reason: "RolloutWaiting", message }
}

/// As `kubectl rollout status` sees it. A new worker that never starts is counted as updated, and the old one that stays for it as
/// ready: only that there is one too many tells them from workers that are as they shall be.
fn is_rolled_out(deployment: &Deployment, workers: WorkersStatus, pods: &[Worker]) -> bool {
    let scaled = deployment.spec.as_ref().and_then(|spec| spec.replicas) == Some(workers.desired);
    let emptied = workers.desired > 0 || pods.is_empty();
    let available = deployment.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0);
    let served = available >= workers.desired && workers.ready >= workers.desired;
    scaled && emptied && health::is_replaced(deployment) && served
}

#[cfg(test)]
mod tests {
    use croft_crds::AgentTenantStatus;
    use croft_crds::tenant::TenantPhase;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::json;

    use super::*;
    use crate::tenant::fixtures;
    use crate::tenant::observe::Observed;
    use crate::tenant::report::Pass;
    use crate::tenant::status::fixtures::{condition, deployment, told};
    use crate::tenant::status::status;
    use crate::tenant::tier::Tiers;
    use crate::tenant::upkeep::KeptUp;

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
    fn workers_that_run_and_wait_for_others_to_take_their_place_are_told_of() {
        let waiting = Some(Waiting { most: 10 });
        let observed = Observed { has_namespace: true, waiting, ..Observed::default() };
        let waits = told(&fixtures::minimal(), Ok(&observed), Some(&deployment(2, 2)));
        let ready = condition(&waits, "WorkersReady");
        assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("True", "RolloutWaiting"));
        let message = "other workers take their place in turn, at a time those of 10 tenants at most";
        assert_eq!(ready.message, format!("2 of 2 workers are ready, and {message}"));
        assert_eq!(condition(&waits, "WorkersApplied").status, "True");
        assert_eq!((condition(&waits, "Ready").reason.as_str(), waits.phase), ("AllWell", Some(TenantPhase::Ready)));

        let lacking = told(&fixtures::minimal(), Ok(&observed), Some(&deployment(2, 1)));
        for kind in ["WorkersReady", "Ready"] {
            let ready = condition(&lacking, kind);
            assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "RolloutWaiting"));
            assert_eq!(ready.message, message);
        }
        assert_eq!(lacking.phase, Some(TenantPhase::Degraded));
    }
}
