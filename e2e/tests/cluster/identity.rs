//! Who may call: tokens that the cluster's own API server has signed, checked by fronts that never ask it.

use croft_e2e::client::{Client, message, scripted_agent};
use croft_e2e::system::System;
use croft_proto::v1::{GetSessionRequest, ListAuditRecordsRequest, ListSessionsRequest};
use tonic::Code;

use crate::support::{Tenant, eventually, whole_turn};

async fn token(system: &System, namespace: &str, account: &str, audience: &str) -> String {
    let create = ["create", "token", account, "--namespace", namespace, "--audience", audience, "--duration", "10m"];
    system.kubectl(&create).await.unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_account_of_a_tenants_namespace_speaks_for_that_tenant_alone() {
    let system = System::from_env_file().unwrap();
    let tenant = Tenant::apply(&system, "accounts", 1).await;
    let account = format!(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{ name: builder, namespace: {} }}\n",
        tenant.namespace
    );
    system.apply(&account).await.unwrap();
    let signed = token(&system, &tenant.namespace, "builder", "croft").await;
    let mut builder = Client::new(&system.grpc, &signed).unwrap();
    let session = builder.create(scripted_agent("built")).await.unwrap();
    assert_eq!(session.tenant, tenant.name);
    let sent = builder.lifecycle.send_message(message(&session.session_id, "hello")).await.unwrap();
    assert!(!whole_turn(sent.into_inner()).await.unwrap().is_empty());

    // Another tenant's session is none that it could know of.
    let mut demo = Client::new(&system.grpc, &system.api_key).unwrap();
    let foreign = demo.create(scripted_agent("foreign")).await.unwrap().session_id;
    let refused = builder.lifecycle.get_session(GetSessionRequest { session_id: foreign }).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "{refused:?}");
    // Its role is that of a user, who does not read the audit log.
    let refused = builder.audit.list_audit_records(ListAuditRecordsRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");

    let for_others = token(&system, &tenant.namespace, "builder", "elsewhere").await;
    let of_no_tenant = token(&system, "default", "default", "croft").await;
    let (head, signature) = signed.rsplit_once('.').unwrap();
    let flipped = if signature.starts_with('A') { "B" } else { "A" };
    let forged = format!("{head}.{flipped}{}", &signature[1..]);
    for (what, refused) in
        [("for another audience", for_others), ("of no tenant", of_no_tenant), ("of a changed signature", forged)]
    {
        let mut stranger = Client::new(&system.grpc, &refused).unwrap();
        let refused = stranger.lifecycle.list_sessions(ListSessionsRequest::default()).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "a token {what}: {refused:?}");
    }

    // What it did is told by its name.
    let mut owner = tenant.client(&system);
    eventually("its deeds are recorded", async || {
        let records = owner.audit.list_audit_records(ListAuditRecordsRequest::default()).await?.into_inner().records;
        let name = format!("service-account/{}/builder", tenant.namespace);
        anyhow::ensure!(records.iter().any(|record| record.actor == name), "{records:?}");
        Ok(())
    })
    .await;
    tenant.remove(&system).await;
}
