//! Requests of the corpus at an API server that has the policies. They are bound to this run's objects alone, so that
//! other tests are left in peace.

use croft_crds::policy::{Policy, Request};
use http::Method;
use serde_json::{Value, json};

use crate::api::{Session, TEST_LABEL, path, until};
use crate::corpus::requests::{SYSTEM, installed_in, namespace_object, requests};

const ADMISSION: &str = "admissionregistration.k8s.io/v1";
const POLICIES: [&str; 2] = ["validatingadmissionpolicybindings", "validatingadmissionpolicies"];
async fn install(session: &Session, policies: &[Policy]) {
    for policy in policies {
        let name = format!("{}-{}", policy.name, session.run);
        let metadata = json!({ "name": name, "labels": { TEST_LABEL: "true" } });
        let object = json!({
            "apiVersion": ADMISSION, "kind": "ValidatingAdmissionPolicy", "metadata": metadata, "spec": policy,
        });
        let made = session.ask(Method::POST, &path(ADMISSION, None, POLICIES[1], None), &object, None).await;
        made.unwrap_or_else(|said| panic!("{name} is no policy: {said}"));
        let binding = json!({
            "apiVersion": ADMISSION, "kind": "ValidatingAdmissionPolicyBinding", "metadata": metadata,
            "spec": {
                "policyName": name, "validationActions": ["Deny"],
                "matchResources": { "objectSelector": { "matchLabels": { TEST_LABEL: session.run } } },
            },
        });
        let made = session.ask(Method::POST, &path(ADMISSION, None, POLICIES[0], None), &binding, None).await;
        made.unwrap_or_else(|said| panic!("{name} can't be bound: {said}"));
    }
}

async fn uninstall(session: &Session) {
    for plural in POLICIES {
        let ours = format!("{}?labelSelector={TEST_LABEL}%3Dtrue", path(ADMISSION, None, plural, None));
        session.ask(Method::DELETE, &ours, &Value::Null, None).await.expect("policies can be deleted");
    }
}

/// A request of the corpus, moved to names that no other run or case has.
fn placed(request: &Request, run: &str, number: usize) -> Request {
    let place = |object: &Value| {
        let text = object.to_string();
        let text = ["tenant-heron", SYSTEM, "plain"].iter().fold(text, |text, &namespace| {
            text.replace(&format!("\"{namespace}\""), &format!("\"{namespace}-{run}\""))
        });
        let mut object: Value = serde_json::from_str(&text).expect("it is still an object");
        if let Some(name) = object["metadata"]["name"].as_str().map(|name| format!("{name}-{run}-{number}")) {
            object["metadata"]["name"] = name.into();
        }
        object["metadata"]["labels"][TEST_LABEL] = run.into();
        object
    };
    Request {
        user: request.user.replace(SYSTEM, &format!("{SYSTEM}-{run}")),
        object: request.object.as_ref().map(place),
        old: request.old.as_ref().map(place),
        ..request.clone()
    }
}

/// Where objects like this one are.
fn all_like(object: &Value, resource: &str) -> String {
    let version = object["apiVersion"].as_str().expect("a version");
    path(version, object["metadata"]["namespace"].as_str(), resource, None)
}

/// Where this object is.
fn just(object: &Value, resource: &str) -> String {
    format!("{}/{}", all_like(object, resource), object["metadata"]["name"].as_str().unwrap_or_default())
}

/// What the API server makes of a request, without doing it.
async fn judged(session: &Session, request: &Request) -> Result<Value, String> {
    let either = request.old.as_ref().or(request.object.as_ref()).expect("an object");
    let all = format!("{}?dryRun=All", all_like(either, &request.resource));
    let one = format!("{}?dryRun=All", just(either, &request.resource));
    let someone = Some((request.user.as_str(), request.groups.as_slice()));
    match (&request.old, &request.object) {
        (None, Some(object)) => session.ask(Method::POST, &all, object, someone).await,
        (Some(_), None) => {
            // With a body the API server reads nothing from the query.
            let options = json!({
                "apiVersion": "v1", "kind": "DeleteOptions", "dryRun": ["All"], "propagationPolicy": request.propagation,
            });
            session.ask(Method::DELETE, &one, &options, someone).await
        }
        (_, Some(object)) => {
            let live = session.ask(Method::GET, &one, &Value::Null, None).await?;
            let mut wanted = live.clone();
            for (field, value) in object.as_object().expect("an object") {
                if !["metadata", "apiVersion", "kind"].contains(&field.as_str()) {
                    wanted[field] = value.clone();
                }
            }
            // Most of a live pod's spec can't be changed, and none of it matters here.
            if request.resource == "pods" {
                wanted["spec"] = live["spec"].clone();
            }
            for field in ["labels", "finalizers"] {
                wanted["metadata"][field] = object["metadata"][field].clone();
            }
            session.ask(Method::PUT, &one, &wanted, someone).await
        }
        (None, None) => unreachable!("a request is about something"),
    }
}

/// Stores what a request finds, before there are policies.
async fn store(session: &Session, request: &Request) {
    let Some(old) = &request.old else { return };
    let all = all_like(old, &request.resource);
    // A pod is refused until its namespace has a ServiceAccount.
    until("it is stored", async || session.ask(Method::POST, &all, old, None).await).await;
    if is_going(old) {
        session
            .ask(Method::DELETE, &just(old, &request.resource), &Value::Null, None)
            .await
            .expect("it can be deleted");
    }
}

/// What is deleted already and held by a finalizer.
fn is_going(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

/// Deletes what [`store`] stored, once the policies are gone.
async fn forget(session: &Session, request: &Request) {
    let Some(old) = &request.old else { return };
    let one = just(old, &request.resource);
    let unfinished = json!({ "metadata": { "finalizers": null } });
    // It takes the API server a moment to forget a policy, too.
    until("it lets go", async || session.ask(Method::PATCH, &one, &unfinished, None).await).await;
    if is_going(old) {
        return;
    }
    until("it is deleted", async || session.ask(Method::DELETE, &one, &Value::Null, None).await).await;
}

#[tokio::test]
async fn requests_that_a_policy_is_about_are_refused_and_others_are_not() {
    let session = Session::begin().await;
    uninstall(&session).await;
    let namespaces = ["tenant-heron", "plain", SYSTEM];
    for namespace in namespaces {
        let labels = &namespace_object(namespace)["metadata"]["labels"];
        session.namespace(&format!("{namespace}-{}", session.run), labels).await;
    }
    // Those of networks are not there. A Scale has no labels by which a policy could be bound to this run alone; the tests of the whole
    // scale something.
    let is_networks =
        |group: &str| ["cilium.io", "crd.antrea.io"].contains(&group) || group.ends_with("projectcalico.org");
    let labelled = requests()
        .into_iter()
        .filter(|asked| !is_networks(&asked.request.group) && asked.request.resource != "deployments/scale");
    let asked: Vec<_> = labelled
        .enumerate()
        .map(|(number, asked)| (asked.says, placed(&asked.request, &session.run, number)))
        .collect();
    for (_, request) in &asked {
        store(&session, request).await;
    }
    install(&session, &installed_in(&format!("{SYSTEM}-{}", session.run))).await;

    let (refused, taken): (Vec<_>, Vec<_>) = asked.iter().partition(|(says, _)| !says.is_empty());
    for (sentences, request) in refused {
        // It takes the API server a moment to learn of a policy.
        until(&format!("{request:?} is refused"), async || match judged(&session, request).await {
            Err(said) if sentences.iter().any(|sentence| said.contains(sentence)) => Ok(()),
            Err(said) => Err(format!("wanted one of {sentences:?}, got {said:?}")),
            Ok(_) => Err("it is taken".to_owned()),
        })
        .await;
    }
    for (_, request) in taken {
        let outcome = judged(&session, request).await;
        assert!(outcome.is_ok(), "{request:?}: {outcome:?}");
    }

    uninstall(&session).await;
    for (_, request) in &asked {
        forget(&session, request).await;
    }
    for namespace in namespaces {
        let namespace = path("v1", None, "namespaces", Some(&format!("{namespace}-{}", session.run)));
        session.ask(Method::DELETE, &namespace, &Value::Null, None).await.expect("it can be deleted");
    }
}
