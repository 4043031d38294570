//! Tenants and sessions, sound ones and nonsense.

use http::Method;
use serde_json::{Value, json};

use crate::api::{Session, TEST_LABEL, path, until};
use crate::corpus::{self, Case};

const VERSION: &str = "croft.dev/v1alpha1";
/// As `kubectl apply` asks: a field that nobody knows is a mistake.
const STRICT: &str = "?dryRun=All&fieldValidation=Strict";

/// What the API server says of the object, without storing it. For an update it stores what was before, and deletes it.
async fn judged(session: &Session, namespace: &str, case: &Case) -> Result<Value, String> {
    let namespace = (case.plural == "agentsessions").then_some(namespace);
    let placed = |object: &Value| {
        let mut object = object.clone();
        object["metadata"]["labels"] = json!({ TEST_LABEL: "true" });
        if let Some(namespace) = namespace {
            object["metadata"]["namespace"] = namespace.into();
        }
        object
    };
    let all = path(VERSION, namespace, case.plural, None);
    let Some(before) = &case.before else {
        return session.ask(Method::POST, &(all + STRICT), &placed(&case.object), None).await;
    };
    let name = format!("{}-{}", before["metadata"]["name"].as_str().unwrap_or_default(), session.run);
    let mut before = placed(before);
    before["metadata"]["name"] = name.clone().into();
    let stored = session.ask(Method::POST, &all, &before, None).await.expect("what was before is sound");
    let mut after = placed(&case.object);
    after["metadata"]["name"] = name.clone().into();
    after["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"].clone();
    let one = path(VERSION, namespace, case.plural, Some(&name));
    let outcome = session.ask(Method::PUT, &format!("{one}{STRICT}"), &after, None).await;
    session.ask(Method::DELETE, &one, &Value::Null, None).await.expect("it can be deleted");
    outcome
}

async fn begin() -> (Session, String) {
    let session = Session::begin().await;
    let namespace = format!("croft-corpus-{}", session.run);
    session.namespace(&namespace, &Value::Null).await;
    (session, namespace)
}

async fn end(session: &Session, namespace: &str) {
    let namespace = path("v1", None, "namespaces", Some(namespace));
    session.ask(Method::DELETE, &namespace, &Value::Null, None).await.expect("it can be deleted");
}

#[tokio::test]
async fn what_is_nonsense_is_refused_with_a_sentence() {
    let (session, namespace) = begin().await;
    for case in corpus::invalid() {
        let said = judged(&session, &namespace, &case).await.err().unwrap_or_else(|| "it is taken".to_owned());
        for wanted in case.says.iter().chain(&case.at) {
            assert!(said.contains(wanted), "{}: wanted {wanted:?}, got {said:?}", case.object);
        }
    }
    end(&session, &namespace).await;
}

#[tokio::test]
async fn what_is_sound_is_taken() {
    let (session, namespace) = begin().await;
    for case in corpus::valid() {
        let outcome = judged(&session, &namespace, &case).await;
        assert!(outcome.is_ok(), "{}: {outcome:?}", case.object);
    }
    end(&session, &namespace).await;
}

#[tokio::test]
async fn the_examples_are_taken() {
    let (session, namespace) = begin().await;
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
    let mut kinds = Vec::new();
    for entry in std::fs::read_dir(folder).expect("there are examples") {
        let file = entry.expect("the folder can be read").path();
        let text = std::fs::read_to_string(&file).expect("it can be read");
        let mut object: Value = serde_yaml::from_str(&text).expect("it is YAML");
        let [kind, version] = ["kind", "apiVersion"].map(|field| object[field].as_str().unwrap_or_default().to_owned());
        let plural = format!("{}s", kind.to_lowercase());
        object["metadata"]["labels"] = json!({ TEST_LABEL: "true" });
        let namespace = object["metadata"]["namespace"].is_string().then_some(namespace.as_str());
        if let Some(namespace) = namespace {
            object["metadata"]["namespace"] = namespace.into();
        }
        let all = path(&version, namespace, &plural, None);
        let outcome = session.ask(Method::POST, &format!("{all}{STRICT}"), &object, None).await;
        assert!(outcome.is_ok(), "{}: {outcome:?}", file.display());
        if kind == "Job" {
            session.ask(Method::POST, &all, &object, None).await.expect("it runs");
            // And again, as `kubectl replace --force` has it. Once, the page said to apply it, which runs nothing a second time.
            let name = object["metadata"]["name"].as_str().expect("it has a name");
            let own = path(&version, namespace, &plural, Some(name));
            let at_once = json!({ "propagationPolicy": "Background" });
            session.ask(Method::DELETE, &own, &at_once, None).await.expect("the first may go");
            until("a second run", async || session.ask(Method::POST, &all, &object, None).await).await;
        }
        kinds.push(kind);
    }
    kinds.sort();
    assert_eq!(kinds, ["AgentSession", "AgentTenant", "Job"]);
    end(&session, &namespace).await;
}
