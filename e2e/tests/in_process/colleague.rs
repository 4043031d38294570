//! A second person of the tenant, with a credential of their own.

use std::net::SocketAddr;

use croft_e2e::client::Client;
use croft_front::identity::api_key;
use croft_proto::v1::ResolveApprovalRequest;
use secrecy::ExposeSecret as _;

use crate::world::World;

/// Somebody else of the same tenant, who calls another front.
pub(crate) struct Colleague {
    /// As the audit log names them.
    pub(crate) actor: String,
    pub(crate) key: String,
    pub(crate) client: Client,
    pub(crate) http: SocketAddr,
}

impl Colleague {
    pub(crate) async fn of(world: &World) -> Self {
        let (record, key) = api_key::generate(world.tenant(), "colleague").unwrap();
        world.core.stores.keys.insert(&record, None).await.unwrap();
        let (grpc, http) = world.front_with(&world.tasks).await;
        let client = Client::new(&grpc.to_string(), key.expose_secret()).unwrap();
        let (actor, key) = (format!("api-key/ck_{}", record.prefix), key.expose_secret().to_owned());
        Self { actor, key, client, http }
    }

    pub(crate) async fn answers(&mut self, session_id: &str, approval_id: &str, approved: bool) {
        let answer = ResolveApprovalRequest {
            session_id: session_id.to_owned(),
            approval_id: approval_id.to_owned(),
            approved,
            ..ResolveApprovalRequest::default()
        };
        self.client.lifecycle.resolve_approval(answer).await.unwrap();
    }
}
