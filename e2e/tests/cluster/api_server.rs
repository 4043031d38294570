//! Invariant 1: no gRPC call waits for the Kubernetes API.

use croft_e2e::client::{Client, message, scripted_agent};
use croft_e2e::system::System;
use croft_proto::v1::TerminateSessionRequest;

use crate::support::{Pod, front_pods, whole_turn};

/// The front has no credential for the API server and no way to ask for one, so the server's audit log can't know it.
#[tokio::test(flavor = "multi_thread")]
async fn creating_sessions_leaves_no_trace_at_the_api_server() {
    let system = System::from_env_file().unwrap();
    let audit_log = system.kubeconfig.with_file_name("audit.log");
    let fronts = front_pods(&system).await;
    let mut client = Client::new(&system.grpc, &system.api_key).unwrap();
    for round in 0..20 {
        let session = client.create(scripted_agent("unseen")).await.unwrap();
        let said =
            client.lifecycle.send_message(message(&session.session_id, &format!("round {round}"))).await.unwrap();
        whole_turn(said.into_inner()).await.unwrap();
        let ended = TerminateSessionRequest { session_id: session.session_id, ..TerminateSessionRequest::default() };
        client.lifecycle.terminate_session(ended).await.unwrap();
    }
    let audit = std::fs::read_to_string(&audit_log).unwrap();
    assert!(audit.contains("system:serviceaccount:croft-system:croft-operator"), "the audit log knows the operator");
    let from_front: Vec<&str> = audit
        .lines()
        .filter(|line| {
            let asks_from = |Pod { ip, .. }: &Pod| line.contains(&format!("\"sourceIPs\":[\"{ip}\""));
            line.contains("system:serviceaccount:croft-system:croft-front") || fronts.iter().any(asks_from)
        })
        .collect();
    assert!(from_front.is_empty(), "the front asked the API server: {}", from_front[0]);
}
