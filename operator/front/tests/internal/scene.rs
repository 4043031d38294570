//! Fronts without workers over one store, the operator's authority, and calls with its certificates and tokens.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use croft_front::app::{Parts, assemble, internal_routes, public_routes};
use croft_front::core::{Core, Options};
use croft_front::counters::memory::Memory;
use croft_front::events::log::{Append, Appended, Authority as Right, NewEvent};
use croft_front::events::relay::memory::MemoryRelay;
use croft_front::session::store::NewSession;
use croft_front::store::Stores;
use croft_front::tenants::Tenants;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::tenant_service_client::TenantServiceClient;
use croft_proto::v1::watch_routes_response::Change;
use croft_proto::v1::{
    AgentSpec, RouteSnapshot, SessionCreated, SessionReady, SessionTerminated, TenantRoute, WatchRoutesResponse,
};
use croft_serve::tls::{PeerRole, TlsFiles};
use croft_serve::{Readiness, Tasks};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Request;
use tonic::transport::{Channel, Endpoint, Server};

/// Longer than anything here takes; what it bounds has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// The operator's part: an authority that issues certificates and signs tokens.
pub(crate) struct Operator(CertifiedIssuer<'static, KeyPair>);

impl Operator {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn issue(&self, role: &PeerRole) -> TlsFiles {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::URI(role.uri().try_into().unwrap()));
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.0).unwrap().pem().into_bytes();
        TlsFiles { cert, key: key.serialize_pem().into_bytes(), ca: self.0.pem().into_bytes() }
    }

    /// A token for one tenant; with an empty name and id, for all of them.
    fn token(&self, name: &str, id: &str) -> String {
        let now = jsonwebtoken::get_current_timestamp();
        let claims = json!({
            "iss": "croft-operator", "aud": "croft", "sub": "operator", "iat": now, "exp": now + 120,
            "tenant": name, "tenant_id": id,
        });
        let header = Header { kid: Some("croft-ca".to_owned()), ..Header::new(Algorithm::ES256) };
        let key = EncodingKey::from_ec_der(self.0.key().serialized_der());
        jsonwebtoken::encode(&header, &claims, &key).unwrap()
    }

    pub(crate) fn for_all<T>(&self, message: T) -> Request<T> {
        self.request(message, "", "")
    }

    pub(crate) fn for_tenant<T>(&self, message: T, name: &str, id: TenantId) -> Request<T> {
        self.request(message, name, &id.to_string())
    }

    fn request<T>(&self, message: T, name: &str, id: &str) -> Request<T> {
        let mut request = Request::new(message);
        let bearer = format!("Bearer {}", self.token(name, id)).parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        request
    }
}

/// What fronts share, and two tenants.
pub(crate) struct Scene {
    pub(crate) operator: Operator,
    pub(crate) stores: Stores,
    pub(crate) tenants: Tenants,
    pub(crate) heron: TenantId,
    pub(crate) plover: TenantId,
    relay: Arc<MemoryRelay>,
    pub(crate) tasks: Tasks,
    pub(crate) options: Options,
}

/// One front.
pub(crate) struct Front {
    pub(crate) core: Arc<Core>,
    internal: SocketAddr,
    pub(crate) public: SocketAddr,
}

impl Scene {
    pub(crate) async fn new() -> Self {
        let (stores, tenants) = (Stores::memory(), Tenants::new());
        let [heron, plover] = [TenantId::generate(), TenantId::generate()];
        let mut routes = Vec::new();
        for (id, name) in [(heron, "heron"), (plover, "plover")] {
            stores.tenants.upsert(id, name).await.unwrap();
            routes.push(TenantRoute { tenant_id: id.to_string(), name: name.into(), ..TenantRoute::default() });
        }
        let change = Some(Change::Snapshot(RouteSnapshot { tenants: routes }));
        tenants.apply(WatchRoutesResponse { version: 1, change });
        let operator = Operator::new();
        Self {
            operator,
            stores,
            tenants,
            heron,
            plover,
            relay: Arc::default(),
            tasks: Tasks::new(),
            options: Options::default(),
        }
    }

    pub(crate) async fn front(&self, replica: &str) -> Front {
        let tls = self.operator.issue(&PeerRole::Front);
        let parts = Parts {
            replica: replica.into(),
            stores: self.stores.clone(),
            relay: self.relay.clone(),
            counters: Arc::new(Memory::default()),
            tenants: self.tenants.clone(),
            tls: Some(tls.clone()),
            options: self.options.clone(),
        };
        let core = assemble(parts, &self.tasks, &prometheus::Registry::new()).await.unwrap();
        let (internal, public) =
            (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let front = Front {
            internal: internal.local_addr().unwrap(),
            public: public.local_addr().unwrap(),
            core: core.clone(),
        };
        let routes = internal_routes(&core, &Readiness::new()).await;
        let server = Server::builder().tls_config(tls.server()).unwrap().add_routes(routes);
        drop(self.tasks.spawn("internal", server.serve_with_incoming(TcpListenerStream::new(internal))));
        let routes = public_routes(&core, &Readiness::new(), false).await.unwrap();
        let server = Server::builder().add_routes(routes);
        drop(self.tasks.spawn("public", server.serve_with_incoming(TcpListenerStream::new(public))));
        front
    }

    /// A client with the operator's certificate.
    pub(crate) fn client(&self, front: &Front) -> TenantServiceClient<Channel> {
        self.client_as(front, &PeerRole::Operator)
    }

    pub(crate) fn client_as(&self, front: &Front, role: &PeerRole) -> TenantServiceClient<Channel> {
        let endpoint = Endpoint::from_shared(format!("https://{}", front.internal)).unwrap();
        let endpoint = endpoint.tls_config(self.operator.issue(role).client("localhost")).unwrap();
        TenantServiceClient::new(endpoint.connect_lazy())
    }

    /// A ready session that was declared in the cluster, or wasn't.
    pub(crate) async fn session(&self, tenant: TenantId, declared: bool) -> SessionId {
        self.insert(NewSession {
            labels: if declared {
                BTreeMap::from([("croft.dev/source".to_owned(), "agentsession".to_owned())])
            } else {
                BTreeMap::new()
            },
            ..new_session(tenant)
        })
        .await
    }

    pub(crate) async fn insert(&self, new: NewSession) -> SessionId {
        let id = new.id;
        self.stores.sessions.insert(new).await.unwrap();
        id
    }

    /// Stores events, as another front would.
    pub(crate) async fn append(&self, tenant: TenantId, session: SessionId, kinds: Vec<Kind>) {
        let append = Append::of(tenant, session, Right::Caller, kinds.into_iter().map(NewEvent::now).collect());
        assert!(matches!(self.stores.events.append(append).await.unwrap(), Appended::New(_)));
    }
}

pub(crate) fn new_session(tenant: TenantId) -> NewSession {
    let ready = SessionReady { worker: "worker-0".into(), namespace: "tenant-heron".into() };
    let events = [Kind::SessionCreated(SessionCreated::default()), Kind::SessionReady(ready)].map(NewEvent::now).into();
    let agent = AgentSpec { name: "helper".into(), ..AgentSpec::default() };
    NewSession { config_hash: "c0ffee".into(), ..NewSession::of(SessionId::generate(), tenant, "heron", agent, events) }
}

pub(crate) fn terminated() -> Kind {
    Kind::SessionTerminated(SessionTerminated { reason: "enough".into() })
}
