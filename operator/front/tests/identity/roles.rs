//! What each kind of credential opens on the real port, call by call.

use croft_front::identity::Role;
use croft_proto::v1::audit_service_client::AuditServiceClient;
use croft_proto::v1::lifecycle_service_client::LifecycleServiceClient;
use croft_proto::v1::model_registry_service_client::ModelRegistryServiceClient;
use croft_proto::v1::usage_service_client::UsageServiceClient;
use croft_proto::v1::{
    CreateSessionRequest, GetModelRequest, GetSessionRequest, InterruptSessionRequest, ListAuditRecordsRequest,
    ListModelsRequest, ListSessionsRequest, ListUsageEventsRequest, ResolveApprovalRequest, SendMessageRequest,
    StreamEventsRequest, SummarizeUsageRequest, TerminateSessionRequest, VerifyAuditLogRequest,
};
use serde_json::json;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

use crate::scene::{Scene, with_token};

/// Makes every call that there is, and tells of each whether it was let through to where it fails for being empty.
async fn let_through(scene: &Scene, token: &str) -> Vec<(&'static str, bool)> {
    let mut lifecycle = LifecycleServiceClient::new(scene.channel());
    let mut usage = UsageServiceClient::new(scene.channel());
    let mut models = ModelRegistryServiceClient::new(scene.channel());
    let mut audit = AuditServiceClient::new(scene.channel());
    macro_rules! outcome {
        ($client:ident.$call:ident($request:ty)) => {
            (stringify!($call), passed($client.$call(with_token(<$request>::default(), token)).await.err()))
        };
    }
    vec![
        outcome!(lifecycle.get_session(GetSessionRequest)),
        outcome!(lifecycle.list_sessions(ListSessionsRequest)),
        outcome!(lifecycle.stream_events(StreamEventsRequest)),
        outcome!(models.list_models(ListModelsRequest)),
        outcome!(models.get_model(GetModelRequest)),
        outcome!(usage.list_usage_events(ListUsageEventsRequest)),
        outcome!(usage.summarize_usage(SummarizeUsageRequest)),
        outcome!(lifecycle.create_session(CreateSessionRequest)),
        outcome!(lifecycle.send_message(SendMessageRequest)),
        outcome!(lifecycle.interrupt_session(InterruptSessionRequest)),
        outcome!(lifecycle.resolve_approval(ResolveApprovalRequest)),
        outcome!(lifecycle.terminate_session(TerminateSessionRequest)),
        outcome!(audit.list_audit_records(ListAuditRecordsRequest)),
        outcome!(audit.verify_audit_log(VerifyAuditLogRequest)),
    ]
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

/// The calls in the order of [`let_through`]: seven read, five work with sessions, two see the audit log.
fn allowed(role: Role) -> Vec<bool> {
    let (work, audit) = match role {
        Role::Viewer => (false, false),
        Role::User => (true, false),
        Role::Auditor => (false, true),
        Role::Admin => (true, true),
    };
    [vec![true; 7], vec![work; 5], vec![audit; 2]].concat()
}

fn assert_allows(role: Role, outcomes: &[(&'static str, bool)]) {
    let expected: Vec<_> = outcomes.iter().zip(allowed(role)).map(|((call, _), allowed)| (*call, allowed)).collect();
    assert_eq!(outcomes, expected, "{role}");
}

#[tokio::test]
async fn an_api_key_opens_what_its_role_does() {
    let scene = Scene::new().await;
    for role in Role::ALL {
        assert_allows(role, &let_through(&scene, &scene.api_key(role).await).await);
    }
}

#[tokio::test]
async fn a_token_of_an_issuer_opens_what_its_roles_do() {
    let scene = Scene::new().await;
    scene.taken(&scene.people.sign(&scene.claims())).await;
    for role in Role::ALL {
        let token = scene.changed("roles", json!([role.as_str(), "football"]));
        assert_allows(role, &let_through(&scene, &token).await);
    }
    let both = scene.changed("roles", json!("auditor user"));
    assert_allows(Role::Admin, &let_through(&scene, &both).await);
}

#[tokio::test]
async fn a_service_account_is_a_user() {
    let scene = Scene::new().await;
    let token = scene.cluster.sign(&scene.service_account("tenant-heron"));
    scene.taken(&token).await;
    assert_allows(Role::User, &let_through(&scene, &token).await);
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
