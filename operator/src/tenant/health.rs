//! How a tenant's workers are, and why not better.

use croft_crds::AgentTenant;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition};

use super::bounds::quota_problem;
use super::tier::Tiers;
use crate::worker::{Problem, Worker};

/// As Kubernetes calls it.
const NOT_IN_TIME: &str = "ProgressDeadlineExceeded";

/// What keeps workers from running, the deepest cause first: a quota leaves no pod to have a problem of its own.
pub(crate) fn problem(deployment: Option<&Deployment>, workers: &[Worker]) -> Option<Problem> {
    let of_a_worker = || workers.iter().find_map(|worker| worker.problem.clone());
    // Of a worker that no node has begun with, its scheduling or its image tells.
    let is_running =
        || workers.iter().any(|one| !one.ready && one.address.is_some() && one.ends_within_seconds.is_none());
    let never_ready = || deployment.filter(|_| is_running()).and_then(stalled);
    deployment.and_then(refused).or_else(of_a_worker).or_else(never_ready)
}

/// For callers: why there is no worker, or no more of them; nothing if all is well. Without a reason where workers are only starting.
pub(crate) fn workers_problem(
    tenant: &AgentTenant,
    deployment: Option<&Deployment>,
    workers: &[Worker],
    tiers: &Tiers,
) -> Option<Problem> {
    let is_served = workers.iter().any(|worker| worker.ready);
    let told = |reason, message: &str| Some(Problem { reason, message: message.to_owned() });
    if !is_served && tenant.spec.emergency_stop {
        return told("Stopped", "the tenant is stopped");
    }
    if !is_served && tenant.spec.suspend {
        return told("Suspended", "the tenant is suspended");
    }
    let problem = quota_problem(tenant, tiers).or_else(|| problem(deployment, workers));
    problem.or_else(|| if is_served { None } else { told("", "no worker is ready yet") })
}

/// Pods that the API server would not have.
fn refused(deployment: &Deployment) -> Option<Problem> {
    let conditions = deployment.status.as_ref()?.conditions.as_ref()?;
    let failure =
        conditions.iter().find(|condition| condition.type_ == "ReplicaFailure" && condition.status == "True")?;
    let told = failure.message.as_deref().unwrap_or_default();
    // Before it stands the name of a pod that will never be, another one at each try.
    let cause = told.split_once("is forbidden: ").map_or(told, |(_, cause)| cause);
    Some(match cause.strip_prefix("exceeded quota: ") {
        Some(detail) => Problem { reason: "QuotaExceeded", message: format!("quota exceeded: {detail}") },
        None => Problem { reason: "Refused", message: format!("worker pods are refused: {cause}") },
    })
}

/// Pods that have not become ready within the Deployment's `progressDeadlineSeconds`.
fn stalled(deployment: &Deployment) -> Option<Problem> {
    let conditions = deployment.status.as_ref()?.conditions.as_ref()?;
    let is_late = |condition: &DeploymentCondition| {
        condition.type_ == "Progressing" && condition.reason.as_deref() == Some(NOT_IN_TIME)
    };
    let message = "the workers have not become ready in time: their logs say why".to_owned();
    conditions.iter().any(is_late).then_some(Problem { reason: NOT_IN_TIME, message })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tenant::fixtures;

    fn failing(message: &str) -> Deployment {
        serde_json::from_value(json!({ "status": { "conditions": [
            { "type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message },
        ] } }))
        .unwrap()
    }

    fn worker(ready: bool, problem: Option<&'static str>) -> Worker {
        let problem = problem.map(|reason| Problem { reason, message: format!("because {reason}") });
        Worker { name: "workers-1".into(), address: None, ready, problem, ends_within_seconds: None }
    }

    #[test]
    fn a_quota_is_named_without_the_pod_that_never_was() {
        let told = "pods \"workers-5d9-x7k2p\" is forbidden: exceeded quota: tenant, requested: limits.cpu=1, \
                    used: limits.cpu=0, limited: limits.cpu=500m";
        let problem = problem(Some(&failing(told)), &[]).unwrap();
        assert_eq!(problem.reason, "QuotaExceeded");
        assert_eq!(
            problem.message,
            "quota exceeded: tenant, requested: limits.cpu=1, used: limits.cpu=0, limited: limits.cpu=500m"
        );
    }

    #[test]
    fn workers_that_run_and_never_become_ready_are_told_of_unless_there_is_a_deeper_cause() {
        let late: Deployment = serde_json::from_value(json!({ "status": { "conditions": [
            { "type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "x7k2p" },
        ] } }))
        .unwrap();
        let running = Worker { address: Some("10.1.0.7:50052".into()), ..worker(false, None) };
        let told = problem(Some(&late), &[running]).unwrap();
        assert_eq!(told.reason, "ProgressDeadlineExceeded");
        assert_eq!(told.message, "the workers have not become ready in time: their logs say why");
        assert_eq!(problem(Some(&late), &[worker(false, Some("Crashing"))]).unwrap().reason, "Crashing");
        assert_eq!(problem(Some(&late), &[worker(false, None)]), None, "it does not run yet");
    }

    #[test]
    fn callers_hear_why_there_is_no_worker_or_no_more_of_them() {
        let told = |tenant: &AgentTenant, workers: &[Worker]| {
            let problem = workers_problem(tenant, None, workers, &Tiers::default());
            problem.map_or_else(String::new, |problem| format!("{}: {}", problem.reason, problem.message))
        };
        let mut tenant = fixtures::minimal();
        let workers = [worker(false, Some("Crashing")), worker(true, None), worker(false, None)];
        assert_eq!(told(&tenant, &workers[..1]), "Crashing: because Crashing");
        assert_eq!(told(&tenant, &workers[..2]), "Crashing: because Crashing", "the others may be full");
        assert_eq!(told(&tenant, &workers[1..]), "", "one more is starting");
        assert_eq!(told(&tenant, &[]), ": no worker is ready yet");
        tenant.spec.quota.cpu = Some("10m".into());
        let short = "QuotaTooSmall: quota exceeded: one worker may use 1 of cpu, and the quota is 10m";
        assert_eq!(told(&tenant, &[]), short);
        tenant.spec.suspend = true;
        assert_eq!(told(&tenant, &workers[1..]), short, "until the last one has gone");
        assert_eq!(told(&tenant, &[]), "Suspended: the tenant is suspended");
        tenant.spec.emergency_stop = true;
        assert_eq!(told(&tenant, &[]), "Stopped: the tenant is stopped");
    }

    #[test]
    fn a_quota_is_named_beside_a_worker_that_had_room_in_it() {
        let short = failing("pods \"workers-2\" is forbidden: exceeded quota: tenant, requested: limits.cpu=1");
        let problem = workers_problem(&fixtures::minimal(), Some(&short), &[worker(true, None)], &Tiers::default());
        let problem = problem.unwrap();
        assert_eq!(problem.reason, "QuotaExceeded");
        assert_eq!(problem.message, "quota exceeded: tenant, requested: limits.cpu=1");
    }
}
