//! A session is recorded, and a repeated message known, by what it is and not by how the caller spells its id.

use croft_proto::v1::audit_service_client::AuditServiceClient;
use croft_proto::v1::content_block::Block;
use croft_proto::v1::lifecycle_service_client::LifecycleServiceClient;
use croft_proto::v1::{
    ContentBlock, InterruptSessionRequest, ListAuditRecordsRequest, ResolveApprovalRequest, SendMessageRequest,
    TerminateSessionRequest, Text,
};
use serde_json::json;

use crate::scene::{PATIENCE, Scene, with_token};
use crate::streams::session;

/// Who ended a session could see to it that nobody found out by its name.
#[tokio::test]
async fn whatever_an_id_is_spelled_like_the_record_names_the_session() {
    let scene = Scene::new().await;
    scene.taken(&scene.people.sign(&scene.claims())).await;
    let token = scene.changed("roles", json!(["user", "auditor"]));
    let session = session(&scene).await;
    let [capitals, braces, urn] =
        [session.to_string().to_uppercase(), format!("{{{session}}}"), session.0.urn().to_string()];
    let mut calls = LifecycleServiceClient::new(scene.channel());
    let content = vec![ContentBlock { block: Some(Block::Text(Text { text: "hello".into() })) }];
    let message = |session_id: &str| SendMessageRequest {
        session_id: session_id.to_owned(),
        content: content.clone(),
        idempotency_key: "hello".into(),
        ..SendMessageRequest::default()
    };
    let mut seqs = Vec::new();
    for id in [&urn, &capitals] {
        let mut turn = calls.send_message(with_token(message(id), &token)).await.unwrap().into_inner();
        let first = tokio::time::timeout(PATIENCE, turn.message()).await.expect("nothing comes").unwrap();
        seqs.push(first.unwrap().event.unwrap().seq);
    }
    assert_eq!(seqs, [2, 2], "it is one message");
    let interrupt = InterruptSessionRequest { session_id: braces.clone() };
    calls.interrupt_session(with_token(interrupt, &token)).await.unwrap();
    let answer = ResolveApprovalRequest {
        session_id: capitals,
        approval_id: "none".into(),
        ..ResolveApprovalRequest::default()
    };
    calls.resolve_approval(with_token(answer, &token)).await.unwrap_err();
    let end = TerminateSessionRequest { session_id: urn, ..TerminateSessionRequest::default() };
    calls.terminate_session(with_token(end, &token)).await.unwrap();
    let unknown = TerminateSessionRequest { session_id: "No. 7".into(), ..TerminateSessionRequest::default() };
    calls.terminate_session(with_token(unknown, &token)).await.unwrap_err();

    let mut audit = AuditServiceClient::new(scene.channel());
    let recorded = async {
        loop {
            let request = with_token(ListAuditRecordsRequest::default(), &token);
            let records = audit.list_audit_records(request).await.unwrap().into_inner().records;
            if records.len() >= 6 {
                return records;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let records = tokio::time::timeout(PATIENCE, recorded).await.expect("not all is recorded");
    let told: Vec<_> = records.iter().map(|record| (&*record.action, &*record.resource)).collect();
    let ours = format!("sessions/{session}");
    let expected = [
        ("session.send_message", &*ours),
        ("session.send_message", &ours),
        ("session.interrupt", &ours),
        ("approval.resolve", &ours),
        ("session.terminate", &ours),
        ("session.terminate", "sessions/No. 7"),
    ];
    assert_eq!(told, expected);
}
