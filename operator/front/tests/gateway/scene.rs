//! Replicas of a front without turns: their gateways over real sockets, one store and one relay between them.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use croft_front::Error;
use croft_front::events::fanout::{self, Hub};
use croft_front::events::log::{Append, Appended, Authority, EventLog, NewEvent};
use croft_front::events::relay::memory::MemoryRelay;
use croft_front::gateway::{self, Calls, Gateway, Opens};
use croft_front::identity::api_key::{KeyStore, generate};
use croft_front::identity::{Authenticator, Identity};
use croft_front::intake::Intake;
use croft_front::seats::Seats;
use croft_front::session::store::{NewSession, SessionStore};
use croft_front::store::memory::Memory;
use croft_front::tenants::{TenantMirror, Tenants};
use croft_front::unread::{self, Unread};
use croft_proto::Timestamp;
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::content_block::Block;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::watch_routes_response::Change;
use croft_proto::v1::{
    AgentMessage, AgentSpec, ContentBlock, ResolveApprovalRequest, RouteSnapshot, SendMessageRequest, SessionCreated,
    SessionEvent, SessionTerminated, StepCompleted, TenantRoute, Text, TextDelta, UserMessage, WatchRoutesResponse,
};
use croft_serve::connections::{Bounds, Connections};
use croft_serve::http::Speaks;
use croft_serve::{Metrics, Readiness, Tasks, health};
use prometheus::Registry;
use prometheus::proto::MetricFamily;
use secrecy::ExposeSecret;
use tokio::net::TcpListener;
use tonic::service::Routes;

/// Longer than anything here takes; what it bounds has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// What the replicas share, and a tenant with a key.
pub(crate) struct Scene {
    pub(crate) store: Arc<Memory>,
    pub(crate) relay: Arc<MemoryRelay>,
    pub(crate) tenants: Tenants,
    pub(crate) tenant: TenantId,
    pub(crate) key: String,
    pub(crate) calls: Arc<RecordedCalls>,
    /// Of each tenant, at all replicas together.
    pub(crate) seats: Seats,
    /// Of each replica.
    pub(crate) unread: unread::Options,
}

/// One replica.
pub(crate) struct Replica {
    pub(crate) address: SocketAddr,
    pub(crate) hub: Hub,
    pub(crate) tasks: Tasks,
    pub(crate) registry: Registry,
    pub(crate) readiness: Readiness,
}

/// Takes down what it is asked for.
#[derive(Default)]
pub(crate) struct RecordedCalls {
    pub(crate) sent: Mutex<Vec<(Identity, SendMessageRequest)>>,
    pub(crate) answered: Mutex<Vec<ResolveApprovalRequest>>,
    /// Calls that the tenant has left in this minute; `None` is any number.
    pub(crate) left: Mutex<Option<u32>>,
    /// Streams that it may still resume; `None` is any number.
    pub(crate) resumes_left: Mutex<Option<u32>>,
}

#[async_trait]
impl Calls for RecordedCalls {
    async fn limit(&self, _: &Identity, opens: Opens) -> Result<(), Error> {
        let (resource, window) = match opens {
            Opens::New => ("requests", &self.left),
            Opens::Again => ("resumes", &self.resumes_left),
        };
        let mut left = window.lock().unwrap();
        match left.as_mut() {
            Some(0) => {
                let retry_after = Duration::from_millis(1_500);
                return Err(Error::RateLimited { resource, limit: 60, retry_after });
            }
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(())
    }

    async fn send_message(&self, identity: &Identity, request: SendMessageRequest) -> Result<u64, Error> {
        if request.content.is_empty() {
            return Err(Error::invalid("content", "is empty"));
        }
        let mut sent = self.sent.lock().unwrap();
        sent.push((identity.clone(), request));
        Ok(sent.len() as u64)
    }

    async fn interrupt(&self, _: &Identity, session_id: &str) -> Result<bool, Error> {
        Ok(session_id.starts_with('0'))
    }

    async fn resolve_approval(&self, _: &Identity, request: ResolveApprovalRequest) -> Result<(), Error> {
        if request.approval_id.is_empty() {
            return Err(Error::ApprovalNotPending { approval_id: String::new() });
        }
        self.answered.lock().unwrap().push(request);
        Ok(())
    }
}

impl Scene {
    pub(crate) async fn new() -> Self {
        let (store, tenants) = (Arc::new(Memory::default()), Tenants::new());
        let (tenant, key) = add_tenant(&store, "heron").await;
        tell(&tenants, &[(tenant, "heron")]);
        Self {
            store,
            relay: Arc::default(),
            tenants,
            tenant,
            key,
            calls: Arc::default(),
            seats: Seats::new(1_000, 10_000),
            unread: unread::Options::default(),
        }
    }

    /// Another tenant, with its key.
    pub(crate) async fn other_tenant(&self) -> (TenantId, String) {
        let (other, key) = add_tenant(&self.store, "plover").await;
        tell(&self.tenants, &[(self.tenant, "heron"), (other, "plover")]);
        (other, key)
    }

    /// No tenant is left.
    pub(crate) fn remove_tenants(&self) {
        tell(&self.tenants, &[]);
    }

    pub(crate) async fn replica(&self) -> Replica {
        self.replica_with(fanout::Options::default(), gateway::Options::default()).await
    }

    pub(crate) async fn replica_with(&self, bounds: fanout::Options, options: gateway::Options) -> Replica {
        self.replica_within(bounds, options, Bounds::default()).await
    }

    pub(crate) async fn replica_within(
        &self,
        bounds: fanout::Options,
        options: gateway::Options,
        port: Bounds,
    ) -> Replica {
        let (tasks, readiness, counted) = (Tasks::new(), Readiness::new(), Metrics::new("croft-front").unwrap());
        let registry = counted.registry().clone();
        let metrics = fanout::Metrics::register(&registry).unwrap();
        let hub = Hub::with_options(self.relay.clone(), &tasks, bounds, metrics);
        let router = gateway::router(Gateway {
            authenticator: Authenticator::new(self.store.clone(), self.tenants.clone(), None).unwrap(),
            sessions: self.store.clone(),
            events: self.store.clone(),
            hub: hub.clone(),
            calls: self.calls.clone(),
            seats: self.seats.clone(),
            intake: Intake::default(),
            unread: Unread::start(self.unread, &tasks, &registry).unwrap(),
            grpc: Routes::new(health::service(&readiness, &tasks, &[]).await),
            readiness: readiness.clone(),
            tasks: tasks.clone(),
            metrics: gateway::Metrics::register(&registry).unwrap(),
            options,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        croft_serve::http::serve(
            "http",
            Connections::new(listener, "http", port, &counted),
            Speaks::Any,
            router,
            &tasks,
        );
        Replica { address, hub, tasks, registry, readiness }
    }

    /// A session of our tenant's, with one event.
    pub(crate) async fn session(&self) -> SessionId {
        self.session_of(self.tenant).await
    }

    pub(crate) async fn session_of(&self, tenant: TenantId) -> SessionId {
        let id = SessionId::generate();
        let created = event(Kind::SessionCreated(SessionCreated::default()));
        let new = NewSession::of(id, tenant, "heron", AgentSpec::default(), vec![created]);
        SessionStore::insert(&*self.store, new).await.unwrap();
        id
    }

    /// Stores an event and tells the replica.
    pub(crate) async fn publish(&self, replica: &Replica, session: SessionId, kind: Kind) -> u64 {
        let append = Append::of(self.tenant, session, Authority::Caller, vec![event(kind)]);
        let Appended::New(events) = self.store.append(append).await.unwrap() else { panic!("it was there before") };
        let seq = events[0].seq;
        replica.hub.publish(self.tenant, session, events);
        seq
    }

    pub(crate) fn preview(&self, replica: &Replica, session: SessionId, text: &str) {
        let kind = Some(Kind::TextDelta(TextDelta { text: text.to_owned() }));
        let event = SessionEvent { session_id: session.to_string(), kind, ..Default::default() };
        replica.hub.publish(self.tenant, session, vec![event]);
    }
}

impl Replica {
    /// What it tells by this name, a gauge or a counter without labels.
    pub(crate) fn told(&self, name: &str) -> f64 {
        let families = self.registry.gather();
        let metric = families.iter().filter(|family| family.name() == name).flat_map(MetricFamily::get_metric).next();
        metric.map_or(0.0, |metric| metric.get_gauge().get_value() + metric.get_counter().get_value())
    }

    fn connections(&self, kind: &str) -> f64 {
        let families = self.registry.gather();
        families
            .iter()
            .filter(|family| family.name() == "croft_gateway_connections")
            .flat_map(MetricFamily::get_metric)
            .filter(|metric| metric.get_label().iter().any(|pair| pair.value() == kind))
            .map(|metric| metric.get_gauge().get_value())
            .sum()
    }

    /// Waits until so many connections of this kind are open.
    pub(crate) async fn wait_for_connections(&self, kind: &str, count: u32) {
        let reached = async {
            while (self.connections(kind) - f64::from(count)).abs() > 0.5 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.expect("the number of connections is another");
    }
}

async fn add_tenant(store: &Arc<Memory>, name: &str) -> (TenantId, String) {
    let tenant = TenantId::generate();
    store.upsert(tenant, name).await.unwrap();
    let (stored, token) = generate(tenant, name).unwrap();
    KeyStore::insert(&**store, &stored, None).await.unwrap();
    (tenant, token.expose_secret().to_owned())
}

fn tell(tenants: &Tenants, routes: &[(TenantId, &str)]) {
    let tenants_told = routes
        .iter()
        .map(|(id, name)| TenantRoute { tenant_id: id.to_string(), name: (*name).to_owned(), ..Default::default() })
        .collect();
    let change = Some(Change::Snapshot(RouteSnapshot { tenants: tenants_told }));
    tenants.apply(WatchRoutesResponse { version: 1, change });
}

fn event(kind: Kind) -> NewEvent {
    NewEvent::at(kind, Timestamp { seconds: 1_700_000_000, nanos: 0 })
}

pub(crate) fn user_message(text: &str) -> Kind {
    let block = Some(Block::Text(Text { text: text.to_owned() }));
    Kind::UserMessage(UserMessage { content: vec![ContentBlock { block }], ..UserMessage::default() })
}

pub(crate) fn agent_message() -> Kind {
    Kind::AgentMessage(AgentMessage::default())
}

/// With a value that only a later release has.
pub(crate) fn from_later_on() -> Kind {
    Kind::StepCompleted(StepCompleted { stop_reason: 999 })
}

pub(crate) fn terminated() -> Kind {
    Kind::SessionTerminated(SessionTerminated { reason: "enough".to_owned() })
}
