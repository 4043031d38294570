//! The API tells what it is, where the chart lets it: `front.reflection`.

use croft_e2e::system::System;
use tonic::transport::Endpoint;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_no_credential_may_ask_which_services_there_are() {
    let system = System::from_env_file().unwrap();
    let channel = Endpoint::from_shared(format!("http://{}", system.grpc)).unwrap().connect_lazy();
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let asked = futures::stream::iter([request]);
    let mut answers = ServerReflectionClient::new(channel).server_reflection_info(asked).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(listed)) = answer else { panic!("{answer:?}") };
    let services: Vec<_> = listed.service.iter().map(|service| service.name.as_str()).collect();
    for name in ["LifecycleService", "ModelRegistryService", "UsageService", "AuditService", "BudgetService"] {
        assert!(services.contains(&format!("croft.v1.{name}").as_str()), "{name} is not among {services:?}");
    }
}
