//! Requests of the corpus.

use croft_crds::policy::{Installation, Policy, Request, policies};
use serde_json::{Map, Value, json};

use super::yaml;

/// One write that someone asks for.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// The sentences of the policies that must refuse it; none if it must be taken. The API server tells one of them:
    /// which, depends on the order in which it came to hold the policies.
    pub(crate) says: Vec<String>,
    pub(crate) request: Request,
}

/// The operator's namespace in the corpus.
pub(crate) const SYSTEM: &str = "croft-system";

/// The policies that the corpus is about, for an operator in `namespace`: someone is exempt, and images come from two
/// places.
pub(crate) fn installed_in(namespace: &str) -> Vec<Policy> {
    let images = ["registry.example.com/croft/", "own.example.com/worker"];
    policies(&Installation { exempt_users: "['robot:backup']".to_owned(), ..Installation::new(namespace, &images) })
}

/// All requests of the corpus.
pub(crate) fn requests() -> Vec<Asked> {
    yaml("requests.yaml").into_iter().map(read).collect()
}

fn read(mut case: Map<String, Value>) -> Asked {
    let text = |value: Option<Value>| value.map(|value| value.as_str().expect("a word").to_owned());
    let namespace = text(case.remove("in"));
    let [was, make] =
        ["was", "make"].map(|field| case.remove(field).map(|object| whole(&object, namespace.as_deref())));
    let kind = was.as_ref().or(make.as_ref()).expect("an object")["kind"].as_str().expect("a kind").to_owned();
    let (group, resource) = resource(&kind);
    let networks = text(case.remove("of"));
    let [was, make] = [was, make].map(|object| {
        object.map(|mut object| {
            if let Some(networks) = &networks {
                object["apiVersion"] = format!("{networks}/v1").into();
            }
            object
        })
    });
    let (user, groups) = who(&text(case.remove("who")).expect("someone"));
    let says = match case.remove("says") {
        Some(Value::Array(sentences)) => sentences.into_iter().filter_map(|sentence| text(Some(sentence))).collect(),
        sentence => text(sentence).into_iter().collect(),
    };
    let propagation = text(case.remove("parts"));
    assert!(case.is_empty(), "a case has more than is read: {case:?}");
    let request = Request {
        user: user.to_owned(),
        groups: groups.iter().map(|&group| group.to_owned()).collect(),
        operation: match (&was, &make) {
            (None, _) => "CREATE",
            (Some(_), Some(_)) => "UPDATE",
            (Some(_), None) => "DELETE",
        }
        .to_owned(),
        group: networks.unwrap_or_else(|| group.to_owned()),
        resource: resource.to_owned(),
        object: make,
        old: was,
        propagation,
        namespace: namespace.as_deref().map(namespace_object),
    };
    Asked { says, request }
}

fn who(word: &str) -> (&'static str, &'static [&'static str]) {
    match word {
        "admin" => ("ada", &["system:masters"]),
        "operator" => ("system:serviceaccount:croft-system:croft-operator", &["system:serviceaccounts:croft-system"]),
        "owner" => ("robin", &["herons"]),
        "controller" => {
            ("system:serviceaccount:kube-system:generic-garbage-collector", &["system:serviceaccounts:kube-system"])
        }
        "autoscaler" => {
            ("system:serviceaccount:kube-system:horizontal-pod-autoscaler", &["system:serviceaccounts:kube-system"])
        }
        "backup" => ("robot:backup", &[]),
        other => panic!("nobody is called {other}"),
    }
}

/// The namespaces of the corpus: one of a tenant, one of nobody, and Croft's own.
pub(crate) fn namespace_object(name: &str) -> Value {
    let mut namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
    if let Some(tenant) = name.strip_prefix("tenant-") {
        namespace["metadata"]["labels"] = json!({ "croft.dev/tenant": tenant });
    }
    namespace
}

fn resource(kind: &str) -> (&'static str, &'static str) {
    match kind {
        "Namespace" => ("", "namespaces"),
        "ConfigMap" => ("", "configmaps"),
        "Secret" => ("", "secrets"),
        "Pod" => ("", "pods"),
        "Service" => ("", "services"),
        "NetworkPolicy" => ("networking.k8s.io", "networkpolicies"),
        "CiliumNetworkPolicy" => ("cilium.io", "ciliumnetworkpolicies"),
        "Scale" => ("apps", "deployments/scale"),
        "Deployment" => ("apps", "deployments"),
        "StatefulSet" => ("apps", "statefulsets"),
        "Job" => ("batch", "jobs"),
        "CronJob" => ("batch", "cronjobs"),
        "Role" => ("rbac.authorization.k8s.io", "roles"),
        "AgentTenant" => ("croft.dev", "agenttenants"),
        "AgentSession" => ("croft.dev", "agentsessions"),
        other => panic!("no resource is known of {other}"),
    }
}

/// The object as the API server has it, from its short form.
fn whole(short: &Value, namespace: Option<&str>) -> Value {
    let mut object = short.as_object().expect("an object").clone();
    let mut metadata = Map::new();
    for field in ["name", "generateName", "labels", "finalizers", "deletionTimestamp"] {
        if let Some(value) = object.remove(field) {
            metadata.insert(field.to_owned(), value);
        }
    }
    if let Some(namespace) = namespace {
        metadata.insert("namespace".to_owned(), namespace.into());
    }
    let version = match object["kind"].as_str().expect("a kind") {
        "AgentTenant" | "AgentSession" => "croft.dev/v1alpha1",
        "NetworkPolicy" => "networking.k8s.io/v1",
        "Role" => "rbac.authorization.k8s.io/v1",
        "Scale" => "autoscaling/v1",
        "Deployment" | "StatefulSet" => "apps/v1",
        "Job" | "CronJob" => "batch/v1",
        _ => "v1",
    };
    object.insert("apiVersion".to_owned(), version.into());
    object.insert("metadata".to_owned(), metadata.into());
    let kind = object["kind"].as_str().expect("a kind").to_owned();
    let pod = json!({ "containers": [{ "name": "c", "image": "registry.example.com/none" }] });
    if kind == "Pod" {
        object.insert("spec".to_owned(), pod);
    } else if let Some(labels) = object.remove("podLabels") {
        object.insert("spec".to_owned(), makes_pods(&kind, &labels, pod));
    }
    object.into()
}

/// The spec of what makes pods with these labels.
fn makes_pods(kind: &str, labels: &Value, mut pod: Value) -> Value {
    if ["Job", "CronJob"].contains(&kind) {
        pod["restartPolicy"] = "Never".into();
        let job = json!({ "template": { "metadata": { "labels": labels }, "spec": pod } });
        return if kind == "Job" { job } else { json!({ "schedule": "0 4 * * *", "jobTemplate": { "spec": job } }) };
    }
    let mut all = labels.clone();
    all["app"] = "anything".into();
    let mut spec = json!({
        "selector": { "matchLabels": { "app": "anything" } },
        "template": { "metadata": { "labels": all }, "spec": pod },
    });
    if kind == "StatefulSet" {
        spec["serviceName"] = "anything".into();
    }
    spec
}
