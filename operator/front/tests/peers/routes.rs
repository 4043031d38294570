//! Routes: from the operator's port into the list of tenants and their rows.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use croft_front::Error;
use croft_front::tenants::watch::{Metrics, RouteWatch};
use croft_front::tenants::{TenantMirror, Tenants};
use croft_proto::id::TenantId;
use croft_proto::v1::route_service_server::{RouteService, RouteServiceServer};
use croft_proto::v1::watch_routes_response::Change;
use croft_proto::v1::{RouteDelta, RouteSnapshot, TenantRoute, WatchRoutesRequest, WatchRoutesResponse};
use croft_serve::tls::{PeerRole, TlsFiles, only};
use croft_serve::{Readiness, Tasks};
use futures::{Stream, StreamExt};
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};
use tokio_stream::wrappers::BroadcastStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::authority::Authority;
use crate::port::Port;

/// Longer than anything here takes; what it bounds has failed.
const PATIENCE: Duration = Duration::from_secs(90);

/// An operator that says what it is told to say, after a snapshot of its own.
struct Operator {
    snapshot: Vec<TenantRoute>,
    deltas: broadcast::Sender<RouteDelta>,
    /// From where streams were asked for; all that there are end when this changes.
    peers: watch::Sender<Vec<SocketAddr>>,
    closing: CancellationToken,
}

#[tonic::async_trait]
impl RouteService for Operator {
    type WatchRoutesStream = Pin<Box<dyn Stream<Item = Result<WatchRoutesResponse, Status>> + Send>>;

    async fn watch_routes(
        &self,
        request: Request<WatchRoutesRequest>,
    ) -> Result<Response<Self::WatchRoutesStream>, Status> {
        self.peers.send_modify(|peers| peers.extend(request.remote_addr()));
        let mut peers = self.peers.subscribe();
        let ended = async move { drop(peers.changed().await) };
        assert_eq!(request.into_inner().front, "front-0");
        let snapshot = Change::Snapshot(RouteSnapshot { tenants: self.snapshot.clone() });
        let deltas = BroadcastStream::new(self.deltas.subscribe()).map(|delta| Change::Delta(delta.unwrap()));
        let changes = futures::stream::once(async { snapshot }).chain(deltas);
        let responses = changes.map(|change| Ok(WatchRoutesResponse { version: 1, change: Some(change) }));
        let responses = responses.take_until(Box::pin(ended));
        Ok(Response::new(responses.take_until(self.closing.clone().cancelled_owned()).boxed()))
    }
}

struct RunningOperator {
    address: SocketAddr,
    deltas: broadcast::Sender<RouteDelta>,
    peers: watch::Sender<Vec<SocketAddr>>,
    _running: DropGuard,
}

async fn operate(tasks: &Tasks, address: &str, snapshot: Vec<TenantRoute>, tls: Option<TlsFiles>) -> RunningOperator {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (deltas, peers, closing) = (broadcast::Sender::new(16), watch::Sender::default(), CancellationToken::new());
    let service = Operator { snapshot, deltas: deltas.clone(), peers: peers.clone(), closing: closing.clone() };
    let service = RouteServiceServer::new(service);
    let closed = closing.clone().cancelled_owned();
    let serve = async move {
        let incoming = TcpIncoming::from(listener);
        match tls {
            Some(tls) => {
                let service = tonic::service::interceptor::InterceptedService::new(service, only(PeerRole::Front));
                let mut server = Server::builder().tls_config(tls.server()).unwrap();
                server.add_service(service).serve_with_incoming_shutdown(incoming, closed).await.unwrap();
            }
            None => {
                Server::builder().add_service(service).serve_with_incoming_shutdown(incoming, closed).await.unwrap();
            }
        }
    };
    drop(tasks.spawn("operator", serve));
    RunningOperator { address, deltas, peers, _running: closing.drop_guard() }
}

/// A database that can be made to refuse.
#[derive(Default)]
struct Rows {
    is_down: AtomicBool,
    rows: Mutex<BTreeMap<TenantId, String>>,
}

#[async_trait]
impl TenantMirror for Rows {
    async fn upsert(&self, tenant: TenantId, name: &str) -> Result<(), Error> {
        if self.is_down.load(Ordering::Relaxed) {
            return Err(Error::unavailable("postgres", anyhow::anyhow!("connection refused")));
        }
        self.rows.lock().unwrap().insert(tenant, name.to_owned());
        Ok(())
    }
}

struct Front {
    tasks: Tasks,
    tenants: Tenants,
    rows: Arc<Rows>,
    readiness: Readiness,
    registry: Registry,
}

impl Front {
    fn new() -> Self {
        Self {
            tasks: Tasks::new(),
            tenants: Tenants::new(),
            rows: Arc::default(),
            readiness: Readiness::new(),
            registry: Registry::new(),
        }
    }

    fn watch(&self, operator_url: String, tls: Option<TlsFiles>) {
        let watch = RouteWatch {
            operator_url,
            tls,
            front: "front-0".to_owned(),
            tenants: self.tenants.clone(),
            mirror: self.rows.clone(),
            check: self.readiness.check("routes"),
            metrics: Metrics::register(&self.registry).unwrap(),
        };
        watch.spawn(&self.tasks).unwrap();
    }

    fn metric(&self, name: &str) -> f64 {
        let families = self.registry.gather();
        let metric = families.iter().find(|family| family.name() == name).unwrap().get_metric()[0].clone();
        metric.get_gauge().get_value() + metric.get_counter().get_value()
    }
}

fn route(tenant: TenantId, name: &str) -> TenantRoute {
    TenantRoute { tenant_id: tenant.to_string(), name: name.to_owned(), ..Default::default() }
}

async fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let reached = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("not so: {what}"));
}

#[tokio::test]
async fn routes_survive_an_operator_that_goes_and_are_made_new_by_one_that_comes() {
    let [heron, plover, avocet] = [(); 3].map(|()| TenantId::generate());
    let front = Front::new();
    let port = Port::free();
    let address = format!("127.0.0.1:{}", port.number());
    let operator = operate(&front.tasks, &address, vec![route(heron, "heron")], None).await;
    front.watch(format!("http://{address}"), None);
    assert_eq!(front.readiness.problems(), ["routes: no routes from the operator yet"]);
    wait_until("ready", || front.readiness.is_ready()).await;
    assert_eq!(front.tenants.by_name("heron").unwrap().id, heron);
    assert_eq!(front.rows.rows.lock().unwrap()[&heron], "heron", "its row was there before");

    let delta = RouteDelta { upserts: vec![route(plover, "plover")], removed_tenant_ids: vec![heron.to_string()] };
    operator.deltas.send(delta).unwrap();
    wait_until("the delta is applied", || front.tenants.get(plover).is_some()).await;
    assert!(front.tenants.get(heron).is_none());

    drop(operator);
    wait_until("disconnected", || front.metric("croft_routes_connected") < 0.5).await;
    assert!(front.readiness.is_ready(), "what is known is still good");
    assert!(front.tenants.get(plover).is_some());

    let snapshot = vec![route(avocet, "avocet")];
    let _operator = operate(&front.tasks, &address, snapshot, None).await;
    wait_until("the new snapshot is applied", || front.tenants.get(avocet).is_some()).await;
    assert!(front.tenants.get(plover).is_none(), "a snapshot is all there is");
    assert!(front.metric("croft_routes_disconnects_total") > 0.5);
    assert!(front.metric("croft_routes_connected") > 0.5);
}

/// A connection that stays would lead to the same replica for as long as it runs, whether or not that is ready.
#[tokio::test]
async fn a_stream_that_ends_is_followed_by_one_over_another_connection() {
    let heron = TenantId::generate();
    let front = Front::new();
    let operator = operate(&front.tasks, "127.0.0.1:0", vec![route(heron, "heron")], None).await;
    front.watch(format!("http://{}", operator.address), None);
    wait_until("ready", || front.readiness.is_ready()).await;
    operator.peers.send_modify(|_| ());
    wait_until("it asks again", || operator.peers.borrow().len() == 2).await;
    let peers = operator.peers.borrow().clone();
    assert_ne!(peers[0], peers[1]);
    assert!(front.readiness.is_ready() && front.tenants.get(heron).is_some());
}

#[tokio::test]
async fn a_database_that_is_down_holds_up_no_routes_and_gets_its_rows_later() {
    let [heron, plover] = [TenantId::generate(), TenantId::generate()];
    let front = Front::new();
    front.rows.is_down.store(true, Ordering::Relaxed);
    let snapshot = vec![route(heron, "heron"), route(plover, "plover")];
    let operator = operate(&front.tasks, "127.0.0.1:0", snapshot, None).await;
    front.watch(format!("http://{}", operator.address), None);
    wait_until("ready", || front.readiness.is_ready()).await;
    assert!(front.tenants.get(heron).is_some());
    assert!(front.metric("croft_routes_unmirrored_tenants") > 1.5);
    front.rows.is_down.store(false, Ordering::Relaxed);
    wait_until("the rows are written", || front.rows.rows.lock().unwrap().len() == 2).await;
    wait_until("none waits", || front.metric("croft_routes_unmirrored_tenants") < 0.5).await;
}

#[tokio::test]
async fn only_the_operator_is_believed_and_only_a_front_is_told() {
    let (authority, impostor) = (Authority::new(), Authority::new());
    let snapshot = vec![route(TenantId::generate(), "heron")];
    let is_told = async |front_tls: TlsFiles, operator_tls: TlsFiles, patience: Duration| {
        let front = Front::new();
        let operator = operate(&front.tasks, "127.0.0.1:0", snapshot.clone(), Some(operator_tls)).await;
        front.watch(format!("https://localhost:{}", operator.address.port()), Some(front_tls));
        let settled = wait_until("ready", || front.readiness.is_ready());
        tokio::time::timeout(patience, settled).await.is_ok()
    };
    let operator = || authority.issue(&PeerRole::Operator, &["localhost"]);
    let for_long = Duration::from_secs(2);
    assert!(is_told(authority.front(), operator(), PATIENCE / 2).await, "as it should be");
    assert!(!is_told(impostor.front(), operator(), for_long).await, "a front of another authority");
    assert!(!is_told(authority.worker("heron"), operator(), for_long).await, "a worker");
    let elsewhere = authority.issue(&PeerRole::Operator, &["croft-operator.elsewhere.svc"]);
    assert!(!is_told(authority.front(), elsewhere, for_long).await, "an operator of another name");
}
