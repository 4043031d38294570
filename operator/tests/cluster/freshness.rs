//! A replica that is cut off from the API server: fronts are led to another, those that are connected too, and lose nothing meanwhile.

use std::io::Write as _;

use croft_crds::AgentTenant;
use croft_proto::v1::TenantAdmission;
use croft_proto::v1::watch_routes_response::Change;
use croft_serve::Tasks;
use http::Method;
use kube::ResourceExt as _;
use serde_json::json;
use tempfile::NamedTempFile;

use crate::program::Replica;
use crate::proxy::{Proxy, What};
use crate::routes::{front, next_where, watch_over};
use crate::world::{LONG, World, kube_config, until};

/// Leads through `proxy`.
pub(crate) fn kubeconfig(proxy: &Proxy) -> NamedTempFile {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
        "clusters": [{ "name": "test", "cluster": { "server": proxy.config().cluster_url.to_string() } }],
        "users": [{ "name": "test", "user": {} }],
    });
    let mut file = NamedTempFile::new().expect("a file can be made");
    write!(file, "{config}").expect("it can be written");
    file
}

/// When the API server last answered a watch, in seconds since 1970.
async fn answered(replica: &Replica, watch: &str) -> i64 {
    let metrics = replica.get("/metrics").await;
    let series = format!("croft_operator_watch_answered_timestamp_seconds{{watch=\"{watch}\"}} ");
    let told = metrics.lines().find_map(|line| line.strip_prefix(series.as_str())).expect("it is told");
    told.parse().expect("it is a number")
}

#[tokio::test]
async fn a_replica_that_is_cut_off_is_not_ready_until_it_is_back_and_serves_what_it_knows() {
    let tasks = Tasks::new();
    let proxy = Proxy::start(kube_config().await, &tasks).await;
    let kubeconfig = kubeconfig(&proxy);
    let session = World::shared().await;
    let known = session.settled_tenant("outlasting", json!({ "workers": { "replicas": 0 } })).await;
    // It must never lead, however long the world's operator takes to renew its Lease.
    let _follows = [Method::PATCH, Method::PUT, Method::POST]
        .map(|method| proxy.inject(method, "/leases", What::Answer(503), None));
    let path = kubeconfig.path().to_str().expect("it is text");
    let arguments = ["--routes-stale-seconds=30".to_owned()];
    let replica = Replica::start(path, &session.world.namespace, &arguments, &tasks).await;
    let is_ready = async || replica.get("/readyz").await.starts_with("HTTP/1.1 200");
    until("it is ready", async || is_ready().await.then_some(())).await;
    let channel = front(&session, replica.routes_port).await;
    let mut stream = watch_over(&channel).await;
    stream.message().await.unwrap().unwrap();
    // Tests that want to be alone need not wait for what follows.
    drop(session);
    let before = answered(&replica, "tenants").await;
    assert!((jiff::Timestamp::now().as_second() - before).abs() < 30, "{before}");

    let faults = [Method::GET, Method::PATCH].map(|method| proxy.inject(method, "", What::Answer(503), None));
    proxy.cut_watches();
    let problems = until("it says so", async || {
        let answer = replica.get("/readyz").await;
        answer.starts_with("HTTP/1.1 503").then_some(answer)
    })
    .await;
    let (_, named) = problems.split_once("routes: they may be old: the watch of ").expect("it says what");
    let (watch, _) = named.split_once(' ').expect("it says which");
    let last = answered(&replica, watch).await;
    assert!(jiff::Timestamp::now().as_second() - last >= 29, "{last}");
    let ends = async { while stream.message().await.unwrap().is_some() {} };
    tokio::time::timeout(LONG, ends).await.expect("the front's stream ends");
    // A front that is led here all the same is told what is known.
    let mut stream = watch_over(&channel).await;
    let first = stream.message().await.unwrap().unwrap();
    let Some(Change::Snapshot(snapshot)) = first.change else { panic!("the first is a snapshot") };
    assert!(snapshot.tenants.iter().any(|route| route.name == known.name_any()));

    drop(faults);
    until("it is ready again", async || is_ready().await.then_some(())).await;
    assert!(answered(&replica, watch).await > last);
    // One that begins now stays, whatever has become of those before.
    let mut stream = watch_over(&channel).await;
    stream.message().await.unwrap().unwrap();
    let session = World::shared().await;
    session.merge(&session.all::<AgentTenant>(), &known.name_any(), json!({ "spec": { "cordon": true } })).await;
    let route = next_where(&mut stream, &known, |route| route.admission() == TenantAdmission::Cordoned).await;
    assert_eq!(route.name, known.name_any());
}
