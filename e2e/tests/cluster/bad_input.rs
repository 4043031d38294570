//! Each mistake gets a sentence that names it, with the right code, and leaves nothing half made.

use croft_e2e::client::{Client, message, scripted_agent};
use croft_e2e::system::System;
use croft_proto::v1::{AgentSpec, GetSessionRequest, ListSessionsRequest};
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn each_mistake_of_a_client_is_named() {
    let system = System::from_env_file().unwrap();
    let mut client = Client::new(&system.grpc, &system.api_key).unwrap();
    let session_id = client.create(scripted_agent("strict")).await.unwrap().session_id;
    let listed = ListSessionsRequest { page_size: 1_000, ..ListSessionsRequest::default() };

    let wrong_key = format!("{}x", &system.api_key[..system.api_key.len() - 1]);
    for key in ["nonsense", "ck_00000000_unknown", &wrong_key] {
        let mut stranger = Client::new(&system.grpc, key).unwrap();
        let refused = stranger.lifecycle.list_sessions(listed.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
        assert!(!refused.message().contains(key), "the answer repeats the key");
    }

    let foreign = uuid::Uuid::now_v7().to_string();
    for unknown in ["nonsense", &foreign] {
        let get = GetSessionRequest { session_id: unknown.to_owned() };
        let refused = client.lifecycle.get_session(get).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{refused:?}");
        assert!(refused.message().contains(unknown));
        let refused = client.lifecycle.send_message(message(unknown, "hello")).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{refused:?}");
    }

    let empty = client.lifecycle.send_message(message(&session_id, "")).await.unwrap_err();
    assert_eq!((empty.code(), empty.message()), (Code::InvalidArgument, "content[0].text is empty"));
    let oversize = message(&session_id, &"x".repeat(1024 * 1024 + 1));
    let oversize = client.lifecycle.send_message(oversize).await.unwrap_err();
    assert_eq!(oversize.code(), Code::InvalidArgument, "{oversize:?}");
    assert!(oversize.message().contains("content") && oversize.message().contains("1048576"), "{oversize:?}");

    let before = client.lifecycle.list_sessions(listed.clone()).await.unwrap().into_inner().sessions;
    let no_model = AgentSpec { model: "no-such-model".into(), ..scripted_agent("strict") };
    let refused = client.create(no_model).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("agent.model") && refused.message().contains("no-such-model"), "{refused:?}");
    // The demo tenant has no key for this model's provider.
    let no_key = AgentSpec { model: "claude-haiku-4-5".into(), ..scripted_agent("strict") };
    let refused = client.create(no_key).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains("anthropic"), "{refused:?}");
    let after = client.lifecycle.list_sessions(listed).await.unwrap().into_inner().sessions;
    let made = |sessions: &[croft_proto::v1::Session]| {
        sessions.iter().filter(|session| session.agent.as_ref().is_some_and(|agent| agent.name == "strict")).count()
    };
    assert_eq!(made(&before), made(&after), "a refused session was made all the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_mistake_in_a_manifest_is_named() {
    let system = System::from_env_file().unwrap();
    let manifests = [
        ("kind: AgentTenant\nmetadata: { name: bad }\nspec: { tier: gold }", "tier"),
        ("kind: AgentTenant\nmetadata: { name: bad }\nspec: { workers: { replicas: -1 } }", "replicas"),
        ("kind: AgentTenant\nmetadata: { name: bad }\nspec: { egress: { allow: [{ cidr: nonsense }] } }", "cidr"),
        (
            "kind: AgentSession\nmetadata: { name: bad, namespace: tenant-demo }\nspec: { agent: { name: bad } }",
            "model",
        ),
    ];
    for (manifest, field) in manifests {
        let refused = system.apply(&format!("apiVersion: croft.dev/v1alpha1\n{manifest}\n")).await.unwrap_err();
        assert!(format!("{refused:#}").contains(field), "{refused:#}");
    }
    let (found, said) = system.kubectl_tries(&["get", "agenttenant", "bad"]).await.unwrap();
    assert!(!found, "{said}");

    // Fine by its kind, but in a namespace that is no tenant's.
    let lost = "apiVersion: croft.dev/v1alpha1\nkind: AgentSession\nmetadata: { name: lost, namespace: default }\nspec: { agent: { name: lost, model: scripted-1 } }\n";
    let refused = format!("{:#}", system.apply(lost).await.unwrap_err());
    assert!(refused.contains("this namespace is not a tenant's"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_meddles_with_what_the_operator_keeps() {
    let system = System::from_env_file().unwrap();
    let kept = "the label croft.dev/tenant marks what Croft's operator keeps";
    for (attempt, sentence) in [
        (&["create", "namespace", "tenant-nobody"][..], "make an AgentTenant"),
        (&["delete", "namespace", "tenant-demo"], "this namespace is a tenant's"),
        (&["label", "namespace", "tenant-demo", "croft.dev/tenant-"], "this namespace is a tenant's"),
        (&["-n", "tenant-demo", "delete", "networkpolicy", "fence"], kept),
        (&["-n", "tenant-demo", "delete", "secret", "worker-tls"], kept),
        (&["-n", "tenant-demo", "scale", "deployment/workers", "--replicas=0"], "only Croft's operator scales"),
        (&["-n", "tenant-demo", "annotate", "resourcequota", "--all", "mine=yes"], kept),
        (
            &["delete", "agenttenant", "demo", "--cascade=foreground", "--dry-run=server"],
            "a tenant is taken apart in order",
        ),
    ] {
        let (done, said) = system.kubectl_tries(attempt).await.unwrap();
        assert!(!done && said.contains(sentence), "{attempt:?}: {said}");
    }
}
