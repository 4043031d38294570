//! A worker pod as the routes and a tenant's status see it.

use croft_crds::labels;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt as _;

use crate::tenant::GRPC_PORT;

/// What a worker pod is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// The pod's name.
    pub name: String,
    /// `host:port` of `RuntimeService`, once the pod has an address.
    pub address: Option<String>,
    /// It takes new sessions.
    pub ready: bool,
    /// What keeps it from running.
    pub problem: Option<Problem>,
    /// It is being deleted, and has been given this long.
    pub ends_within_seconds: Option<i64>,
}

/// Why a worker does not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// A fixed word.
    pub reason: &'static str,
    /// A sentence for people and callers. It must not change from one try to the next.
    pub message: String,
}

/// The tenant that a pod belongs to. Its label must agree with its namespace: whoever may make pods elsewhere could
/// write any label on them.
pub fn tenant_of(pod: &Pod) -> Option<&str> {
    let tenant = pod.labels().get(labels::TENANT)?;
    (pod.namespace().as_deref() == Some(labels::tenant_namespace(tenant).as_str())).then_some(tenant.as_str())
}

impl Worker {
    /// Reads a pod. `None` if it has ended for good.
    pub fn read(pod: &Pod) -> Option<Self> {
        let status = pod.status.as_ref();
        if matches!(status.and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed")) {
            return None;
        }
        let ip = status.and_then(|status| status.pod_ip.as_deref());
        let address =
            ip.map(|ip| if ip.contains(':') { format!("[{ip}]:{GRPC_PORT}") } else { format!("{ip}:{GRPC_PORT}") });
        let is_ready = condition(pod, "Ready").is_some_and(|(status, _)| status == "True");
        let ready = is_ready && address.is_some() && pod.metadata.deletion_timestamp.is_none();
        let ends_within_seconds = pod.metadata.deletion_grace_period_seconds;
        Some(Self { name: pod.name_any(), address, ready, problem: problem(pod), ends_within_seconds })
    }
}

fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<(&'a str, &'a str)> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let condition = conditions.iter().find(|condition| condition.type_ == kind)?;
    Some((&condition.status, condition.message.as_deref().unwrap_or_default()))
}

fn problem(pod: &Pod) -> Option<Problem> {
    if let Some(("False", message)) = condition(pod, "PodScheduled") {
        return Some(Problem { reason: "Unschedulable", message: format!("no node takes the worker: {message}") });
    }
    let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
    containers.iter().find_map(container_problem)
}

fn container_problem(container: &ContainerStatus) -> Option<Problem> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let image = &container.image;
    match waiting.reason.as_deref()? {
        "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" | "ImageInspectError" => {
            Some(Problem { reason: "ImageUnavailable", message: format!("the image {image} can't be had") })
        }
        "CrashLoopBackOff" => Some(Problem {
            reason: "Crashing",
            message: match container.last_state.as_ref().and_then(|state| state.terminated.as_ref()) {
                Some(ended) => format!("the worker ends again and again, last with code {}", ended.exit_code),
                None => "the worker ends again and again".to_owned(),
            },
        }),
        reason @ ("CreateContainerConfigError" | "CreateContainerError" | "RunContainerError") => Some(Problem {
            reason: "NotStartable",
            message: format!("the worker can't be started: {}", waiting.message.as_deref().unwrap_or(reason)),
        }),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    pub(crate) fn pod(namespace: &str, status: &Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": { "name": "workers-1", "namespace": namespace, "labels": { "croft.dev/tenant": "heron" } },
            "status": status,
        }))
        .unwrap()
    }

    fn ready() -> Value {
        json!({ "phase": "Running", "podIP": "10.1.0.7", "conditions": [{ "type": "Ready", "status": "True" }] })
    }

    #[test]
    fn a_ready_pod_is_a_route() {
        let worker = Worker::read(&pod("tenant-heron", &ready())).unwrap();
        assert_eq!(worker.address.as_deref(), Some("10.1.0.7:50052"));
        assert!(worker.ready);
        let mut six = pod("tenant-heron", &ready());
        six.status.as_mut().unwrap().pod_ip = Some("fd00::7".into());
        assert_eq!(Worker::read(&six).unwrap().address.as_deref(), Some("[fd00::7]:50052"));
    }

    #[test]
    fn a_pod_that_is_going_takes_nothing_new() {
        let mut pod = pod("tenant-heron", &ready());
        pod.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        let worker = Worker::read(&pod).unwrap();
        assert!(!worker.ready && worker.address.is_some());
        assert_eq!(Worker::read(&self::pod("tenant-heron", &json!({ "phase": "Failed" }))), None);
    }

    #[test]
    fn a_label_alone_makes_no_worker_of_the_tenant() {
        assert_eq!(tenant_of(&pod("tenant-heron", &ready())), Some("heron"));
        assert_eq!(tenant_of(&pod("tenant-egret", &ready())), None);
    }

    #[test]
    fn what_keeps_a_worker_from_running_is_named() {
        let unschedulable = json!({ "phase": "Pending", "conditions": [
            { "type": "PodScheduled", "status": "False", "message": "0/3 nodes are available" },
        ] });
        let waiting = |reason: &str| {
            json!({ "phase": "Pending", "containerStatuses": [{
            "name": "worker", "image": "registry.example.com/w:1", "imageID": "", "ready": false, "restartCount": 0,
            "state": { "waiting": { "reason": reason, "message": "rpc error 17 at 12:01:02" } },
        }] })
        };
        for (status, reason, message) in [
            (unschedulable, "Unschedulable", "no node takes the worker: 0/3 nodes are available"),
            (waiting("ImagePullBackOff"), "ImageUnavailable", "the image registry.example.com/w:1 can't be had"),
            (waiting("CrashLoopBackOff"), "Crashing", "the worker ends again and again"),
        ] {
            let problem = Worker::read(&pod("tenant-heron", &status)).unwrap().problem.unwrap();
            assert_eq!((problem.reason, problem.message.as_str()), (reason, message));
        }
        assert_eq!(Worker::read(&pod("tenant-heron", &waiting("ContainerCreating"))).unwrap().problem, None);
    }
}
