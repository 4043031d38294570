//! A session is recorded, and a repeated message known, by what it is and not by how the caller spells its id.

use croft_proto::v1::audit_service_client::AuditServiceClient;
use croft_proto::v1::budget_service_client::BudgetServiceClient;
use croft_proto::v1::content_block::Block;
use croft_proto::v1::lifecycle_service_client::LifecycleServiceClient;
use croft_proto::v1::{
    Budget, BudgetAction, BudgetPeriod, BudgetScope, ContentBlock, DeleteBudgetRequest, InterruptSessionRequest,
    ListAuditRecordsRequest, ResolveApprovalRequest, SendMessageRequest, SetBudgetRequest, TerminateSessionRequest,
    Text,
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

/// Who had raised a limit was recorded, and neither which limit nor to what.
#[tokio::test]
async fn a_record_of_a_budget_says_what_was_set_and_what_stood_there_before() {
    let scene = Scene::new().await;
    scene.taken(&scene.people.sign(&scene.claims())).await;
    let token = scene.changed("roles", json!(["admin"]));
    let mut budgets = BudgetServiceClient::new(scene.channel());
    let budget = |limit_nano_usd, action: BudgetAction| Budget {
        scope: BudgetScope::Agent.into(),
        subject: "curlew".into(),
        period: BudgetPeriod::Month.into(),
        limit_nano_usd,
        limit_tokens: Some(700),
        action: action.into(),
        ..Budget::default()
    };
    for budget in [
        budget(Some(5_000), BudgetAction::Unspecified),
        budget(Some(9_000), BudgetAction::Warn),
        budget(None, BudgetAction::Throttle),
    ] {
        let request = SetBudgetRequest { budget: Some(budget) };
        budgets.set_budget(with_token(request, &token)).await.unwrap();
    }
    let mut refused = budget(Some(-1), BudgetAction::Block);
    refused.limit_tokens = None;
    let request = SetBudgetRequest { budget: Some(refused) };
    budgets.set_budget(with_token(request, &token)).await.unwrap_err();
    for _ in 0..2 {
        let (scope, period) = (BudgetScope::Agent.into(), BudgetPeriod::Month.into());
        let request = DeleteBudgetRequest { scope, subject: "curlew".into(), period };
        budgets.delete_budget(with_token(request, &token)).await.unwrap();
    }

    assert_eq!(scene.core.audit.unwritten(PATIENCE).await, 0);
    let records = scene.core.stores.audit.list(scene.heron, 0, 10).await.unwrap();
    let told: Vec<_> = records.iter().map(|record| (&*record.action, &*record.resource, &*record.outcome)).collect();
    let expected = [
        ("budget.set", "agent, month, 5000 nano-dollars, 700 tokens, block; before none", "ok"),
        (
            "budget.set",
            "agent, month, 9000 nano-dollars, 700 tokens, warn; before 5000 nano-dollars, 700 tokens, block",
            "ok",
        ),
        ("budget.set", "agent, month, 700 tokens, throttle; before 9000 nano-dollars, 700 tokens, warn", "ok"),
        ("budget.set", "agent, month, -1 nano-dollars, block", "INVALID_ARGUMENT"),
        ("budget.delete", "agent, month; before 700 tokens, throttle", "ok"),
        ("budget.delete", "agent, month; before none", "ok"),
    ]
    .map(|(action, what, outcome)| (action, format!("budgets/curlew: {what}"), outcome));
    assert_eq!(told, expected.each_ref().map(|(action, resource, outcome)| (*action, &**resource, *outcome)));
}
