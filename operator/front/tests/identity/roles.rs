//! What each kind of credential opens on the real port, call by call.

use std::collections::BTreeMap;

use croft_front::identity::Role;
use croft_proto::METHODS;
use croft_proto::v1::audit_service_client::AuditServiceClient;
use croft_proto::v1::budget_service_client::BudgetServiceClient;
use croft_proto::v1::lifecycle_service_client::LifecycleServiceClient;
use croft_proto::v1::model_registry_service_client::ModelRegistryServiceClient;
use croft_proto::v1::usage_service_client::UsageServiceClient;
use croft_proto::v1::{
    CreateSessionRequest, DeleteBudgetRequest, ExportUsageRequest, GetModelRequest, GetSessionRequest,
    InterruptSessionRequest, ListApprovalsRequest, ListAuditRecordsRequest, ListBudgetsRequest, ListModelsRequest,
    ListSessionsRequest, ListUsageEventsRequest, RecommendModelsRequest, ResolveApprovalRequest, SendMessageRequest,
    SetBudgetRequest, StreamEventsRequest, SummarizeUsageRequest, TerminateSessionRequest, VerifyAuditLogRequest,
};
use serde_json::json;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

use crate::scene::{Scene, with_token};

/// Those of the calls that there are which are no client's: workers and the operator serve them, or ask for them at another port.
const OF_OTHER_PORTS: [&str; 3] = ["croft.v1.RuntimeService/", "croft.v1.RouteService/", "croft.v1.TenantService/"];

/// Makes every call of the clients' port, and tells of each whether it was let through to where it fails for being empty.
async fn let_through(scene: &Scene, token: &str) -> BTreeMap<&'static str, bool> {
    let mut lifecycle = LifecycleServiceClient::new(scene.channel());
    let mut budgets = BudgetServiceClient::new(scene.channel());
    let mut usage = UsageServiceClient::new(scene.channel());
    let mut models = ModelRegistryServiceClient::new(scene.channel());
    let mut audit = AuditServiceClient::new(scene.channel());
    let mut outcomes = BTreeMap::new();
    macro_rules! ask {
        ($($path:literal: $client:ident.$call:ident($request:ty);)*) => {
            $(
                let refusal = $client.$call(with_token(<$request>::default(), token)).await.err();
                outcomes.insert($path, passed(refusal));
            )*
        };
    }
    ask! {
        "LifecycleService/GetSession": lifecycle.get_session(GetSessionRequest);
        "LifecycleService/ListSessions": lifecycle.list_sessions(ListSessionsRequest);
        "LifecycleService/StreamEvents": lifecycle.stream_events(StreamEventsRequest);
        "LifecycleService/ListApprovals": lifecycle.list_approvals(ListApprovalsRequest);
        "LifecycleService/CreateSession": lifecycle.create_session(CreateSessionRequest);
        "LifecycleService/SendMessage": lifecycle.send_message(SendMessageRequest);
        "LifecycleService/InterruptSession": lifecycle.interrupt_session(InterruptSessionRequest);
        "LifecycleService/ResolveApproval": lifecycle.resolve_approval(ResolveApprovalRequest);
        "LifecycleService/TerminateSession": lifecycle.terminate_session(TerminateSessionRequest);
        "ModelRegistryService/ListModels": models.list_models(ListModelsRequest);
        "ModelRegistryService/GetModel": models.get_model(GetModelRequest);
        "ModelRegistryService/RecommendModels": models.recommend_models(RecommendModelsRequest);
        "UsageService/ListUsageEvents": usage.list_usage_events(ListUsageEventsRequest);
        "UsageService/SummarizeUsage": usage.summarize_usage(SummarizeUsageRequest);
        "UsageService/ExportUsage": usage.export_usage(ExportUsageRequest);
        "BudgetService/ListBudgets": budgets.list_budgets(ListBudgetsRequest);
        "BudgetService/SetBudget": budgets.set_budget(SetBudgetRequest);
        "BudgetService/DeleteBudget": budgets.delete_budget(DeleteBudgetRequest);
        "AuditService/ListAuditRecords": audit.list_audit_records(ListAuditRecordsRequest);
        "AuditService/VerifyAuditLog": audit.verify_audit_log(VerifyAuditLogRequest);
    }
    outcomes
}

fn passed(refusal: Option<Status>) -> bool {
    match refusal {
        Some(status) if status.code() == Code::PermissionDenied => {
            assert_eq!(status.get_error_details().error_info().unwrap().reason, "FORBIDDEN");
            false
        }
        Some(status) => {
            assert_ne!(status.code(), Code::Unauthenticated, "{status}");
            true
        }
        None => true,
    }
}

/// What the roles open of all the calls that there are. One that is in none of the lists is let through for nobody but an admin.
fn allowed(roles: &[Role]) -> BTreeMap<&'static str, bool> {
    const READ: [&str; 11] = [
        "LifecycleService/GetSession",
        "LifecycleService/ListSessions",
        "LifecycleService/StreamEvents",
        "LifecycleService/ListApprovals",
        "ModelRegistryService/ListModels",
        "ModelRegistryService/GetModel",
        "ModelRegistryService/RecommendModels",
        "UsageService/ListUsageEvents",
        "UsageService/SummarizeUsage",
        "UsageService/ExportUsage",
        "BudgetService/ListBudgets",
    ];
    const WORK: [&str; 5] = [
        "LifecycleService/CreateSession",
        "LifecycleService/SendMessage",
        "LifecycleService/InterruptSession",
        "LifecycleService/ResolveApproval",
        "LifecycleService/TerminateSession",
    ];
    const AUDIT: [&str; 2] = ["AuditService/ListAuditRecords", "AuditService/VerifyAuditLog"];
    let of_clients = METHODS.iter().filter(|method| !OF_OTHER_PORTS.iter().any(|service| method.starts_with(service)));
    let calls = of_clients.map(|method| method.trim_start_matches("croft.v1."));
    let opens = |call, role| match role {
        Role::Viewer => READ.contains(&call),
        Role::User => READ.contains(&call) || WORK.contains(&call),
        Role::Auditor => READ.contains(&call) || AUDIT.contains(&call),
        Role::Admin => true,
    };
    calls.map(|call| (call, roles.iter().any(|role| opens(call, *role)))).collect()
}

fn assert_allow(roles: &[Role], outcomes: &BTreeMap<&'static str, bool>) {
    assert_eq!(*outcomes, allowed(roles), "{roles:?}");
}

#[tokio::test]
async fn an_api_key_opens_what_its_role_does() {
    let scene = Scene::new().await;
    for role in Role::ALL {
        assert_allow(&[role], &let_through(&scene, &scene.api_key(role).await).await);
    }
}

#[tokio::test]
async fn a_token_of_an_issuer_opens_what_its_roles_do() {
    let scene = Scene::new().await;
    scene.taken(&scene.people.sign(&scene.claims())).await;
    for role in Role::ALL {
        let token = scene.changed("roles", json!([role.as_str(), "football"]));
        assert_allow(&[role], &let_through(&scene, &token).await);
    }
    let both = scene.changed("roles", json!("auditor user"));
    assert_allow(&[Role::Auditor, Role::User], &let_through(&scene, &both).await);
}

#[tokio::test]
async fn a_service_account_is_a_user() {
    let scene = Scene::new().await;
    let token = scene.cluster.sign(&scene.service_account("tenant-heron"));
    scene.taken(&token).await;
    assert_allow(&[Role::User], &let_through(&scene, &token).await);
}

#[tokio::test]
async fn health_asks_nobody_who_he_is() {
    let scene = Scene::new().await;
    let request = HealthCheckRequest { service: String::new() };
    HealthClient::new(scene.channel()).check(request).await.unwrap();
}

#[tokio::test]
async fn what_was_refused_a_role_was_not_done_and_both_are_recorded_with_who_asked() {
    let scene = Scene::new().await;
    scene.taken(&scene.people.sign(&scene.claims())).await;
    let mut lifecycle = LifecycleServiceClient::new(scene.channel());
    let request = TerminateSessionRequest { session_id: uuid::Uuid::now_v7().to_string(), ..Default::default() };
    let viewer = scene.changed("roles", json!("viewer"));
    let refused = lifecycle.terminate_session(with_token(request.clone(), &viewer)).await.unwrap_err();
    assert_eq!(refused.message(), "terminating sessions is not allowed for this identity");
    let unknown = lifecycle.terminate_session(with_token(request, &scene.people.sign(&scene.claims()))).await;
    assert_eq!(unknown.unwrap_err().code(), Code::NotFound);

    let auditor = scene.changed("roles", json!("auditor"));
    let mut audit = AuditServiceClient::new(scene.channel());
    let listed = async {
        loop {
            let request = with_token(ListAuditRecordsRequest::default(), &auditor);
            let records = audit.list_audit_records(request).await.unwrap().into_inner().records;
            if records.len() >= 2 {
                return records;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let records = tokio::time::timeout(crate::scene::PATIENCE, listed).await.unwrap();
    let told: Vec<_> = records.iter().map(|record| (&*record.actor, &*record.action, &*record.outcome)).collect();
    let [actor, action] = ["oidc/staff/u-17", "session.terminate"];
    assert_eq!(told, [(actor, action, "FORBIDDEN"), (actor, action, "SESSION_NOT_FOUND")]);
}
