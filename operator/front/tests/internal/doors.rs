//! Who may ask.

use croft_proto::id::TenantId;
use croft_proto::v1::tenant_service_client::TenantServiceClient;
use croft_proto::v1::{RemovalStep, RemoveTenantRequest, WatchSessionsRequest};
use croft_serve::tls::PeerRole;
use tonic::{Code, Request};

use crate::scene::Scene;

#[tokio::test]
async fn only_the_operator_with_the_right_token_is_heard() {
    let scene = Scene::new().await;
    let front = scene.front("front-0").await;
    let (operator, heron) = (&scene.operator, scene.heron);
    let (watch, remove) = (WatchSessionsRequest::default(), RemoveTenantRequest::default());

    let mut other = scene.client_as(&front, &PeerRole::Front);
    assert_eq!(other.watch_sessions(operator.for_all(watch)).await.unwrap_err().code(), Code::PermissionDenied);
    let foreign = other.remove_tenant(operator.for_tenant(remove, "heron", heron)).await.unwrap_err();
    assert_eq!(foreign.code(), Code::PermissionDenied);

    let mut client = scene.client(&front);
    for refused in [
        client.watch_sessions(Request::new(watch)).await.unwrap_err(),
        client.watch_sessions(operator.for_tenant(watch, "heron", heron)).await.unwrap_err(),
        client.remove_tenant(operator.for_all(remove)).await.unwrap_err(),
        client.remove_tenant(operator.for_tenant(remove, "plover", heron)).await.unwrap_err(),
    ] {
        assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
    }
    assert!(scene.stores.removal.begin(heron, "heron").await.unwrap(), "nothing has begun");

    // A front that has not heard of a tenant takes its removal all the same.
    let stranger = operator.for_tenant(remove, "stranger", TenantId::generate());
    let removed = client.remove_tenant(stranger).await.unwrap().into_inner();
    assert_eq!(removed.step(), RemovalStep::Done);
}

#[tokio::test]
async fn the_clients_port_knows_no_such_service() {
    let scene = Scene::new().await;
    let front = scene.front("front-0").await;
    let mut client = TenantServiceClient::connect(format!("http://{}", front.public)).await.unwrap();
    let asked = scene.operator.for_all(WatchSessionsRequest::default());
    assert_eq!(client.watch_sessions(asked).await.unwrap_err().code(), Code::Unimplemented);
}
