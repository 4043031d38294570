//! A session by `kubectl apply`.

use croft_e2e::system::System;

use crate::support::eventually;

#[tokio::test(flavor = "multi_thread")]
async fn an_agentsession_reaches_ready_and_ends_with_its_object() {
    let system = System::from_env_file().unwrap();
    let manifest = "
apiVersion: croft.dev/v1alpha1
kind: AgentSession
metadata: { name: applied, namespace: tenant-demo }
spec: { agent: { name: applied, model: scripted-1 } }
";
    system.apply(manifest).await.unwrap();
    let object = ["agentsession/applied", "-n", "tenant-demo"];
    system.kubectl(&[&["wait", "--for=condition=Ready", "--timeout=60s"], &object[..]].concat()).await.unwrap();
    let path = "jsonpath={.status.phase} {.status.sessionID}";
    let status = system.kubectl(&[&["get", "-o", path], &object[..]].concat()).await.unwrap();
    let (phase, session_id) = status.split_once(' ').expect("phase and session");
    assert_eq!(phase, "Ready");

    let mut client = croft_e2e::client::Client::new(&system.grpc, &system.api_key).unwrap();
    let get = croft_proto::v1::GetSessionRequest { session_id: session_id.to_owned() };
    let session = client.lifecycle.get_session(get.clone()).await.unwrap().into_inner().session.unwrap();
    assert_eq!(session.agent.unwrap().name, "applied");

    system.kubectl(&[&["delete", "--timeout=60s"], &object[..]].concat()).await.unwrap();
    eventually("the session ends with its object", async || {
        let session = client.lifecycle.get_session(get.clone()).await?.into_inner().session.unwrap_or_default();
        anyhow::ensure!(session.state() == croft_proto::v1::SessionState::Terminated, "{:?}", session.state());
        Ok(())
    })
    .await;
}
