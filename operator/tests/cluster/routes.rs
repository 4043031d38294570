//! What a front is told.

use std::time::Duration;

use croft_crds::AgentTenant;
use croft_operator::authority::Authority;
use croft_operator::certificate::Subject;
use croft_proto::v1::route_service_client::RouteServiceClient;
use croft_proto::v1::watch_routes_response::Change;
use croft_proto::v1::{RouteSnapshot, TenantAdmission, TenantRoute, WatchRoutesRequest, WatchRoutesResponse};
use croft_serve::tls::TlsFiles;
use k8s_openapi::api::core::v1::{ResourceQuota, Secret};
use kube::ResourceExt as _;
use kube::api::DeleteParams;
use serde_json::json;
use tonic::transport::{Certificate, Channel, ClientTlsConfig};
use tonic::{Code, Streaming};

use crate::front::tls_files;
use crate::kubelet;
use crate::world::{LONG, Session, World};

/// A change reaches a front within this.
const TOLD: Duration = Duration::from_mins(1);

async fn connect(routes_port: u16, tls: ClientTlsConfig) -> Result<Channel, tonic::transport::Error> {
    let url = format!("https://localhost:{routes_port}");
    Channel::from_shared(url).expect("it is a URL").tls_config(tls)?.connect().await
}

pub(crate) async fn watch(session: &Session) -> Streaming<WatchRoutesResponse> {
    watch_over(&front(session, session.world.routes_port).await).await
}

/// A front's connection to the replica that serves routes there.
pub(crate) async fn front(session: &Session, routes_port: u16) -> Channel {
    let secrets = session.within::<Secret>(&session.world.namespace);
    let files = tls_files(&secrets.get("croft-front-tls").await.expect("the fronts have a certificate"));
    connect(routes_port, files.client("localhost")).await.expect("a front is let in")
}

pub(crate) async fn watch_over(channel: &Channel) -> Streaming<WatchRoutesResponse> {
    let request = WatchRoutesRequest { front: "croft-front-1".to_owned() };
    RouteServiceClient::new(channel.clone()).watch_routes(request).await.expect("a front may watch").into_inner()
}

/// All that a front is told at first.
pub(crate) async fn snapshot(session: &Session) -> RouteSnapshot {
    let first = watch(session).await.message().await.expect("the stream goes on").expect("the stream goes on");
    let Some(Change::Snapshot(snapshot)) = first.change else { panic!("the first is a snapshot") };
    snapshot
}

/// The next change of a tenant's route; `None` when it is gone.
async fn next(stream: &mut Streaming<WatchRoutesResponse>, tenant: &AgentTenant) -> Option<TenantRoute> {
    let find = async {
        loop {
            let response = stream.message().await.expect("the stream goes on").expect("the stream goes on");
            let Some(Change::Delta(delta)) = response.change else { panic!("only the first is no delta") };
            if delta.removed_tenant_ids.contains(&tenant.uid().expect("it is stored")) {
                return None;
            }
            if let Some(route) = delta.upserts.into_iter().find(|route| route.name == tenant.name_any()) {
                return Some(route);
            }
        }
    };
    tokio::time::timeout(LONG, find).await.expect("the front is told in time")
}

/// The first route of a tenant that is like this.
pub(crate) async fn next_where(
    stream: &mut Streaming<WatchRoutesResponse>,
    tenant: &AgentTenant,
    is_it: impl Fn(&TenantRoute) -> bool,
) -> TenantRoute {
    loop {
        let route = next(stream, tenant).await.expect("the tenant is there");
        if is_it(&route) {
            return route;
        }
    }
}

#[tokio::test]
async fn a_front_gets_a_snapshot_and_then_each_change() {
    let session = World::shared().await;
    let old = session.settled_tenant("known", json!({ "tier": "free" })).await;
    let mut stream = watch(&session).await;
    let first = stream.message().await.unwrap().unwrap();
    let Some(Change::Snapshot(snapshot)) = first.change else { panic!("the first is a snapshot") };
    let route = snapshot.tenants.iter().find(|route| route.name == old.name_any()).expect("it has all tenants");
    assert_eq!(Some(&route.tenant_id), old.uid().as_ref());
    assert_eq!((route.namespace.as_str(), route.tier.as_str()), (old.namespace_name().as_str(), "free"));
    assert_eq!(route.admission(), TenantAdmission::Open);
    assert_eq!(route.limits.unwrap().sessions_max, 20);

    let spec = json!({ "workers": { "replicas": 1, "sessionsPerWorker": 7 }, "budget": { "monthlyUsd": "12.5" } });
    let new = session.settled_tenant("new", spec).await;
    let route = next(&mut stream, &new).await.unwrap();
    assert_eq!(route.workers_problem, "no worker is ready yet");
    assert_eq!(route.limits.unwrap().monthly_budget_nano_usd, 12_500_000_000);

    let pods = kubelet::pods(&session, &new.namespace_name(), 1).await;
    kubelet::set(&session, &pods[0], kubelet::ready("10.1.0.9")).await;
    let ready = async {
        loop {
            let route = next(&mut stream, &new).await.unwrap();
            if route.workers.first().is_some_and(|worker| worker.ready) {
                return route;
            }
        }
    };
    let route = tokio::time::timeout(TOLD, ready).await.expect("a ready worker is told of at once");
    assert_eq!(route.workers.len(), 1);
    assert_eq!(route.workers[0].name, pods[0].name_any());
    assert_eq!((route.workers[0].address.as_str(), route.workers[0].sessions_max), ("10.1.0.9:50052", 7));
    assert_eq!(route.workers_problem, "");

    let tenants = session.all::<AgentTenant>();
    session.merge(&tenants, &new.name_any(), json!({ "spec": { "cordon": true } })).await;
    assert_eq!(next(&mut stream, &new).await.unwrap().admission(), TenantAdmission::Cordoned);
    tenants.delete(&new.name_any(), &DeleteParams::default()).await.unwrap();
    assert_eq!(next(&mut stream, &new).await.unwrap().admission(), TenantAdmission::Terminating);
    while next(&mut stream, &new).await.is_some() {}
}

#[tokio::test]
async fn what_the_file_of_tiers_says_is_in_the_quota_and_in_the_route() {
    let session = World::shared().await;
    let mut stream = watch(&session).await;
    stream.message().await.unwrap().unwrap();
    let made = session.settled_tenant("priced", json!({ "tier": "enterprise" })).await;
    let route = next(&mut stream, &made).await.unwrap();
    assert_eq!(route.limits.unwrap().sessions_max, 1_234);
    let quota: ResourceQuota = session.within(&made.namespace_name()).get("tenant").await.unwrap();
    let hard = quota.spec.unwrap().hard.unwrap();
    let amount = |resource: &str| hard[resource].0.as_str();
    let told = ["pods", "limits.cpu"].map(amount);
    assert_eq!(told, ["57", "16"], "what the file leaves out is as built in");
}

#[tokio::test]
async fn a_front_hears_why_a_tenant_has_no_worker() {
    let session = World::shared().await;
    let mut stream = watch(&session).await;
    stream.message().await.unwrap().unwrap();
    let poor = session.tenant("poorer", json!({ "quota": { "memory": "32Mi" } })).await;
    let told = async {
        loop {
            let route = next(&mut stream, &poor).await.unwrap();
            if route.workers_problem.starts_with("quota exceeded") {
                return route.workers_problem;
            }
        }
    };
    let told = tokio::time::timeout(LONG, told).await.unwrap();
    assert_eq!(told, "quota exceeded: one worker may use 512Mi of memory, and the quota is 32Mi");
}

#[tokio::test]
async fn nobody_but_a_front_is_told() {
    let session = World::shared().await;
    let tenant = session.settled_tenant("nosy", json!({})).await;
    let secrets = session.within::<Secret>(&tenant.namespace_name());
    let worker = tls_files(&secrets.get("worker-tls").await.unwrap());
    let anonymous = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&worker.ca)).domain_name("localhost");
    for tls in [worker.client("localhost"), anonymous] {
        // The handshake fails, which a client may learn at its first call only.
        if let Ok(channel) = connect(session.world.routes_port, tls).await {
            let call = RouteServiceClient::new(channel).watch_routes(WatchRoutesRequest::default()).await;
            assert_ne!(call.expect_err("it is refused").code(), Code::PermissionDenied, "it never came so far");
        }
    }
    let secret: Secret = session.within(&session.world.namespace).get("croft-ca").await.unwrap();
    let authority = Authority::from_secret(&secret).unwrap();
    let now = jiff::Timestamp::now().as_second();
    let operator = Subject::operator(&session.world.namespace).issue(&authority, now).unwrap();
    let files = TlsFiles { cert: operator.cert.into(), key: operator.key.into(), ca: authority.cert_pem().into() };
    let channel = connect(session.world.routes_port, files.client("localhost")).await.unwrap();
    let call = RouteServiceClient::new(channel).watch_routes(WatchRoutesRequest::default()).await;
    assert_eq!(call.expect_err("it is no front").code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_workers_certificate_names_its_tenant_and_no_other() {
    let session = World::shared().await;
    let tenant = session.settled_tenant("named", json!({})).await;
    let secret: Secret = session.within(&tenant.namespace_name()).get("worker-tls").await.unwrap();
    let data = secret.data.unwrap();
    let (_, pem) = x509_parser::pem::parse_x509_pem(&data["tls.crt"].0).unwrap();
    let certificate = pem.parse_x509().unwrap();
    let names = certificate.subject_alternative_name().unwrap().unwrap().value.general_names.clone();
    let names: Vec<_> = names.iter().map(ToString::to_string).collect();
    let name = tenant.name_any();
    let expected =
        [format!("DNSName(workers.tenant-{name}.svc)"), format!("URI(spiffe://croft.dev/tenant/{name}/worker)")];
    assert_eq!(names, expected);
}
