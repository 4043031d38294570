//! How a tenant's workers are, and why not better.

use croft_crds::AgentTenant;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::bounds::quota_problem;
use super::tier::Tiers;
use crate::worker::{Problem, Worker};

/// As Kubernetes calls it.
const NOT_IN_TIME: &str = "ProgressDeadlineExceeded";
/// As Kubernetes calls it: all of the newest template have run at some time.
const AVAILABLE: &str = "NewReplicaSetAvailable";
const NO_QUOTA_LEFT: &str = "QuotaExceeded";

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

/// Whether a worker has to go before another one comes, although the quota has room for one more of those that are wanted: workers that run
/// keep what they were given, and may leave none to the first of the new ones. A rollout that went on so does so to its end, as each turn
/// back would be refused again.
pub(crate) fn must_make_room(deployment: &Deployment) -> bool {
    let is_refused = refused(deployment).is_some_and(|problem| problem.reason == NO_QUOTA_LEFT);
    is_refused || makes_room(deployment) && !is_replaced(deployment)
}

/// Whether each pod that there is, of as many as there shall be, is of the newest template. A new worker that never starts is one of them.
pub(crate) fn is_replaced(deployment: &Deployment) -> bool {
    let status = deployment.status.as_ref();
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let count = |of: fn(&DeploymentStatus) -> Option<i32>| status.and_then(of).unwrap_or(0);
    let (all, updated) = (count(|status| status.replicas), count(|status| status.updated_replicas));
    is_current(deployment) && updated >= wanted && all <= updated
}

/// Whether a rollout is over, whatever has become of its workers since.
pub(crate) fn is_exchanged(deployment: &Deployment) -> bool {
    let status = deployment.status.as_ref();
    let count = |of: fn(&DeploymentStatus) -> Option<i32>| status.and_then(of).unwrap_or(0);
    let none_older = count(|status| status.replicas) <= count(|status| status.updated_replicas);
    is_current(deployment) && none_older && progress(deployment, AVAILABLE) || is_whole(deployment)
}

/// Whether workers that are all of one template serve the tenant, though some of them may be lost. Of a rollout that is not over nobody can
/// tell what it comes to.
pub(crate) fn is_served(deployment: &Deployment) -> bool {
    is_exchanged(deployment) && available(deployment) >= 1
}

/// Whether all workers are of the newest template and run.
fn is_whole(deployment: &Deployment) -> bool {
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    is_replaced(deployment) && available(deployment) >= wanted
}

fn available(deployment: &Deployment) -> i32 {
    deployment.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

/// Whether a rollout has not come further for as long as the Deployment's `progressDeadlineSeconds`.
pub(crate) fn is_stalled(deployment: &Deployment) -> bool {
    is_current(deployment) && progress(deployment, NOT_IN_TIME)
}

fn is_current(deployment: &Deployment) -> bool {
    let observed = deployment.status.as_ref().and_then(|status| status.observed_generation);
    observed >= deployment.metadata.generation
}

/// Whether this is what Kubernetes says of the rollout.
fn progress(deployment: &Deployment, reason: &str) -> bool {
    let conditions = deployment.status.as_ref().and_then(|status| status.conditions.as_ref());
    let is_so = |condition: &DeploymentCondition| {
        condition.type_ == "Progressing" && condition.reason.as_deref() == Some(reason)
    };
    conditions.into_iter().flatten().any(is_so)
}

/// Whether a rollout begins with one worker less.
fn makes_room(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    let surge = strategy.and_then(|strategy| strategy.rolling_update.as_ref()?.max_surge.as_ref());
    surge == Some(&IntOrString::Int(0))
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
        Some(detail) => Problem { reason: NO_QUOTA_LEFT, message: format!("quota exceeded: {detail}") },
        None => Problem { reason: "Refused", message: format!("worker pods are refused: {cause}") },
    })
}

/// Pods that have not become ready within the Deployment's `progressDeadlineSeconds`.
fn stalled(deployment: &Deployment) -> Option<Problem> {
    let message = "the workers have not become ready in time: their logs say why".to_owned();
    progress(deployment, NOT_IN_TIME).then_some(Problem { reason: NOT_IN_TIME, message })
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

    /// Once, the first of the smaller workers was refused for ever, and none of the larger ones might go before it came.
    #[test]
    fn a_rollout_that_the_quota_refuses_goes_on_with_one_worker_less_to_its_end() {
        let told = |surge: i32, (all, updated): (i32, i32), refusal: Option<&str>| {
            let conditions = refusal.map(|message| {
                json!([{ "type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message }])
            });
            let deployment = json!({
                "metadata": { "generation": 7 },
                "spec": {
                    "replicas": 2, "selector": {}, "template": {},
                    "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": surge } },
                },
                "status": {
                    "observedGeneration": 7, "replicas": all, "updatedReplicas": updated, "conditions": conditions,
                },
            });
            must_make_room(&serde_json::from_value(deployment).unwrap())
        };
        let quota = Some("pods \"workers-2\" is forbidden: exceeded quota: tenant, requested: limits.cpu=1");
        assert!(!told(1, (2, 0), None), "it has just begun");
        assert!(told(1, (2, 0), quota));
        assert!(told(0, (2, 0), quota) && told(0, (2, 1), None), "it is not over");
        assert!(!told(0, (2, 2), None), "it is over");
        assert!(told(0, (1, 1), quota), "others have what the quota lacks");
        assert!(!told(1, (2, 0), Some("pods \"workers-2\" is forbidden: violates PodSecurity")));
        let mut unseen = failing("");
        unseen.metadata.generation = Some(8);
        assert!(!is_replaced(&unseen));
    }

    #[test]
    fn a_rollout_that_was_over_is_not_begun_anew_by_a_worker_that_is_lost() {
        let of = |reason: &str, [all, updated, available]: [i32; 3]| -> Deployment {
            serde_json::from_value(json!({
                "metadata": { "generation": 7 },
                "spec": { "replicas": 2, "selector": {}, "template": {} },
                "status": {
                    "observedGeneration": 7, "replicas": all, "updatedReplicas": updated, "availableReplicas": available,
                    "conditions": [{ "type": "Progressing", "status": "True", "reason": reason, "message": "" }],
                },
            }))
            .unwrap()
        };
        let told = |deployment: &Deployment| [is_exchanged(deployment), is_whole(deployment), is_stalled(deployment)];
        assert_eq!(told(&of(AVAILABLE, [2, 2, 2])), [true, true, false]);
        assert_eq!(told(&of(AVAILABLE, [2, 2, 1])), [true, false, false], "one was lost");
        assert_eq!(told(&of(AVAILABLE, [3, 1, 2])), [false; 3], "the next one has begun");
        assert_eq!(told(&of("ReplicaSetUpdated", [3, 1, 2])), [false; 3]);
        assert_eq!(told(&of("ReplicaSetUpdated", [2, 2, 2])), [true, true, false]);
        assert_eq!(told(&of(NOT_IN_TIME, [3, 1, 2])), [false, false, true]);
        let mut unseen = of(AVAILABLE, [2, 2, 2]);
        unseen.metadata.generation = Some(8);
        assert_eq!(told(&unseen), [false; 3], "Kubernetes has not seen the template yet");
        assert!(is_served(&of(AVAILABLE, [2, 2, 2])) && is_served(&of(AVAILABLE, [2, 2, 1])), "one is left");
        let unserved = [of(AVAILABLE, [2, 2, 0]), of(AVAILABLE, [3, 1, 2]), of(NOT_IN_TIME, [3, 1, 2]), unseen];
        assert!(!unserved.iter().any(is_served));
    }
}
